"""Eight simulated devices, quick compilation, a compile cache shared by all tests, and a small prepared data set."""

import gc
import os
import pathlib
import shutil
import signal
from collections.abc import Callable

import filelock
import pytest

from lae_jax.runtime import cpu

ROOT = pathlib.Path(__file__).parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"
# Programs are compiled for a number of cores, which XLA's keys do not tell.
CACHE = ROOT / "build" / f"test-cache-{cpu.cores()}"
TOOLS = "awk bash cat cmp cp dirname env grep gzip head mkdir mktemp rm sed seq sleep tail tar timeout touch"

# The slowest files start first, so that no worker is left with one at the end.
LONGEST = ("survival", "loop", "pretrained", "export", "predict", "serve", "fitting", "packing", "longtail", "steps")
# Files whose numbers must hold on any CPU (make test-portable). make test-avx2, which .ci/run calls, skips SLOW.
QUICK = {
    "align",
    "augment",
    "crops",
    "detect",
    "distributions",
    "method_losses",
    "layers",
    "losses",
    "metrics",
    "optim",
}
QUICK |= {"perceptual_hash", "operations", "pipeline", "sampling", "shards", "splits", "steps", "drawing"}
SLOW = {"evaluate", "export", "survival", "methods", "fitting", "longtail", "backbones", "predict", "pretrained"}
SLOW |= {"records", "serve", "loop", "packing", "parallel"}

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# What this was started with: pytest's workers inherit what is added below.
os.environ["XLA_FLAGS"] = os.environ.setdefault("XLA_FLAGS_AT_START", os.environ.get("XLA_FLAGS", ""))


def pytest_configure(config):
    """Before the tests are imported, in every process that runs some."""
    if config.getoption("numprocesses") and not hasattr(config, "workerinput"):
        return  # pytest's workers run them
    # Tracing makes many objects that live on: looking at all of them so often takes a twentieth of the time.
    gc.set_threshold(10_000)
    from lae_jax.faces.tensorflow import tf

    # TensorFlow's XLA reads its flags here, and optimises: what pixels become is tested in the code that users run.
    tf.function(lambda x: x + 1, jit_compile=True)(tf.constant(1))
    # JAX's does not, unless it is told to (make test-portable): models here are tiny, so that the time goes into
    # compiling them, not into running.
    if "xla_backend_optimization_level" not in os.environ["XLA_FLAGS"]:
        os.environ["XLA_FLAGS"] = f"{os.environ['XLA_FLAGS']} {cpu.quick_compilation()}".strip()
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_compilation_cache_dir", str(CACHE))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(autouse=True)
def in_the_foreground():
    """What a test starts hears Ctrl-C and SIGHUP, also where the tests run in the background or under nohup."""
    heard = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    deaf = [number for number in heard if signal.getsignal(number) == signal.SIG_IGN]
    for number in deaf:
        signal.signal(number, heard[number])
    yield
    for number in deaf:
        signal.signal(number, signal.SIG_IGN)


def pytest_collection_modifyitems(items):
    def kind(item) -> str:
        return item.path.stem.removeprefix("test_")

    items.sort(key=lambda item: LONGEST.index(kind(item)) if kind(item) in LONGEST else len(LONGEST))
    for item in items:
        if kind(item) in QUICK | SLOW:
            item.add_marker("portable")
        if kind(item) in SLOW:
            item.add_marker("slow")


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """A function (name, make) -> folder, which calls make(folder) once for all workers."""
    top = tmp_path_factory.getbasetemp()
    top = top.parent if "PYTEST_XDIST_WORKER" in os.environ else top

    def folder(name: str, make: Callable[[pathlib.Path], object]) -> pathlib.Path:
        with filelock.FileLock(top / f"{name}.lock"):
            if not (top / f"{name}.made").exists():
                shutil.rmtree(top / name, ignore_errors=True)  # of a worker that was interrupted
                make(top / name)
                (top / f"{name}.made").touch()
        return top / name

    return folder


@pytest.fixture(scope="session")
def drawn(once) -> pathlib.Path:
    """A prepared data set: 96 + 64 + 16 drawn faces of 32 px in two shards, with identities and all three splits."""
    from lae_jax import prepare

    def make(out):
        source = {"train": "96", "validation": "64", "test": "16"}
        prepare.prepare(source, out, reader="synthetic", size=32, shards=2, workers=1)

    return once("drawn", make)


@pytest.fixture(scope="session")
def make_config(drawn):
    """(stage name, folder) -> a config that trains the smallest model on 24 px for an epoch of 3 steps of 32."""
    from lae_jax.configs import classify, pretrain, represent

    modules = {"pretrain": pretrain, "represent": represent, "classify": classify}

    def make(stage: str, folder):
        c = modules[stage].get_config()
        c.workdir = str(folder / stage)
        c.data.path, c.data.image_size, c.data.threads = str(drawn), 24, 2
        c.model.name, c.model.embedding_size = "efficientnet_v2_pico", 16
        c.batch_size, c.eval_batch_size, c.epochs, c.log_steps = 32, 32, 1.0, 1
        c.optim.milestones = (1,)
        c.init_from = str(folder / "represent") if stage == "classify" else "scratch"
        return c

    return make


@pytest.fixture(scope="session")
def trained(once, make_config) -> Callable[[str], pathlib.Path]:
    """A function: stage name -> folder of a finished run. All tests share it: copy it before you change it. Stage 2
    starts from scratch."""
    from lae_jax.train import loop

    def run(stage: str) -> pathlib.Path:
        if stage == "classify":
            run("represent")
        return once(stage, lambda folder: loop.train(make_config(stage, folder.parent)))

    return run


@pytest.fixture(scope="session")
def model_file(once, trained) -> pathlib.Path:
    """A model file of the run of stage 3, whose larger kernels are in half precision, as those of real models are."""
    from lae_jax import export
    from lae_jax.export import half

    def make(folder):
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(half, "SMALL", 1000)
            export.export(trained("classify"), "safetensors", folder / "tiny.safetensors")

    return once("model_file", make) / "tiny.safetensors"


@pytest.fixture
def shipped(model_file, tmp_path, monkeypatch):
    """Puts a copy of that file in place of faces-lite0, the model of the package; returns its record."""
    import hashlib

    from lae_jax.runtime.model_file import builtin

    path = tmp_path / "package" / "faces_lite0.safetensors"
    path.parent.mkdir()
    path.write_bytes(model_file.read_bytes())
    path.with_suffix(".md").write_text("# The card of faces-lite0")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    made = builtin.Builtin(path, digest, data="FairFace (CC BY 4.0)", error="about 7 years")
    monkeypatch.setitem(builtin.MODELS, builtin.DEFAULT, made)
    return made


@pytest.fixture
def small_config(make_config, tmp_path):
    """stage name -> such a config, whose folders are the test's own."""
    return lambda stage: make_config(stage, tmp_path)


@pytest.fixture
def place(tmp_path) -> pathlib.Path:
    """A folder `bin` with the usual tools and nothing else, to put stand-ins for programs into."""
    (tmp_path / "bin").mkdir()
    for tool in TOOLS.split():
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    return tmp_path


@pytest.fixture
def source(tmp_path) -> pathlib.Path:
    """A CSV of 30 pictures of ten people."""
    from sources import make_source

    return make_source(tmp_path / "src", [(f"{i}.jpg", 20 + i, f"p{i // 3}") for i in range(30)])

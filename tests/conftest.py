"""Eight simulated devices, quick compilation, a compile cache shared by all tests, and a small prepared data set."""

import os
import pathlib
import shutil

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from lae_jax.data.tensorflow import tf

# TensorFlow's XLA reads its flags here, and optimises: what pixels become is tested in the code that users run.
tf.function(lambda x: x + 1, jit_compile=True)(tf.constant(1))
# JAX's does not: models here are tiny, so that the time goes into compiling, not into running.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

import jax
import pytest

ROOT = pathlib.Path(__file__).parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"
CACHE = ROOT / "build" / "test-cache"
TOOLS = "awk bash cat cmp cp dirname env grep gzip head mkdir mktemp rm sed seq sleep tail tar timeout touch"

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> pathlib.Path:
    """A prepared data set: 96 + 64 + 16 drawn faces of 32 px in two shards, with identities and all three splits."""
    from lae_jax import prepare

    out = tmp_path_factory.mktemp("data") / "drawn"
    sources = ["--source", "train=96", "--source", "validation=64", "--source", "test=16"]
    args = ["--reader", "synthetic", *sources, "--size", "32", "--shards", "2", "--workers", "1", "--out", str(out)]
    prepare.prepare(prepare.parse_args(args))
    return out


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
        if stage == "classify":
            c.init_from = str(folder / "represent")
        return c

    return make


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

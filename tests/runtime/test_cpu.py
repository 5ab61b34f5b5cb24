"""Steps on CPUs: freed memory is kept for the next one, and XLA is told what it knows."""

import json
import os
import subprocess
import sys

import jax
import jaxlib
import pytest
from conftest import ROOT

from lae_jax.runtime import cpu

CODE = """
import resource, sys
import numpy as np
from lae_jax.runtime import cpu
import jax
jax.config.update("jax_platforms", "cpu")
if sys.argv[1] == "kept":
    assert cpu.keep_freed()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(20_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_memory_that_was_freed_is_taken_again_without_page_faults():
    def faults(what):
        command = [sys.executable, "-c", CODE, what]
        # With huge pages few faults would be many bytes.
        env = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"}
        options = dict(cwd=ROOT, env=env, timeout=120, capture_output=True, text=True, check=True)
        return int(subprocess.run(command, **options).stdout)

    assert faults("kept") < 0.1 * faults("given back")


HOLES = """
import resource
from lae_jax.runtime import cpu
def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6
assert cpu.keep_freed()
blocks = [b"x" * (200_000 + number) for number in range(1000)]
blocks = blocks[::2]  # each of the rest lies between two holes
before = held()
assert cpu.return_freed()
print(before - held())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_memory_that_was_freed_between_pieces_in_use_can_be_returned():
    options = dict(cwd=ROOT, timeout=120, capture_output=True, text=True, check=True)
    assert float(subprocess.run([sys.executable, "-c", HOLES], **options).stdout) > 80


@pytest.mark.parametrize(("paths", "kind"), [
    ([], ""),
    (["dev/nvidiactl"], ""),
    (["dev/nvidia0"], "cuda"),
    (["proc/driver/nvidia/gpus/0000:01:00.0/information"], "cuda"),
    (["dev/accel0"], "tpu"),
    (["dev/vfio/0"], ""),
    (["dev/vfio/0", "sys/bus/pci/devices/0000:00:04.0/vendor"], "tpu"),
])  # fmt: skip
def test_an_accelerator_that_jax_cannot_use_is_told_loudly(paths, kind, tmp_path, monkeypatch, caplog):
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("0x1ae0\n")
    assert cpu.accelerator(tmp_path) == kind
    monkeypatch.setattr(cpu, "accelerator", lambda: kind)
    before = jax.config.jax_platforms
    try:
        jax.config.update("jax_platforms", None)
        cpu.warn_of_unused_accelerator(has_plugin=False)
        jax.config.update("jax_platforms", "cpu")
        cpu.warn_of_unused_accelerator(has_plugin=False)
    finally:
        jax.config.update("jax_platforms", before)
    assert len(caplog.records) == bool(kind), "not where the CPU was asked for"
    assert all(f"pip install 'lae-jax[{kind}]'" in told and "IS NOT USED" in told for told in caplog.messages)


@pytest.mark.parametrize(("platforms", "plugin", "alone"), [("cpu", True, True), ("cuda,cpu", False, False),
                                                            (None, False, True), (None, True, False)])  # fmt: skip
def test_accelerators_are_foreseen_without_asking_for_devices(platforms, plugin, alone, monkeypatch):
    monkeypatch.setattr(cpu.importlib.metadata, "entry_points", lambda group: ("cuda",) if plugin else ())
    monkeypatch.setattr(cpu.importlib.util, "find_spec", lambda name: None)
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", platforms)
    arranged = []
    for name in ("keep_freed", "spread_convolutions"):
        monkeypatch.setattr(cpu, name, lambda name=name: arranged.append(name))
    try:
        assert cpu.only_cpus() == alone
        cpu.prepare()
    finally:
        jax.config.update("jax_platforms", before)
    assert arranged == (["keep_freed", "spread_convolutions"] if alone else [])


def test_a_cpu_is_known_by_its_model_and_its_instructions(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "cpuinfo")
    plain, old = cpu.instructions(), "model name : One\nflags : avx avx2\n"
    assert cpu.name().endswith(f" ({plain})")
    (tmp_path / "cpuinfo").write_text(old + "\n" + old)
    assert cpu.name() == f"One ({cpu.instructions()})" and cpu.instructions() != plain
    with_old = cpu.instructions()
    (tmp_path / "cpuinfo").write_text(old.replace("avx2", "avx2 avx512f"))
    assert cpu.instructions() != with_old
    assert cpu.cores() >= 1


STARTS = """
import runpy, sys
from lae_jax.runtime import cpu
def note():
    print("late" if "pyarrow" in sys.modules else "early")
    raise SystemExit
cpu.prepare = note
sys.argv[0] = "door"
runpy.run_module("lae_jax." + sys.argv.pop(1), run_name="__main__")
"""


@pytest.mark.parametrize("program", ["predict", "serve", "evaluate", "export", "longtail", "main"])
def test_memory_is_arranged_before_the_imports_that_start_threads(program, drawn, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    config = {"stage": "represent", "data": {"path": str(drawn), "split": "validation"}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    (tmp_path / "photo.jpg").touch()
    words = {
        "predict": ["--run", "run", "photo.jpg"],
        "serve": ["--run", "run"],
        "evaluate": ["--run", "run"],
        "export": ["--run", "run", "--format", "onnx", "--out", "new"],
        "longtail": ["--run", "run", "--data", str(drawn), "--out", "new"],
        "main": ["--config", "represent", "--config.init_from=scratch", f"--config.data.path={drawn}"],
    }[program]
    command = [sys.executable, "-c", STARTS, program, *words]
    result = subprocess.run(command, cwd=tmp_path, timeout=120, capture_output=True, text=True)
    assert result.stdout == "early\n", result.stderr


def test_a_flag_is_set_where_all_know_it_and_once(monkeypatch):
    versions = {"jaxlib": "0.11.2", "tensorflow": "2.21.0"}

    def version(name):
        if name not in versions:
            raise cpu.importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(cpu.importlib.metadata, "version", version)
    monkeypatch.setenv("XLA_FLAGS", "--other=1")
    assert cpu.spread_convolutions()
    assert cpu.os.environ["XLA_FLAGS"].startswith("--other=1 --xla_cpu_experimental_ynn_fusion_type=")
    assert not cpu.spread_convolutions()
    for unknown in ({"tensorflow": "2.20.0"}, {"jaxlib": "0.9.2"}):
        monkeypatch.setattr(cpu.importlib.metadata, "version", lambda name, v=versions | unknown: v[name])
        monkeypatch.setenv("XLA_FLAGS", "")
        assert not cpu.spread_convolutions() and not cpu.os.environ["XLA_FLAGS"]
    del versions["tensorflow"]
    monkeypatch.setattr(cpu.importlib.metadata, "version", version)
    assert cpu.spread_convolutions()


@pytest.mark.skipif(not jaxlib.__version__.startswith(("0.10.", "0.11.")), reason="of these versions")
def test_what_is_installed_knows_the_flag():
    """An unknown one would end the process."""
    code = """
from lae_jax.runtime import cpu
assert cpu.spread_convolutions()
import jax
print(jax.jit(lambda x: x + 1)(1))
from lae_jax.faces.tensorflow import tf
print(tf.function(lambda x: x + 1, jit_compile=True)(1).numpy())
"""
    env = {key: value for key, value in cpu.os.environ.items() if key != "XLA_FLAGS"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, timeout=120, capture_output=True, text=True
    )
    assert result.stdout.split() == ["2", "2"], result.stderr


def test_simulated_devices_count_as_cpus_alone_also_beside_an_accelerator():
    """The order of `start.devices`: first the devices, then what depends on them."""
    code = """
import importlib.metadata, sys
entry_points = importlib.metadata.entry_points
importlib.metadata.entry_points = lambda **how: ("cuda",) if how.get("group") == "jax_plugins" else entry_points(**how)
from lae_jax.runtime import cpu, start
arranged = []
cpu.keep_freed = lambda: arranged.append("pyarrow" in sys.modules)
start.devices(int(sys.argv[1]))
print(arranged)
"""
    for simulated, expected in (("2", "[False]"), ("0", "[]")):
        command = [sys.executable, "-c", code, simulated]
        result = subprocess.run(command, cwd=ROOT, timeout=120, capture_output=True, text=True)
        assert result.stdout.strip() == expected, result.stderr

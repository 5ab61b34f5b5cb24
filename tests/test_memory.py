"""Freed memory is kept for the next step, where steps run on CPUs."""

import subprocess
import sys

import jax
import pytest
from conftest import ROOT

from lae_jax import memory

CODE = """
import resource, sys
import numpy as np
from lae_jax import memory
import jax
jax.config.update("jax_platforms", "cpu")
if sys.argv[1] == "kept":
    assert memory.keep_freed()
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
        return int(subprocess.run(command, cwd=ROOT, timeout=120, capture_output=True, text=True, check=True).stdout)

    assert faults("kept") < 100 < faults("given back")


@pytest.mark.parametrize(("platforms", "plugin", "alone"), [("cpu", True, True), ("cuda,cpu", False, False),
                                                            (None, False, True), (None, True, False)])  # fmt: skip
def test_accelerators_are_foreseen_without_asking_for_devices(platforms, plugin, alone, monkeypatch):
    monkeypatch.setattr(memory.importlib.metadata, "entry_points", lambda group: ("cuda",) if plugin else ())
    monkeypatch.setattr(memory.importlib.util, "find_spec", lambda name: None)
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", platforms)
    try:
        assert memory.only_cpus() == alone
        if not alone:
            assert not memory.keep_freed()
    finally:
        jax.config.update("jax_platforms", before)

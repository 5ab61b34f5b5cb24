"""Eight simulated devices, a compile cache shared by all tests, and a small prepared data set of drawn faces."""

import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import pytest

ROOT = pathlib.Path(__file__).parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"
CACHE = ROOT / "build" / "test-cache"

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

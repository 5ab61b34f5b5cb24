"""The compile cache: a folder of one's own, unless JAX was told of another, that does not grow without end."""

import gc
import os

import jax
import pytest
from jax._src.lru_cache import LRUCache  # what JAX makes of the folder and the bound

from lae_jax.runtime import compile_cache


@pytest.fixture
def untold(monkeypatch, tmp_path):
    """JAX as it is where no folder was named, and a user whose caches lie in tmp_path."""
    before = {name: getattr(jax.config, name) for name in NAMES}
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield
    for name, value in before.items():
        jax.config.update(name, value)


NAMES = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_compilation_cache_max_size",
    "jax_enable_compilation_cache",
)


def test_a_folder_of_the_user_alone_is_taken(untold, tmp_path):
    compile_cache.keep()
    (folder,) = (tmp_path / "lae_jax").iterdir()
    assert jax.config.jax_compilation_cache_dir == str(folder) and folder.stat().st_mode & 0o777 == 0o700
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0


def test_a_folder_that_jax_was_told_of_stays(untold, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    compile_cache.keep()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")


def test_where_no_folder_can_be_made_nothing_is_kept(untold, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    compile_cache.keep()
    assert jax.config.jax_compilation_cache_dir is None


def test_what_was_not_used_for_longest_goes_first(untold, monkeypatch):
    monkeypatch.setattr(compile_cache, "MAX_BYTES", 25)
    folder = compile_cache.folder()
    folder.mkdir(parents=True)
    for age, name in enumerate(("new", "used", "old", "oldest")):
        (folder / name).write_bytes(bytes(10))
        os.utime(folder / name, (1e9 - age, 1e9 - age - 100 * (name == "used")))
    compile_cache.keep()
    assert sorted(path.name for path in folder.iterdir()) == ["new", "used"]


@pytest.mark.parametrize("given", [False, True])
def test_a_bound_holds_in_a_folder_that_was_filled_without_one(untold, tmp_path, given):
    folder = tmp_path / "mine" if given else compile_cache.folder()
    folder.mkdir(parents=True)
    for age, name in enumerate(("new", "old", "oldest")):
        (folder / f"{name}-cache").write_bytes(bytes(10))
        os.utime(folder / f"{name}-cache", (1e9 - age, 1e9 - age))
    if given:
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", 25)
    compile_cache.keep()
    LRUCache(jax.config.jax_compilation_cache_dir, max_size=25).put("newest", bytes(10))
    assert sorted(path.name for path in folder.glob("*-cache")) == ["new-cache", "newest-cache"]


def test_a_bound_of_nothing_turns_the_cache_off(untold):
    jax.config.update("jax_compilation_cache_max_size", 0)
    compile_cache.keep()
    assert not jax.config.jax_enable_compilation_cache and jax.config.jax_compilation_cache_dir is None


def test_the_collector_rests_and_is_as_it_was_afterwards():
    for before in (True, False):
        (gc.enable if before else gc.disable)()
        try:
            with pytest.raises(ZeroDivisionError), compile_cache.without_collector():
                assert not gc.isenabled()
                raise ZeroDivisionError
            assert gc.isenabled() == before
        finally:
            gc.enable()

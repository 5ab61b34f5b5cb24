"""Faster starts: a cache of compiled programs, and tracing without garbage collection."""

import contextlib
import gc
import logging
import os
import pathlib
import sys
from collections.abc import Iterator

import jax

from lae_jax.runtime import cpu

logger = logging.getLogger("lae_jax")

MAX_BYTES = 4_000_000_000  # of the folder; a train step of EfficientNetV2-M on a CPU takes 10 MB


def keep() -> None:
    """Turns on the compile cache of JAX; call it before the first compilation.

    The least recently used entries are removed first. If you set JAX_COMPILATION_CACHE_DIR, or
    JAX_ENABLE_COMPILATION_CACHE=false, this changes nothing. The entries are machine code, so only the user has access
    to the folder, and no data from outside is stored in it. On macOS there is no cache, because jaxlib before 0.10
    crashes there when it loads a program with many kernels.
    """
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache or sys.platform == "darwin":
        return
    top = folder()
    try:
        top.mkdir(mode=0o700, parents=True, exist_ok=True)
        _trim(top, MAX_BYTES)
    except OSError as error:
        logger.info("compiled programs are not cached: %s (%s)", top, error.strerror)
        return
    jax.config.update("jax_compilation_cache_dir", str(top))
    # The many small programs of a start take longer to compile than to store.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Pauses garbage collection: during tracing it scans many objects that live on, which takes a quarter longer."""
    if not gc.isenabled():  # other code turned it off and will turn it on again
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def folder() -> pathlib.Path:
    """Returns `~/.cache/lae_jax/compiled-<instructions>-<cores>`, or the same under XDG_CACHE_HOME.

    A program is compiled for an instruction set and a number of cores, but the cache keys of XLA do not distinguish all
    of them. Several machines may share a home folder, and a process may have fewer cores than the one before it.
    """
    caches = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    return caches / "lae_jax" / f"compiled-{cpu.instructions()}-{cpu.cores()}"


def _trim(top: pathlib.Path, at_most: int) -> None:
    """Removes the least recently used files until the rest has at most `at_most` bytes.

    Other processes may do the same, or read the files: JAX compiles a program that it cannot read.
    """
    found = []
    for path in top.rglob("*"):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        if path.is_file():
            found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    held = 0
    for _, size, path in sorted(found, reverse=True):
        held += size
        if held > at_most:
            path.unlink(missing_ok=True)

"""Quicker starts: what XLA has compiled stays in a folder of the user's, and nothing disturbs the tracing."""

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

MAX_BYTES = 4_000_000_000  # of the folder; a step of EfficientNetV2-M on a CPU has 10 MB


def keep() -> None:
    """Turns JAX's compile cache on, before the first compilation; entries that were not used for longest go first.

    Where JAX was told of a folder (`JAX_COMPILATION_CACHE_DIR`), or that it shall keep nothing
    (`JAX_ENABLE_COMPILATION_CACHE=false`), nothing is changed. What is kept is machine code, so the folder is the
    user's alone and no data from outside comes into it. On macOS nothing is kept: jaxlib before 0.10 dies there when
    it loads a program of many kernels.
    """
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache or sys.platform == "darwin":
        return
    top = folder()
    try:
        top.mkdir(mode=0o700, parents=True, exist_ok=True)
        _trim(top, MAX_BYTES)
    except OSError as error:
        logger.info("nothing that is compiled is kept: %s (%s)", top, error.strerror)
        return
    jax.config.update("jax_compilation_cache_dir", str(top))
    # The many small programs of a start cost more to compile than to keep.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """For tracing, which makes many objects that stay: looking for garbage among them takes it a quarter longer."""
    if not gc.isenabled():  # by somebody else, who turns it on again
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def folder() -> pathlib.Path:
    """`~/.cache/lae_jax/compiled-<instructions>-<cores>`, or under XDG_CACHE_HOME.

    A program is compiled for instructions and a number of cores, and XLA's keys do not tell all of them apart; a home
    may be shared by several machines, and a process may be given fewer cores than the one before it.
    """
    caches = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    return caches / "lae_jax" / f"compiled-{cpu.instructions()}-{cpu.cores()}"


def _trim(top: pathlib.Path, at_most: int) -> None:
    """Removes the files that were not read or written for longest until the others have no more than `at_most` bytes.

    Others may be at it too, or be reading: JAX compiles what it cannot read.
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

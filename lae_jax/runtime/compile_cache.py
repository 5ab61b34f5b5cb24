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

_UNBOUNDED = -1  # JAX's default of JAX_COMPILATION_CACHE_MAX_SIZE


def keep() -> None:
    """Turns on the compile cache of JAX; call it before the first compilation.

    The least recently used entries are removed first. If you set JAX_COMPILATION_CACHE_DIR, or
    JAX_ENABLE_COMPILATION_CACHE=false, the folder is yours, or there is none. JAX_COMPILATION_CACHE_MAX_SIZE bounds
    either folder in bytes, at every write; 0 turns the cache off. The entries are machine code, so only the user has
    access to the folder, and no data from outside is stored in it. On macOS there is no cache, because jaxlib before
    0.10 crashes there when it loads a program with many kernels.
    """
    given, limit = jax.config.jax_compilation_cache_dir, jax.config.jax_compilation_cache_max_size
    if limit == 0:  # JAX would warn about each program that it cannot store
        jax.config.update("jax_enable_compilation_cache", False)
    if not jax.config.jax_enable_compilation_cache or (sys.platform == "darwin" and not given):
        return
    top = pathlib.Path(given) if given else folder()
    try:
        if not given:
            top.mkdir(mode=0o700, parents=True, exist_ok=True)
        if limit != _UNBOUNDED:
            _date(top)
        elif not given:
            _trim(top, MAX_BYTES)
    except OSError as error:
        logger.info("compiled programs are not cached: %s (%s)", top, error.strerror)
        return
    if not given:
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


def _date(top: pathlib.Path) -> None:
    """Writes the time of the last use beside each entry without one.

    JAX writes and needs these files only where the cache is bounded: an entry from before, or one whose process was
    killed in between, would make it store nothing more.
    """
    for path in top.glob("*-cache"):
        time = path.with_name(path.name.removesuffix("-cache") + "-atime")
        with contextlib.suppress(FileNotFoundError):  # another process removed the entry
            if not time.exists():
                status = path.stat()
                time.write_bytes(max(status.st_atime_ns, status.st_mtime_ns).to_bytes(8, "little"))


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

"""Memory that a step on a CPU gives back is kept for the next one."""

import ctypes
import importlib.metadata
import importlib.util
import sys

import jax

# <malloc.h> of glibc.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_MOST = 2**31 - 1


def only_cpus() -> bool:
    """Whether JAX will find CPUs alone, without asking it for its devices: told so, or nothing else is installed."""
    if jax.config.jax_platforms:
        return jax.config.jax_platforms == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and not any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))


def keep_freed() -> bool:
    """Freed memory stays in this process, up to its peak, where steps run on CPUs and glibc allows it; says whether.

    XLA asks for the buffers of every step anew, hundreds of MB at once; glibc takes them from the system and gives them
    back, which cost a third of the CPU time of a step in page faults. Without them a step of efficientnet_v2_tiny takes
    0.65 x the time (250 ms for 385), one of ResNet-18 0.85 x (814 for 955; both batch 64, 64 px, one core). It takes a
    single arena, because the others give back what is empty, and so it must come before anything asks JAX for its
    devices: threads keep the arena that they have. With accelerators the steps' memory is elsewhere, and many threads
    that decode images should not share an arena.
    """
    if not sys.platform.startswith("linux") or not only_cpus():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not every C library has it
    if mallopt is None:
        return False
    return all(mallopt(what, value) for what, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, _MOST)))

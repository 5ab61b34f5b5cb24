"""CPUs: number of cores, identity, and settings that make steps fast.

Apply the settings before anything asks JAX for its devices. JAX is imported only where it is needed, so that a program
can count cores without it. Where two figures are given, they are for a train step on two cores, batch 64, 64 px:
efficientnet_v2_tiny, ResNet-18.
"""

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import sys
from collections.abc import Collection

from lae_jax.runtime.versions import version

_CPUINFO = pathlib.Path("/proc/cpuinfo")
# <malloc.h> of glibc.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_MOST = 2**31 - 1

# Environment in which TensorFlow takes one core for its operations: on some CPUs its sums depend on the threads.
ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}

_FLAG = "xla_cpu_experimental_ynn_fusion_type"
# All that XLA gives to YNNPACK by default but convolutions.
_KINDS = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
# Whose XLA knows this flag and that of `train_options`: one that does not ends the process, and TensorFlow's reads the
# same variable.
_KNOWN = {"jaxlib": ("0.10.", "0.11."), "tensorflow": ("2.21.",)}


def cores() -> int:
    """CPU cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def instructions() -> str:
    """A hash (8 hexadecimal digits) of this CPU's architecture and instruction sets."""
    return hashlib.sha256(" ".join([platform.machine(), *sorted(_said("flags", "Features"))]).encode()).hexdigest()[:8]


def name() -> str:
    """The CPU's model and instruction sets. On two machines whose names differ, sums may differ in their last bits."""
    return f"{min(_said('model name'), default=platform.machine())} ({instructions()})"


def _said(*fields: str) -> set[str]:
    """Values of these fields in /proc/cpuinfo; an empty set if the file does not exist."""
    if not _CPUINFO.exists():
        return set()
    lines = (line.partition(":") for line in _CPUINFO.read_text().splitlines())
    return {value.strip() for field, _, value in lines if field.strip() in fields}


def prepare() -> None:
    """Where steps will run on CPUs: `keep_freed` and `spread_convolutions`. With accelerators it does nothing.

    Their steps' memory is elsewhere, and there many threads that decode images should not share an arena.
    """
    if only_cpus():
        keep_freed()
        spread_convolutions()


def only_cpus() -> bool:
    """Whether JAX will find CPUs alone, without asking it for its devices: told so, or nothing else is installed."""
    import jax

    if jax.config.jax_platforms:
        return jax.config.jax_platforms == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and not any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))


def keep_freed() -> bool:
    """Freed memory stays in this process, up to its peak; returns whether the C library could be told so (glibc).

    XLA asks for the buffers of every step anew, hundreds of MB at once; glibc takes them from the system and gives them
    back, and the page faults were a third of a step's CPU time: without them it is 0.65 and 0.85 of what it was (250 ms
    for 385, 814 for 955). It takes a single arena, because the others give back what is empty. JAX's threads share
    those that exist already, so it must come before the first one: pyarrow starts a thread when it is imported.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if mallopt is None:
        return False
    return all(mallopt(what, value) for what, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, _MOST)))


def spread_convolutions() -> bool:
    """Has XLA compute convolutions by Eigen, which spreads them over the cores; returns whether it knows how.

    jaxlib 0.10 and 0.11 give them to YNNPACK, as fast on one core, which leaves the second one idle: steps take 0.85
    and 0.81 of the time (160 ms for 188, 403 for 496), inference of EfficientNetV2-M at 224 px 0.88. A flag that is in
    XLA_FLAGS already stays.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _FLAG in flags or not all(map(_knows, _KNOWN)):
        return False
    os.environ["XLA_FLAGS"] = f"{flags} --{_FLAG}={_KINDS}".strip()
    return True


def quick_compilation() -> str:
    """Flags with which XLA compiles quickly what then runs slowly: for programs that run a few times on tiny inputs."""
    flags = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
    if all(map(_knows, _KNOWN)):
        flags.append("--xla_cpu_use_fusion_emitters=false")  # a third of the time
    return " ".join(flags)


def train_options(trains: Collection[str]) -> dict[str, bool]:
    """What a step that trains these parts of a model is to be compiled with on CPUs, as options of `map_train`.

    For one that trains the backbone the older code generator for what XLA fuses: it takes 0.85 and 0.95 of the time
    (0.88 with EfficientNetV2-M, which then takes 1.6 times as long to compile). A forward pass would take 1.3 times as
    long, so it is no flag of the process.
    """
    import jax

    if "backbone" not in trains or jax.default_backend() != "cpu" or not _knows("jaxlib"):
        return {}
    return {"xla_cpu_use_fusion_emitters": False}


def _knows(package: str) -> bool:
    """Whether the package's XLA knows the flags, or there is no such package."""
    installed = version(package)
    return package != "jaxlib" if installed is None else installed.startswith(_KNOWN[package])

"""CPUs: number of cores, identity, settings that make steps fast; accelerators that JAX cannot use.

Apply the settings before anything asks JAX for its devices. JAX is imported only inside functions that need it, so that
a program can count cores without it. A pair of figures is for a train step on two cores, batch 64, 64 px:
efficientnet_v2_tiny and ResNet-18.
"""

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import pathlib
import platform
import sys

from lae_jax.runtime.versions import version

logger = logging.getLogger("lae_jax")

_GOOGLE = "0x1ae0"  # vendor of TPUs on the PCI bus
_CPUINFO = pathlib.Path("/proc/cpuinfo")
# From <malloc.h> of glibc.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_MOST = 2**31 - 1

_ONE_THREAD = "xla_cpu_multi_thread_eigen"
_FLAG = "xla_cpu_experimental_ynn_fusion_type"
# Everything that XLA passes to YNNPACK by default, except convolutions.
_KINDS = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
# Versions whose XLA knows this flag and that of `quick_compilation`. Any other XLA ends the process at an unknown flag,
# and the XLA of TensorFlow reads the same variable.
_KNOWN = {"jaxlib": ("0.10.", "0.11."), "tensorflow": ("2.21.",)}


def cores() -> int:
    """Returns the number of CPU cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def instructions() -> str:
    """Returns a hash (8 hexadecimal digits) of this CPU's architecture and instruction sets."""
    return hashlib.sha256(" ".join([platform.machine(), *sorted(_said("flags", "Features"))]).encode()).hexdigest()[:8]


def name() -> str:
    """Returns the model and instruction sets of this CPU. Where they differ, sums may differ in their last bits."""
    return f"{min(_said('model name'), default=platform.machine())} ({instructions()})"


def _said(*fields: str) -> set[str]:
    """Returns values of these fields in /proc/cpuinfo; an empty set if the file does not exist."""
    if not _CPUINFO.exists():
        return set()
    lines = (line.partition(":") for line in _CPUINFO.read_text().splitlines())
    return {value.strip() for field, _, value in lines if field.strip() in fields}


def prepare() -> None:
    """Applies `keep_freed` and `spread_convolutions` if steps will run on CPUs.

    With accelerators it does nothing: the memory of steps is on the device, and the many threads that decode images
    should not share an arena.
    """
    if only_cpus():
        keep_freed()
        spread_convolutions()


def only_cpus() -> bool:
    """Whether JAX will find only CPUs, by its settings and the installed plugins. Does not ask it for its devices."""
    import jax

    if jax.config.jax_platforms:
        return jax.config.jax_platforms == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and not any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))


def accelerator(root: pathlib.Path = pathlib.Path("/")) -> str:
    """Returns 'cuda' or 'tpu', which are also the names of the extras for them; '' without an accelerator.

    Args:
      root: Root of the file system.
    """
    if any(root.glob("proc/driver/nvidia/gpus/*")) or any(root.glob("dev/nvidia[0-9]*")):
        return "cuda"
    # Programs on a TPU host reach the chips by /dev/accel0 or, on newer ones, by VFIO, which other devices use too.
    if any(root.glob("dev/accel[0-9]*")):
        return "tpu"
    vendors = (path.read_text().strip() for path in root.glob("sys/bus/pci/devices/*/vendor"))
    return "tpu" if any(root.glob("dev/vfio/[0-9]*")) and _GOOGLE in vendors else ""


def warn_of_unused_accelerator(has_plugin: bool) -> None:
    """Warns that the machine has an accelerator, but JAX runs on the CPU, unless JAX_PLATFORMS asks for the CPU.

    Args:
      has_plugin: Whether JAX's plugin for an accelerator is installed.
    """
    import jax

    kind = accelerator()
    if not kind or jax.config.jax_platforms == "cpu":
        return
    name, tool = ("an NVIDIA GPU", "nvidia-smi") if kind == "cuda" else ("a TPU", "ls /dev/accel* /dev/vfio")
    what = f"JAX could not start on it: check that the driver works ({tool})"
    if not has_plugin:
        what = f"this JAX has no support for it: pip install 'lae-jax[{kind}]'"
    logger.warning(
        "!!! %s IS NOT USED: this machine has %s, but %s. Everything runs on the CPU, which is 10 to 100 times"
        " slower. To run on the CPU without this warning, set JAX_PLATFORMS=cpu",
        "THE GPU" if kind == "cuda" else "THE TPU",
        name,
        what,
    )


def keep_freed() -> bool:
    """Makes this process keep freed memory, up to its peak.

    XLA allocates the buffers of every step again, hundreds of MB at once. By default glibc takes them from the system
    and returns them, and the page faults take a third of a step's CPU time. Without them a step takes 0.65 and 0.85 of
    the time (250 ms instead of 385, 814 instead of 955). A single arena is used, because further arenas return empty
    memory. Threads of JAX share arenas that already exist, so call this before the first thread starts; pyarrow starts
    one when it is imported.

    Returns:
      Whether the C library accepted the settings (glibc does).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if mallopt is None:
        return False
    return all(mallopt(what, value) for what, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, _MOST)))


def return_freed() -> bool:
    """Returns freed memory to the system once, also where `keep_freed` keeps it.

    It takes some milliseconds, in which no thread can allocate.

    Returns:
      Whether the C library can do so (glibc can).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is None:
        return False
    trim(0)
    return True


def spread_convolutions() -> bool:
    """Makes XLA compute convolutions with Eigen, which uses all cores.

    jaxlib 0.10 and 0.11 use YNNPACK, which is as fast on one core but leaves a second core idle. With Eigen, steps take
    0.85 and 0.81 of the time (160 ms instead of 188, 403 instead of 496), and inference with EfficientNetV2-M at 224 px
    takes 0.88. If the flag is in XLA_FLAGS already, it stays.

    Returns:
      Whether the flag was set: XLA knows it and it was not set before.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _FLAG in flags or not all(map(_knows, _KNOWN)):
        return False
    os.environ["XLA_FLAGS"] = f"{flags} --{_FLAG}={_KINDS}".strip()
    return True


def one_thread() -> None:
    """Makes JAX run on one thread of the CPU, in this process and those that it starts. Call it before JAX starts.

    Sums may depend on the number of threads. A program that makes the same bytes with any number of processes uses one
    thread in each; without accelerators, which the processes would have to share.
    """
    import jax

    jax.config.update("jax_platforms", "cpu")
    if _ONE_THREAD not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{_ONE_THREAD}=false".strip()


def quick_compilation() -> str:
    """Returns XLA flags for fast compilation of slow code, for programs that run a few times on tiny inputs."""
    flags = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
    if all(map(_knows, _KNOWN)):
        flags.append("--xla_cpu_use_fusion_emitters=false")  # a third of the time
    return " ".join(flags)


def _knows(package: str) -> bool:
    """Whether the XLA of a package knows the flags. TensorFlow may be missing."""
    installed = version(package)
    return package != "jaxlib" if installed is None else installed.startswith(_KNOWN[package])

"""Start and end of every program: its log, its errors, its devices."""

import gc
import io
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable

from tqdm.contrib.logging import logging_redirect_tqdm

from lae_jax.runtime import console, foreign
from lae_jax.runtime.errors import Ended, InputError

_OFTEN_ENOUGH = 10_000  # objects between two collections, of a program that loads, works and ends
_DEFAULT = gc.get_threshold()
_LESS_MEMORY = (
    "Use a smaller batch (--config.batch_size, or --batch-size), in training also --config.accumulate and"
    " --config.model.remat=True, or a smaller model (configs/small.py is for CPUs)"
)


def program(
    main: Callable[[], None], leave: Callable[[int], None] = sys.exit, *, interrupt_at_once: bool = False
) -> None:
    """Runs a program with its log turned on. An `Ended` error becomes one line on standard error.

    Args:
      main: The program.
      leave: Ends the process with a status other than 0.
      interrupt_at_once: Ctrl-C ends the process at once, even where a callback of JAX would swallow the exception.
    """
    # A shell may have started it with Ctrl-C ignored: that stays.
    if signal.getsignal(signal.SIGINT) in (signal.SIG_DFL, signal.default_int_handler):
        signal.signal(signal.SIGINT, signal.SIG_DFL if interrupt_at_once else signal.default_int_handler)
    # Importing and tracing create many objects that live on. Python would scan all of them repeatedly, which takes a
    # sixth of the time to import JAX and TensorFlow.
    gc.set_threshold(_OFTEN_ENOUGH)
    console.setup_logging()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal with another encoding gets an escape for a character that it cannot show, not a traceback.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with logging_redirect_tqdm(loggers=[console.logger]):
            main()
        if sys.stdout is not None:  # as after `>&-`
            sys.stdout.flush()
        return
    except Ended as end:
        print(foreign.shown(f"{end.label}: {end}"), file=sys.stderr)
        status = end.status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except Exception as error:
        status = 1
        if isinstance(error, BrokenPipeError) and _reader_left():
            # What is still buffered must not raise again at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            status = 128 + signal.SIGPIPE
        elif "RESOURCE_EXHAUSTED" in str(error):  # of XLA
            told = str(error).splitlines()[0].rstrip(".")
            print(foreign.shown(f"error: {told}. {_LESS_MEMORY}"), file=sys.stderr)
        else:
            print(foreign.shown_lines(traceback.format_exc()), end="", file=sys.stderr)
    leave(status)


def _reader_left() -> bool:
    """Whether nobody reads the standard output any longer, as after `| head`."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def stay() -> None:
    """Prepares a loaded program that answers requests for long: garbage is collected as often as Python does it.

    What was loaded is not garbage, so it is not scanned again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_DEFAULT)


def devices(simulated: int = 0, deterministic: bool = False) -> None:
    """Sets up JAX for this process. Call it when the flags are known, before anything else is imported.

    Later calls do not change the devices: JAX keeps those that it found when it was first asked for them. pyarrow must
    be imported later, because it starts a thread when it is imported (`cpu.keep_freed`).

    Args:
      simulated: Number of simulated devices on a CPU; 0: the devices of the platform.
      deterministic: Whether GPUs repeat bit for bit, which makes them slower.

    Raises:
      InputError: `simulated` is negative.
    """
    if simulated < 0:
        raise InputError(f"--devices is {simulated}: it must be at least 0")
    from lae_jax.runtime import compile_cache, cpu, parallel

    if deterministic:
        parallel.be_deterministic()
    if simulated:
        parallel.simulate_devices(simulated)
    if cpu.only_cpus():
        cpu.warn_of_unused_accelerator(has_plugin=False)
    cpu.prepare()
    compile_cache.keep()

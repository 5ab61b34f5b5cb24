"""Start and end of every program: its log, its errors, its devices."""

import contextlib
import gc
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable

from tqdm.contrib.logging import logging_redirect_tqdm

from lae_jax.runtime import console, foreign
from lae_jax.runtime.errors import Ended, InputError, save_failed

_STDOUT, _OUTPUT = 1, "the standard output"
LONGEST = 10_000  # characters of a message: the names in it may be a stranger's
_OFTEN_ENOUGH = 10_000  # objects between two collections, of a program that loads, works and ends
_DEFAULT = gc.get_threshold()
_LESS_MEMORY = (
    "Use a smaller batch (--config.batch_size, --batch-size, or --max-batch of a server), in training also"
    " --config.accumulate and --config.model.remat=True, or a smaller model (configs/small.py is for CPUs)"
)


is_program = False  # whether this process was started as one of the programs, and not by a script or a notebook


def program(
    main: Callable[[], None], leave: Callable[[int], None] = sys.exit, *, interrupt_at_once: bool = False
) -> None:
    """Runs a program with its log turned on. An `Ended` error becomes one line on standard error.

    So does an error of a disk (`errors.save_failed`). If one error was being handled when another one occurred, the
    first one decides the status.

    Args:
      main: The program.
      leave: Ends the process with a status other than 0.
      interrupt_at_once: Ctrl-C ends the process at once, even where a callback of JAX would swallow the exception.
    """
    global is_program
    is_program = True
    # A shell may have started it with Ctrl-C ignored: that stays.
    if signal.getsignal(signal.SIGINT) in (signal.SIG_DFL, signal.default_int_handler):
        signal.signal(signal.SIGINT, signal.SIG_DFL if interrupt_at_once else signal.default_int_handler)
    # Importing and tracing create many objects that live on. Python would scan all of them repeatedly, which takes a
    # sixth of the time to import JAX and TensorFlow.
    gc.set_threshold(_OFTEN_ENOUGH)
    _open_closed_streams()
    console.setup_logging()
    if sys.stdout is sys.__stdout__:  # a notebook or a test may have replaced it
        sys.stdout.flush()
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(_Output(_STDOUT, "w", closefd=False)),
            encoding=sys.stdout.encoding,
            # A terminal with another encoding gets an escape for a character that it cannot show, not a traceback.
            errors="backslashreplace",
            line_buffering=sys.stdout.line_buffering,
            write_through=sys.stdout.write_through,
        )
    status = 0
    try:
        with logging_redirect_tqdm(loggers=[console.logger]):
            main()
        sys.stdout.flush()
    except SystemExit:
        raise
    except BaseException as error:
        status = _told(error)
    finally:
        for stream in (sys.stdout, sys.stderr):
            _drop_rest(stream)
    if status:
        leave(status)


class _Output(io.FileIO):
    """The standard output, which its errors name: another pipe may break too."""

    def write(self, content: bytes) -> int | None:
        try:
            return super().write(content)
        except OSError as error:
            error.filename = _OUTPUT
            raise


def _open_closed_streams() -> None:
    """Opens closed standard streams (`>&-`) on /dev/null: the next file would get the number of the stream."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))


def _first(error: BaseException) -> BaseException:
    """Returns the error that was being handled when `error` occurred, if the program has a sentence for it."""
    found, one = error, error
    while one.__context__ is not None and not one.__suppress_context__:
        one = one.__context__
        if isinstance(one, (Ended, KeyboardInterrupt)):
            found = one
    return found


def _told(last: BaseException) -> int:
    """Says on standard error how a program ended, and returns the status."""
    error = _first(last)
    if error is not last:
        _say(foreign.shown(f"while the program ended, this failed as well: {type(last).__name__}: {last}"))
    if isinstance(error, KeyboardInterrupt):
        _say("interrupted")
        return 130
    if isinstance(error, BrokenPipeError) and error.filename == _OUTPUT:
        return 128 + signal.SIGPIPE
    if not isinstance(error, Ended):
        error = save_failed(error) or error
    if isinstance(error, Ended):
        _say(foreign.shown(f"{error.label}: {error}", LONGEST))
        return error.status
    if "RESOURCE_EXHAUSTED" in str(error):  # of XLA
        told = str(error).splitlines()[0].rstrip(".")
        _say(foreign.shown(f"error: {told}. {_LESS_MEMORY}"))
    else:
        _say(foreign.shown_lines("".join(traceback.format_exception(error)).rstrip()))
    return 1


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _drop_rest(stream: io.TextIOBase) -> None:
    """Writes what is buffered; where that fails, drops it, so that it does not fail again when Python ends."""
    try:
        stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def stay() -> None:
    """Prepares a loaded program that answers requests for long: garbage is collected as often as Python does it.

    What was loaded is not garbage, so it is not scanned again. Call it again when something else was loaded.
    """
    gc.unfreeze()
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

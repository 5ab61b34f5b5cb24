"""How every program begins and ends: its log, its errors, its devices."""

import gc
import io
import sys
import traceback
from collections.abc import Callable

from tqdm.contrib.logging import logging_redirect_tqdm

from lae_jax.runtime import console
from lae_jax.runtime.errors import Ended


def program(main: Callable[[], None], leave: Callable[[int], None] = sys.exit) -> None:
    """Runs a program's main: log lines on; an end with a status of its own is one line on standard error.

    Args:
      main: The program, without its name.
      leave: Ends the process with a status other than 0.
    """
    # Importing and tracing make many objects that live on. Python would look at all of them again and again, which is a
    # sixth of the time in which JAX and TensorFlow are imported.
    gc.set_threshold(10_000)
    console.setup_logging()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal of another encoding gets an escape for what it cannot show, and not a traceback.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with logging_redirect_tqdm(loggers=[console.logger]):
            main()
        return
    except Ended as end:
        print(f"{end.label}: {end}", file=sys.stderr)
        status = end.status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except Exception:
        traceback.print_exc()
        status = 1
    leave(status)


def devices(simulated: int = 0, deterministic: bool = False) -> None:
    """Sets JAX up for this process. Call it once the flags are known and before anything else is imported.

    Later calls in this process change nothing that JAX has settled already: its devices are those of the first time
    that it was asked for them. pyarrow starts a thread when it is imported, so it must come later (`cpu.keep_freed`).

    Args:
      simulated: Number of simulated devices on a CPU; 0: what the platform has.
      deterministic: Let GPUs repeat bit for bit, which costs time there.
    """
    from lae_jax.runtime import compile_cache, cpu, parallel

    if deterministic:
        parallel.be_deterministic()
    if simulated:
        parallel.simulate_devices(simulated)
    cpu.prepare()
    compile_cache.keep()

"""Long-tailed Age Estimation (LAE) in JAX and Flax."""

import os as _os
import sys as _sys

__version__ = "0.1.0"


def _keep_current_folder_out() -> None:
    """Takes the current folder off the path of imports, here and in processes that this one starts.

    `python -m` puts it there, and it may hold a stranger's data with a `json.py` in it. It stays if this package lies
    in it, or if PYTHONPATH names it.
    """
    try:
        here = _os.getcwd()
    except OSError:  # it was removed
        here = ""
    named = [name for name in _os.environ.get("PYTHONPATH", "").split(_os.pathsep) if name]
    wanted = [_os.path.dirname(_os.path.dirname(__file__)), *named]
    if here and any(_os.path.realpath(name) == _os.path.realpath(here) for name in wanted):
        return
    _sys.path[:] = [name for name in _sys.path if name not in ("", here)]
    _os.environ["PYTHONSAFEPATH"] = "1"


# Only for a program of this package (`python -m lae_jax.audit`, `lae-jax audit`): the path of other programs is theirs.
if _sys.argv[:1] and _sys.argv[0].rpartition("/")[2] in ("-m", "lae-jax"):
    _keep_current_folder_out()  # before anything that Python has not loaded itself is imported
    import signal as _signal

    # While it is imported, Ctrl-C ends it without a traceback. `runtime.start.program` sets what follows.
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

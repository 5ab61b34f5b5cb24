"""Long-tailed Age Estimation (LAE) in JAX and Flax."""

import signal as _signal
import sys as _sys

__version__ = "0.1.0"

# While a program of this package is imported (`python -m lae_jax.audit`, `lae-jax audit`), Ctrl-C ends it without a
# traceback. `runtime.start.program` sets what follows.
if _sys.argv[:1] and _sys.argv[0].rpartition("/")[2] in ("-m", "lae-jax"):
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

"""TensorFlow as this package uses it: on the CPU alone, and without the chatter of its start. Import `tf` from here."""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator

# What its C++ writes to standard error while it starts, whatever the log level is.
_CHATTER = re.compile(rb"^(WARNING: All log messages before absl|[IW]\d{4} |E\d{4} .*cuInit)")


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
    with tempfile.TemporaryFile() as caught:
        stderr = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            caught.seek(0)
            for line in caught:
                if not _CHATTER.match(line):
                    os.write(2, line)


with _without_chatter():
    import tensorflow as tf

    # It would take the accelerators' memory from JAX; later is too late, once an op has run.
    tf.config.set_visible_devices([], "GPU")

__all__ = ["tf"]

"""TensorFlow on the CPU alone, without the messages of its start. Import `tf` from here."""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator

# Lines that its C++ code writes to standard error at start, at any log level.
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

    # TensorFlow would take the accelerators' memory from JAX. Once an op has run, this can no longer be set.
    tf.config.set_visible_devices([], "GPU")

__all__ = ["tf"]

"""TensorFlow on the CPU alone, without the messages of its start. Import `tf` from here."""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator

# Lines that its C++ code writes to standard error at start, at any log level.
_CHATTER = re.compile(rb"^(WARNING: All log messages before absl|[IW]\d{4} |E\d{4} .*cuInit)")

_OLD_KERAS = "TF_USE_LEGACY_KERAS"


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


@contextlib.contextmanager
def _without_keras() -> Iterator[None]:
    """Keeps TensorFlow from loading Keras, a quarter of its start. `tf.keras` still loads it when it is used."""
    before = os.environ.get(_OLD_KERAS)
    os.environ[_OLD_KERAS] = "1"  # TensorFlow then tries to load the package tf_keras, and goes on without
    try:
        yield
    finally:
        del os.environ[_OLD_KERAS]
        if before is not None:
            os.environ[_OLD_KERAS] = before


with _without_chatter(), _without_keras():
    import tensorflow as tf

    # TensorFlow would take the accelerators' memory from JAX. Once an op has run, this can no longer be set.
    tf.config.set_visible_devices([], "GPU")

__all__ = ["tf"]

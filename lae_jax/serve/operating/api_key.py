"""Keys of clients: read from a file or the environment, never from the command line, which other users can see."""

import hashlib
import hmac
import os
import re
from collections.abc import Collection, Iterable

from lae_jax.runtime import files
from lae_jax.runtime.errors import InputError

VARIABLE = "LAE_JAX_API_KEY"
SHORTEST = 16  # characters: a shorter key can be guessed
_KEY = re.compile(r"[!-~]+")  # what a header can carry
# Paths that need no key: whether the server runs, and files of this package, which tell nothing about the model.
_OPEN = ("/", "/docs", "/healthz", "/openapi.json", "/readyz")
_OPEN_FOLDERS = ("/static/", "/swagger/")


def given(path: str | os.PathLike | None) -> tuple[str, ...]:
    """Returns the keys of a file, a line each, or else the one in the environment variable; () for none.

    Several keys are for a change of key: clients change while both are good.

    Raises:
      InputError: The file cannot be read or has no key, a key cannot be used, or both places have keys.
    """
    variable = os.environ.get(VARIABLE)
    if path is None and variable is None:
        return ()
    if path is not None and variable is not None:
        raise InputError(f"--key-file and the environment variable {VARIABLE} both give keys: use one of them")
    where = VARIABLE if path is None else f"--key-file {path}"
    keys = (
        [variable]
        if path is None
        else [line.strip() for line in files.read_text(path, "write it again").splitlines() if line.strip()]
    )
    if not keys:
        raise InputError(f"{where}: the file has no key: write one key per line")
    for number, key in enumerate(keys, 1):
        if len(key) < SHORTEST or not _KEY.fullmatch(key):
            # The message does not show the key.
            raise InputError(
                f"{where}: key {number} must have at least {SHORTEST} printable ASCII characters without spaces:"
                " `openssl rand -hex 32` makes one"
            )
    return tuple(keys)


def is_open(path: str) -> bool:
    """Whether a path needs no key."""
    return path in _OPEN or path.startswith(_OPEN_FOLDERS)


class Keys:
    """The keys that are good. Only their hashes are kept."""

    def __init__(self, keys: Collection[str]):
        self._hashes = [_hash(key.encode()) for key in keys]

    def fit(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a request has a good key: one header `Authorization: Bearer KEY`.

        The time that it takes depends on none of the keys, because hashes of one length are compared, all of them.
        """
        values = [value for name, value in headers if name == b"authorization"]
        if len(values) != 1:
            return False
        scheme, _, key = values[0].strip().partition(b" ")
        sent = _hash(key.strip())
        good = [hmac.compare_digest(sent, one) for one in self._hashes]
        return scheme.lower() == b"bearer" and any(good)


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()

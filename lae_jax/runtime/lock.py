"""A lock that gives a folder one writer and ends with its process.

filelock would suffice for a local disk. But on a file system without locks it uses a file that stays when its process
dies on another machine, so no process could continue. It also does not say who holds the lock.
"""

import contextlib
import errno
import fcntl
import logging
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator

from etils import epath

from lae_jax.runtime import files
from lae_jax.runtime.errors import FolderInUse, InputError, save_failed, saving

logger = logging.getLogger("lae_jax")

NAME = "lock"
# In a bucket, or on a file system without locks, nothing is released when a process dies. The owner therefore writes a
# new stamp at this interval, and a process that finds the stamp unchanged for several intervals takes over the folder.
STAMP_SECONDS = 20.0


def _owner() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _in_use(folder: epath.Path, owner: str) -> FolderInUse:
    return FolderInUse(f"{folder} is in use by {owner}: wait for it, end it, or choose another --config.workdir")


@contextlib.contextmanager
def hold(folder: epath.Path) -> Iterator[None]:
    """Creates a folder and holds its lock; removes a folder that it created and that stays empty.

    Raises:
      FolderInUse: Another process holds the lock.
      InputError: The folder cannot be created.
    """
    folder = epath.Path(folder)
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise save_failed(error) or InputError(
            f"the folder {folder} cannot be created ({error.strerror}): choose another --config.workdir"
        ) from error
    try:
        handle = None if files.is_remote(folder) else _lock(folder)
        with _stamped(folder) if handle is None else _locked(folder, handle):
            yield
    finally:
        if made and not files.is_remote(folder):
            with contextlib.suppress(OSError):
                os.rmdir(folder)


def _lock(folder: epath.Path) -> int | None:
    """Returns the handle of the locked file; None if the file system has no locks (Lustre without `-o flock`)."""
    path = os.fspath(folder / NAME)
    while True:
        with saving(folder):
            handle = _opened(path)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(handle, 200).decode(errors="replace") or "another process"
            os.close(handle)
            raise _in_use(folder, owner) from None
        except OSError:
            os.close(handle)
            if not os.path.getsize(path):
                os.unlink(path)
            return None
        # Its last owner may have removed the file between the two calls. Then the lock is on a deleted file.
        if os.path.exists(path) and os.path.samestat(os.fstat(handle), os.stat(path)):
            return handle
        os.close(handle)


def _opened(path: str) -> int:
    """Opens or makes the file; what a link leads to would be emptied, and a pipe or a device cannot be."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
    else:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            return handle
        os.close(handle)
    raise InputError(f"{path} is not a file: remove it")


@contextlib.contextmanager
def _locked(folder: epath.Path, handle: int) -> Iterator[None]:
    try:
        with saving(folder):
            os.truncate(handle, 0)
            os.write(handle, _owner().encode())
        yield
    finally:
        for end in (lambda: os.unlink(folder / NAME), lambda: os.close(handle)):
            with contextlib.suppress(OSError):
                end()


@contextlib.contextmanager
def _stamped(folder: epath.Path, seconds: float = STAMP_SECONDS) -> Iterator[None]:
    path = folder / NAME
    if path.exists():
        before = path.read_bytes()
        time.sleep(3 * seconds)
        if path.exists() and path.read_bytes() != before:
            raise _in_use(folder, before[:200].decode(errors="replace").partition(",")[0])
    ended = threading.Event()

    def stamp(count: int) -> None:
        path.write_text(f"{_owner()}, stamp {count}")

    def go_on() -> None:
        count = 0
        while not ended.wait(seconds):
            count += 1
            try:
                stamp(count)
            except OSError as error:
                logger.warning("%s could not be written (%s): another process may take over the folder", path, error)

    stamp(0)
    writer = threading.Thread(target=go_on, daemon=True)
    writer.start()
    try:
        yield
    finally:
        ended.set()
        writer.join()
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)

"""One writer for a folder, and none after its death."""

import errno
import multiprocessing
import os
import signal

import pytest
from etils import epath

from lae_jax.runtime import lock
from lae_jax.runtime.errors import FolderInUse, InputError


def _hold(folder, ready):
    with lock.hold(folder):
        ready.set()
        signal.pause()


def test_a_second_writer_is_refused_until_the_first_ends_however_it_ends(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, folder = context.Event(), tmp_path / "run"
    first = context.Process(target=_hold, args=(str(folder), ready))
    first.start()
    assert ready.wait(30)
    with pytest.raises(FolderInUse, match=f"process {first.pid} on "), lock.hold(folder):
        pass
    first.kill()
    first.join()
    with lock.hold(folder):
        assert (folder / lock.NAME).read_text().startswith(f"process {os.getpid()}")


def test_a_folder_that_stays_empty_is_removed_and_another_is_not(tmp_path):
    with lock.hold(tmp_path / "empty"):
        pass
    with lock.hold(tmp_path / "used"):
        (tmp_path / "used" / "config.json").write_text("{}")
    (tmp_path / "old").mkdir()
    with lock.hold(tmp_path / "old"):
        pass
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.json", "old", "used"]


def test_where_the_file_system_knows_no_locks_there_are_stamps(tmp_path, monkeypatch):
    def flock(handle, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with lock.hold(tmp_path / "run"):
        assert "stamp 0" in (tmp_path / "run" / lock.NAME).read_text()
    assert not (tmp_path / "run").exists()


def test_stamps_in_a_bucket(tmp_path):
    folder = epath.Path(tmp_path)
    with lock._stamped(folder, seconds=0.2), pytest.raises(FolderInUse), lock._stamped(folder, seconds=0.6):
        pass
    assert not (folder / lock.NAME).exists()
    # A stamp that nobody writes any more is taken over.
    (folder / lock.NAME).write_text("process 1 on another host, stamp 7")
    with lock._stamped(folder, seconds=0.05):
        assert (folder / lock.NAME).read_text().startswith(f"process {os.getpid()}")


def test_what_stands_in_place_of_the_lock_is_neither_emptied_nor_waited_for(tmp_path):
    other, path = tmp_path / "other", tmp_path / "run" / "lock"
    other.write_text("kept")
    path.parent.mkdir()
    for make in (lambda: path.symlink_to(other), lambda: path.symlink_to("/dev/zero"), lambda: os.mkfifo(path)):
        make()
        with pytest.raises(InputError, match=r"run/lock is not a file: remove it"), lock.hold(path.parent):
            pytest.fail("locked")
        path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match=r"run/lock is not a file: remove it"), lock.hold(path.parent):
        pytest.fail("locked")
    assert other.read_text() == "kept"

"""Seals: every change of a file is noticed; through Python's files, and through TensorFlow's as in a bucket."""

import dataclasses
import os
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from etils.epath import backend, gpath

from lae_jax.configs import common
from lae_jax.runtime import checkpoints, checksums, files
from lae_jax.runtime.errors import InputError

META = {
    "step": 7,
    "stage": "represent",
    "model": "resnet18",
    "num_outputs": 101,
    "scores": None,
    "selected_by": None,
    "selected": 1.0,
    "age_weights": None,
    "constants": {},
    "config": common.get_config().to_dict(),
    "crop": {"align": "none", "detector": "unknown"},
    "data": "data/faces",
    "data_hash": "0" * 64,
}


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path, monkeypatch):
    """A folder of three files and their checksums."""
    if request.param == "bucket":
        monkeypatch.setattr(gpath._GPath, "_backend", property(lambda self: backend.tf_backend))
        monkeypatch.setattr(files, "is_remote", lambda path: True)
    folder = epath.Path(tmp_path) / "checkpoints" / "7"
    (folder / "state").mkdir(parents=True)
    (folder / "meta").write_text("{}")
    (folder / "state" / "a").write_bytes(bytes(range(256)) * 8)
    (folder / "state" / "b").write_bytes(b"b" * 100)
    checksums.write(folder)
    return folder


def test_a_folder_whose_checksums_are_right_is_whole(folder):
    assert checksums.has(folder) and checksums.damage(folder) is None


def littered(*folders):
    """Leaves in each folder what systems, file managers, editors and notebooks leave where somebody looked."""
    for folder in folders:
        for name in (".DS_Store", "._meta", "Thumbs.db", "desktop.ini", "meta~", ".meta.swp", ".nfs0001", "#meta#"):
            (folder / name).write_text("litter")
        for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir", "lost+found"):
            (folder / name).mkdir()
            (folder / name / "meta").write_text("litter")


def test_a_checkpoint_that_was_looked_at_is_whole(folder):
    littered(folder.parent, folder, folder / "state")
    assert checksums.damage(folder) is None
    assert checkpoints.recover(folder.parent.parent) == 7
    assert sorted(checksums.entries(folder)) == ["meta", "state/a", "state/b"]


def test_a_checkpoint_that_was_looked_at_is_read(tmp_path):
    state = {"params": {"a": np.arange(4.0)}, "batch_stats": {"a": np.ones(2)}}
    state = dataclasses.make_dataclass("State", state)(**state)
    jax.tree_util.register_dataclass(type(state))
    with checkpoints.Checkpoints(tmp_path) as saved:
        saved.save(state, META)
        saved.wait()
    top = tmp_path / "checkpoints"
    littered(tmp_path, top, top / "7", top / "7" / "state", top / "7" / "meta")
    found = checkpoints.load_run(tmp_path)
    assert found.step == 7 and found.meta["selected"] == 1
    np.testing.assert_array_equal(found.variables["params"]["a"], np.arange(4.0))
    with checkpoints.Checkpoints(tmp_path) as saved:
        np.testing.assert_array_equal(saved.restore(7, state).batch_stats["a"], np.ones(2))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda f: (f / "state" / "a").write_bytes(bytes(range(255)) * 8 + bytes(8)), "state/a was changed"),
        (lambda f: (f / "state" / "b").write_bytes(b"b" * 99), "state/b has 99 bytes, not 100"),
        (lambda f: (f / "meta").unlink(), "meta is missing"),
        (lambda f: (f / "state" / "c").write_text("c"), "state/c does not belong there"),
        (lambda f: (f / "state" / "Thumbs").write_text("c"), "state/Thumbs does not belong there"),
        (lambda f: (f / checksums.NAME).write_text("{"), "sha256.json cannot be read"),
        (lambda f: (f / checksums.NAME).write_text("[]"), "sha256.json cannot be read"),
    ],
)
def test_a_change_is_named(folder, change, named):
    change(folder)
    assert named in checksums.damage(folder)


def saved(workdir, *steps):
    for step in steps:
        (workdir / "checkpoints" / str(step)).mkdir(parents=True)
        (workdir / "checkpoints" / str(step) / "meta").write_text("{}")
        checksums.write(workdir / "checkpoints" / str(step))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_recovering_checks_all_and_sets_aside_what_is_damaged_or_has_no_checksums(folder):
    workdir = folder.parent.parent
    saved(workdir, 3, 9)
    (workdir / "checkpoints" / "11").mkdir()
    (workdir / "checkpoints" / "11" / "half").write_text("")
    (workdir / "checkpoints" / "3" / "meta").write_text("")
    assert checkpoints.recover(workdir) == 9
    assert names(workdir / "checkpoints") == ["7", "9"] and names(workdir / "damaged") == ["11", "3"]
    (folder / checksums.NAME).unlink()
    assert checkpoints.recover(workdir) == 9
    assert names(workdir / "damaged") == ["11", "3", "7"]


@pytest.mark.parametrize(
    ("unscored", "damaged", "step", "place"),
    [
        (9, "", 9, "unscored"),
        (9, "unscored/9", 7, "checkpoints"),
        (7, "", 7, "checkpoints"),
        (7, "checkpoints/7", 7, "unscored"),  # killed while the scored one was saved
        (5, "", 7, "checkpoints"),
    ],
)
def test_an_unscored_state_is_taken_if_it_is_the_newest_whole_one(folder, unscored, damaged, step, place):
    workdir = folder.parent.parent
    shutil.copytree(folder, workdir / "unscored" / str(unscored))
    if damaged:
        (workdir / damaged / "meta").write_text("")
    assert checkpoints.recover(workdir) == step and checkpoints.folder_of(workdir, step) == place
    assert (workdir / "damaged").exists() == bool(damaged)
    checkpoints.discard_unscored(workdir)
    assert not (workdir / "unscored").exists()


def test_where_all_are_damaged_the_run_stops_before_it_begins_anew(folder):
    workdir = folder.parent.parent
    (folder / "meta").write_text("")
    with pytest.raises(InputError, match="all checkpoints of .* are damaged; they were moved to .*damaged/7"):
        checkpoints.recover(workdir)
    assert checkpoints.recover(workdir) is None


def test_a_run_with_a_damaged_checkpoint_is_not_handed_on(folder):
    (folder / "state" / "b").write_text("")
    with pytest.raises(InputError, match="7 is damaged .*state/b has 0 bytes.*moves it away and resumes"):
        checkpoints.load_run(folder.parent.parent)


def test_text_is_replaced_whole(tmp_path):
    files.write_text(tmp_path / "a", "one")
    files.write_json(tmp_path / "a", {"b": 1})
    assert (tmp_path / "a").read_text() == '{\n "b": 1\n}\n' and os.listdir(tmp_path) == ["a"]

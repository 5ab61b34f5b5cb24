"""A folder that is not what a command wants: what it is, and who takes it."""

import os

import pytest

from lae_jax.runtime import layout
from lae_jax.runtime.errors import InputError


@pytest.fixture
def places(tmp_path):
    """A run, a data set, one that was not finished, an export, other files, nothing."""
    for name in ("runs/one/checkpoints/8", "data/faces", "half", "export", "other", "empty"):
        (tmp_path / name).mkdir(parents=True)
    for name in (
        "runs/one/config.json",
        "data/faces/dataset.json",
        "half/recipe.json",
        "export/export.json",
        "other/a",
    ):
        (tmp_path / name).write_text("{}")
    return tmp_path


@pytest.mark.parametrize(("name", "message"), [
    ("runs", r"name one of those in it \(one\)"),
    ("runs/one/checkpoints", "the checkpoints of a run: name that run, .*runs/one$"),
    ("runs/one/checkpoints/8", "is a checkpoint of a run: name that run, .*runs/one, and this one with --step 8"),
    ("data/faces", "is a prepared data set, which training takes with --config.data.path"),
    ("export", "is an export, which predict takes with --run"),
    ("other", "holds other files; make it with COMMAND"),
    ("empty", "it is empty; make it with COMMAND"),
    ("nothing", "holds no run: make it with COMMAND"),
])  # fmt: skip
def test_what_is_no_run_is_told(places, name, message):
    layout.require_run(places / "runs" / "one")
    with pytest.raises(InputError, match=message):
        layout.require_run(places / name, "COMMAND")


@pytest.mark.parametrize(("name", "message"), [
    ("runs/one", "it is a run, which evaluate, predict and export take"),
    ("data", r"name one of those in it \(faces\)"),
    ("half", "is an unfinished data set: run the same prepare command again"),
    ("other", "is not a prepared data set: it holds other files$"),
    ("empty", "make it with .* --out .*empty$"),
    ("nothing", "make it with .* --out .*nothing$"),
])  # fmt: skip
def test_what_is_no_data_set_is_told_and_prepare_is_advised_only_where_it_may_write(places, name, message):
    layout.require_dataset(places / "data" / "faces")
    with pytest.raises(InputError, match=message):
        layout.require_dataset(places / name)


def test_a_data_set_is_prepared_into_an_empty_folder_or_the_one_it_was_begun_in(places):
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (places / "empty" / name).touch()
    (places / "empty" / "__MACOSX").mkdir()
    (places / "killed" / "parts").mkdir(parents=True)
    for name in ("nothing", "empty", "half", "killed"):
        layout.require_place(places / name)
    layout.require_place("gs://bucket/empty", {"Thumbs.db": 1})
    layout.require_new(places / "empty")
    with pytest.raises(InputError, match="holds a run"):
        layout.require_place(places / "runs" / "one")
    with pytest.raises(InputError, match=r"holds other files \(a\): name a new or an empty folder"):
        layout.require_place(places / "other")


@pytest.mark.parametrize("name", [
    ".DS_Store", "._0.png", ".AppleDouble", ".ipynb_checkpoints", ".x.swp", ".nfs00a1", "Thumbs.db", "thumbs.db",
    "Desktop.ini", "x~", "#x#", "@eaDir", "__MACOSX", "lost+found", "System Volume Information", "Icon\r",
])  # fmt: skip
def test_what_systems_create_is_known_by_its_name(name):
    assert layout.is_system(name)


@pytest.mark.parametrize("name", ["", "#", "#1", "anna", "Thumbs", "~x", "__macos", "_METADATA", "8", "MACOSX"])
def test_what_people_create_is_not(name):
    assert not layout.is_system(name)


@pytest.mark.parametrize("require", [layout.require_place, layout.require_dataset])
def test_a_folder_whose_name_is_not_utf_8_holds_no_data_set(tmp_path, monkeypatch, require):
    folder = tmp_path / os.fsdecode(b"Zo\xeb")
    folder.mkdir()
    with pytest.raises(InputError, match=r"Zo\\udceb/data: the name of a folder is not UTF-8"):
        require(folder / "data")
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match="is not UTF-8"):
        require("data")


def test_a_folder_that_must_not_be_read_is_told_and_gives_no_hint(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(InputError, match=r"cannot be read \(Permission denied\): allow it, or name another folder"):
        layout.require_run(tmp_path)
    with pytest.raises(InputError, match="none holds no run: no such folder$"):
        layout.require_run(tmp_path / "none")

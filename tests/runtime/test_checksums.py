"""Seals: every change of a file is noticed; through Python's files, and through TensorFlow's as in a bucket."""

import dataclasses
import json
import os
import re
import shutil

import jax
import numpy as np
import pyarrow
import pytest
import tensorstore
from etils import epath
from etils.epath import backend, gpath

from lae_jax.configs import common
from lae_jax.runtime import checkpoints, checksums, files, origin, parallel
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


def write_meta(folder, **fields):
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    (folder / "meta" / "metadata").write_text(json.dumps({"step": int(folder.name), **fields}))


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path, monkeypatch):
    """A folder of three files and their checksums."""
    if request.param == "bucket":
        monkeypatch.setattr(gpath._GPath, "_backend", property(lambda self: backend.tf_backend))
        monkeypatch.setattr(files, "is_remote", lambda path: True)
        monkeypatch.setattr(files, "require_bucket", lambda path: None)
    folder = epath.Path(tmp_path) / "checkpoints" / "7"
    (folder / "state").mkdir(parents=True)
    write_meta(folder)
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
    assert sorted(checksums.entries(folder)) == ["meta/metadata", "state/a", "state/b"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    step: np.ndarray
    params: dict
    batch_stats: dict


def save(workdir, step):
    """Saves a state as a run does, and returns it."""
    state = State(np.int32(step), {"a": np.arange(4.0)}, {"a": np.ones(2)})
    with checkpoints.Checkpoints(workdir) as saved:
        saved.save(state, META | {"step": step})
        saved.wait()
    return state


def test_a_checkpoint_that_was_looked_at_is_read(tmp_path):
    state = save(tmp_path, 7)
    top = tmp_path / "checkpoints"
    littered(tmp_path, top, top / "7", top / "7" / "state", top / "7" / "meta")
    found = checkpoints.load_run(tmp_path)
    assert found.step == 7 and found.meta["selected"] == 1
    np.testing.assert_array_equal(found.variables["params"]["a"], np.arange(4.0))
    with checkpoints.Checkpoints(tmp_path) as saved:
        np.testing.assert_array_equal(saved.restore(7, state).batch_stats["a"], np.ones(2))


def test_nothing_is_compiled_for_a_checkpoint_of_all_devices(tmp_path, caplog):
    held = State(np.int32(7), {"a": np.arange(208.0).reshape(16, 13)}, {"a": np.ones(24)})
    state = parallel.Parallel().place(held)
    with jax.log_compiles(), checkpoints.Checkpoints(tmp_path) as saved:
        saved.save(state, META)
        saved.wait()
        assert "Compiling" not in caplog.text
        state.params["a"][2:9].block_until_ready()
        assert "Compiling" in caplog.text
        found = saved.restore(7, held)
    np.testing.assert_array_equal(found.params["a"], held.params["a"])
    np.testing.assert_array_equal(found.batch_stats["a"], held.batch_stats["a"])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda f: (f / "state" / "a").write_bytes(bytes(range(255)) * 8 + bytes(8)), "state/a was changed"),
        (lambda f: (f / "state" / "b").write_bytes(b"b" * 99), "state/b has 99 bytes, not 100"),
        (lambda f: (f / "meta" / "metadata").unlink(), "meta/metadata is missing"),
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
        write_meta(workdir / "checkpoints" / str(step))
        checksums.write(workdir / "checkpoints" / str(step))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_recovering_checks_all_and_sets_aside_what_is_damaged_or_has_no_checksums(folder):
    workdir = folder.parent.parent
    saved(workdir, 3, 9)
    (workdir / "checkpoints" / "11").mkdir()
    (workdir / "checkpoints" / "11" / "half").write_text("")
    (workdir / "checkpoints" / "3" / "meta" / "metadata").write_text("")
    assert checkpoints.recover(workdir) == 9
    assert names(workdir / "checkpoints") == ["7", "9"] and names(workdir / "damaged") == ["11", "3"]
    (folder / checksums.NAME).unlink()
    assert checkpoints.recover(workdir) == 9
    assert names(workdir / "damaged") == ["11", "3", "7"]


def copied(folder, to):
    """A checkpoint like that in `folder`, of the step that `to` names."""
    shutil.copytree(folder, to)
    write_meta(to)
    checksums.write(epath.Path(to))


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
    copied(folder, workdir / "unscored" / str(unscored))
    if damaged:
        (workdir / damaged / "meta" / "metadata").write_text("")
    assert checkpoints.recover(workdir) == step and origin.folder_of(workdir, step) == place
    assert (workdir / "damaged").exists() == bool(damaged)
    origin.discard_unscored(workdir)
    assert not (workdir / "unscored").exists()


def test_where_all_are_damaged_the_run_stops_before_it_begins_anew(folder):
    workdir = folder.parent.parent
    (folder / "meta" / "metadata").write_text("")
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


def begun(workdir, *steps):
    """A run with an id and checkpoints."""
    workdir.mkdir()
    origin.give_id(workdir)
    for step in steps:
        save(workdir, step)
    return workdir


def put(place, source):
    """Puts a checkpoint in the place of another one."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(source, place)


@pytest.mark.parametrize(
    ("place", "source", "told"),
    [
        ("run/checkpoints/70", "run/checkpoints/7", "70 .*it is the checkpoint of step 7"),
        ("run/checkpoints/5", "run/checkpoints/7", "5 .*it is the checkpoint of step 7"),
        ("run/checkpoints/7", "other/checkpoints/7", "7 .*it is of another run"),
        ("run/checkpoints/7", "old/checkpoints/7", "7 .*it is of another run: its id is None"),
        ("run/unscored/9", "other/checkpoints/9", "9 .*it is of another run"),
    ],
)
def test_a_checkpoint_of_another_step_or_run_is_set_aside_and_not_handed_on(tmp_path, caplog, place, source, told):
    run, *_ = [begun(tmp_path / name, 5, 7) for name in ("run", "other")]
    save(tmp_path / "old", 7)  # as before there were ids
    save(tmp_path / "other", 9)
    assert checkpoints.load_run(run, 7).meta["run"] == json.loads((run / "run.json").read_text())["id"]
    put(tmp_path / place, tmp_path / source)
    if "unscored" not in place:  # only a run that resumes reads it
        with pytest.raises(InputError, match=told):
            checkpoints.load_run(run)
    left = max({5, 7} - {int(place.rpartition("/")[2])})
    assert checkpoints.recover(run) == left and checkpoints.load_run(run).step == left
    assert re.search(told, caplog.text) and (run / "damaged" / place.rpartition("/")[2]).is_dir()


def test_a_checkpoint_whose_state_is_of_another_step_is_refused(tmp_path):
    run = begun(tmp_path / "run", 5, 7)
    put(run / "checkpoints" / "7" / "state", run / "checkpoints" / "5" / "state")
    checksums.write(epath.Path(run) / "checkpoints" / "7")  # the forger's
    with pytest.raises(InputError, match="checkpoints/7 holds the state of step 5"):
        checkpoints.load_run(run, 7)
    target = State(np.int32(0), {"a": np.zeros(4)}, {"a": np.zeros(2)})
    with checkpoints.Checkpoints(run, read_only=True) as saved:
        assert saved.restore(5, target).step == 5
        with pytest.raises(InputError, match="checkpoints/7 holds the state of step 5"):
            saved.restore(7, target)


@pytest.mark.parametrize(("shape", "chunk"), [(1 << 40, 1 << 30), (4, 1 << 40)])
def test_zeros_that_a_few_bytes_stand_for_are_not_unpacked(tmp_path, shape, chunk):
    run = begun(tmp_path / "run", 7)
    path = epath.Path(run) / "checkpoints" / "7"
    base = {"driver": "ocdbt", "base": f"file://{path}/state/", "path": "params.a/"}
    metadata = {"shape": [shape], "chunks": [chunk], "dtype": "<f4"}
    spec = {"driver": "zarr", "kvstore": base, "metadata": metadata, "create": True, "delete_existing": True}
    tensorstore.open(spec).result()
    checksums.write(path)
    with pytest.raises(InputError, match="bytes of arrays in"):
        checkpoints.load_run(run)


def test_an_index_that_a_few_bytes_stand_for_is_not_unpacked(tmp_path):
    run = begun(tmp_path / "run", 7)
    path = epath.Path(run) / "checkpoints" / "7"
    config = {"max_inline_value_bytes": 1 << 20, "max_decoded_node_bytes": 1 << 30}
    store = tensorstore.KvStore.open(
        {"driver": "ocdbt", "base": f"file://{tmp_path}/index/", "config": config}
    ).result()
    transaction = tensorstore.Transaction()
    for number in range(300):
        store.with_transaction(transaction)[f"params.{number}"] = bytes(1 << 20)
    transaction.commit_async().result()
    index = next(one for one in (tmp_path / "index" / "d").iterdir())
    assert index.stat().st_size < 20_000
    (path / "state" / "d" / "Thumbs.db").write_bytes(b"x" * 1000 + index.read_bytes())  # a name that systems use
    with pytest.raises(InputError, match=r"checkpoints/7 is damaged \(over 26\d,\d+,\d+ bytes of indexes in"):
        checkpoints.load_run(run)


def varint(number):
    return bytes((number & 127 | 128,)) + varint(number >> 7) if number > 127 else bytes((number,))


def node(content, packed=True, before=b""):
    """A B-tree node of OCDBT, without a checksum."""
    content = before + (pyarrow.compress(content, codec="zstd", asbytes=True) if packed else content)
    return b"\x0c\xdb\x20\xde" + (len(content) + 18).to_bytes(8, "little") + bytes((0, packed)) + content + bytes(4)


def texts(count, length, each=0):
    """Texts of `length` bytes, of which each shares all but one with the one before; `each` more numbers for each."""
    lengths = varint(length) * count + b"\1" * (count - 1)
    return varint(count) + lengths + bytes(each * count) + b"x" * (length + count - 1)


KEYS = b"\0\0" + texts(10_000, 60_000)
SKIPPED = b"\x50\x2a\x4d\x18" + bytes(4)  # a frame of zstd without content


@pytest.mark.parametrize(
    "index",
    [
        node(KEYS),
        node(KEYS, packed=False),
        node(b"\0" + texts(10_000, 60_000, each=1)),  # names of files
        b"\x0c\xdb\x20\xde" + node(KEYS),  # looks like a length
        node(KEYS, before=SKIPPED),
    ],
    ids=["keys", "plain", "files", "overlapping", "skipped"],
)
def test_texts_that_a_few_bytes_stand_for_are_not_spelled(tmp_path, index):
    run = begun(tmp_path / "run", 7)
    assert len(index) < 200_000
    (run / "checkpoints" / "7" / "state" / "d" / "Thumbs.db").write_bytes(index)  # a name that systems use
    with pytest.raises(InputError, match=r"checkpoints/7 is damaged \(over 2\d\d,\d+,\d+ bytes of indexes in"):
        checkpoints.load_run(run)


@pytest.mark.parametrize("name", ["more", ".more"])  # systems make names like the second, which checksums leave out
def test_a_link_in_a_checkpoint_is_not_followed(tmp_path, name):
    run = begun(tmp_path / "run", 5, 7)
    for number in range(2):  # each leads to both: to follow them never ends
        os.symlink(".", run / "checkpoints" / "7" / "state" / f"{name}{number}")
    with pytest.raises(InputError, match=rf"state/{name}\d is a link: put what it leads to in its place"):
        checkpoints.load_run(run, 7)


def test_a_state_that_is_not_finite_is_not_resumed(tmp_path):
    run, wrong = begun(tmp_path / "run", 7), np.array([1.0, np.nan])
    target = State(np.int32(0), {"a": np.zeros(2)}, {"a": np.zeros(2)})
    with checkpoints.Checkpoints(run) as saved:
        state = State(np.int32(9), {"a": np.zeros(2)}, {"a": wrong})
        saved.save(state, {**saved.meta(7), "step": 9})
        saved.wait()
        with pytest.raises(InputError, match="checkpoints/9: batch_stats/a has values that are not finite"):
            saved.restore(9, target)


@pytest.mark.parametrize(("value", "named"), [(np.nan, "params/a"), (np.inf, "batch_stats/a")])
def test_weights_that_are_not_finite_are_not_used(tmp_path, value, named):
    run = begun(tmp_path / "run", 7)
    arrays = {name: np.array([1.0, value if name in named else 1.0]) for name in ("params", "batch_stats")}
    with checkpoints.Checkpoints(run) as saved:
        state = State(np.int32(9), *({"a": one} for one in arrays.values()))
        saved.save(state, {**saved.meta(7), "step": 9})
        saved.wait()
    with pytest.raises(InputError, match=f"checkpoints/9: {named} has values that are not finite") as end:
        checkpoints.load_run(run, 9)
    assert end.value.status == 2 and checkpoints.load_run(run, 7).step == 7


def test_a_run_that_was_moved_or_lost_its_id_or_is_older_than_ids_is_read(tmp_path):
    shutil.move(begun(tmp_path / "run", 5, 7), tmp_path / "moved")
    assert checkpoints.load_run(tmp_path / "moved").step == checkpoints.recover(tmp_path / "moved") == 7
    (tmp_path / "moved" / "run.json").unlink()
    save(tmp_path / "moved", 9)  # it keeps the id that its checkpoints have
    assert checkpoints.load_run(tmp_path / "moved").step == checkpoints.recover(tmp_path / "moved") == 9
    save(tmp_path / "old", 7)
    origin.give_id(tmp_path / "old")  # too late: its checkpoints have none
    assert checkpoints.load_run(tmp_path / "old").step == checkpoints.recover(tmp_path / "old") == 7
    put(tmp_path / "old" / "checkpoints" / "9", tmp_path / "moved" / "checkpoints" / "9")
    for use in (checkpoints.load_run, checkpoints.recover):
        with pytest.raises(InputError, match="9 and .*7 are of different runs, and run.json"):
            use(tmp_path / "old")

"""Leaks: a run heeds what an audit found, and its reports say so."""

import pathlib
import shutil

import planted
import pytest
from planted import TRAIN, age_of, draw, prepared

from lae_jax import evaluate, main, prepare
from lae_jax.audit import saved
from lae_jax.data import records
from lae_jax.evaluate import __main__ as door
from lae_jax.report import model_card, wording
from lae_jax.runs import fields, leaks
from lae_jax.runtime import checkpoints
from lae_jax.runtime.errors import InputError
from lae_jax.train import config_flag, loop
from lae_jax.train.plan import make_plan


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> pathlib.Path:
    return draw(tmp_path_factory.mktemp("faces"))


@pytest.fixture
def leaking(faces, tmp_path, small_config):
    """A config whose data set holds a picture that was stored again in its validation split."""
    out = prepared(faces, tmp_path / "leaking", ("again.jpg", age_of(0), "validation", 0), named=True)
    saved.run([out])
    config = small_config("represent")
    config.data.path = str(out)
    return config


def test_a_run_stops_on_a_leak_goes_on_with_the_flag_and_every_report_says_so(leaking, small_config):
    with pytest.raises(InputError, match=r"1 of 25 images of validation are also in train.*--allow-leak"):
        loop.train(leaking)
    assert not pathlib.Path(leaking.workdir).exists()
    leaking.data.allow_leak = True
    loop.train(leaking)
    meta = checkpoints.load_run(leaking.workdir).meta
    assert meta["config"]["data"]["allow_leak"] and [leak["kind"] for leak in meta["leaks"]] == ["near_picture"]
    for split, expected in [("validation", ["near_picture"]), ("train", ["near_picture", "same_rows"])]:
        report, _ = evaluate.evaluate(leaking.workdir, split=split)
        assert [leak["kind"] for leak in report["leaks"]] == expected
        told = "\n".join(door.tell(report))
        assert told.count("LEAK") == len(expected) and "nearly the same picture" in told
        # 'person 0' is in both splits, by the source's own choice.
        assert report["same_people_on_both_sides"] == (1 if split == "validation" else TRAIN)
        count = report["same_people_on_both_sides"]
        assert f"people in both the training and the scored images: {count}" in told and report["audit"] == "read"

    # The stage that starts from it inherits the leak, even on other data.
    third = small_config("classify")
    third.init_from = leaking.workdir
    plan = make_plan(third)
    assert [leak["data"] for leak in plan.history.leaks] == [str(leaking.data.path)]
    assert [one["data"] for one in plan.history.trained_on] == [str(leaking.data.path), str(third.data.path)]


@pytest.fixture
def strangers(faces, tmp_path, small_config):
    """The meta of a run on a data set, and another one whose test split holds the same file and a picture of it."""
    config = small_config("represent")
    config.data.path = str(prepared(faces, tmp_path / "own", named=True))
    own = records.open_dataset(config.data.path)
    rows = [(name, age_of(0), "test", 0) for name in ("same.jpg", "again.jpg")]
    other = records.open_dataset(prepared(faces, tmp_path / "other", *rows))
    saved.run([other.path])
    return {"config": fields.as_json(config), "data": str(own.path), "data_hash": own.hash}, other


PLANTED = ["same_file", "near_picture"]


def told(meta, dataset, split):
    """The report's fields, its lines in red, and what the model card says."""
    report = leaks.of_evaluation(meta, dataset, split)
    report = {"data": str(dataset.path), "same_data_as_training": False, "protocol": "column", **report}
    return report, wording.leaks(report), model_card._leaks({}, [{"split": split, "flip": False, **report}], {})


def test_what_another_data_set_shares_with_the_trainings_is_found_by_the_evaluation(strangers):
    meta, other = strangers
    report, lines, card = told(meta, other, "test")
    assert not report["not_compared"] and [leak["kind"] for leak in report["leaks"]] == PLANTED
    assert "1 of 2 images of test are also in train of" in lines[0] and "No leak was found" not in card
    assert [f["kind"] for f in report["findings"] if f["severity"] == "leak"] == PLANTED
    # Also where both splits have one name. Its own 0.jpg was left out, being the same file as same.jpg.
    assert [leak["count"] for leak in told(meta, other, "train")[0]["leaks"]] == [TRAIN - 1]


def test_where_the_trainings_data_is_gone_an_audit_of_both_tells_or_nobody(strangers, tmp_path, monkeypatch):
    meta, other = strangers
    saved.run([other.path, pathlib.Path(meta["data"])])
    shutil.move(meta["data"], tmp_path / "moved")
    report, _, _ = told(meta, other, "test")
    assert not report["not_compared"] and [leak["kind"] for leak in report["leaks"]] == PLANTED
    # What is called alike an audit does not compare.
    for split in ("train", "all"):
        assert told(meta, other, split)[0]["not_compared"] == [{"data": meta["data"], "why": "it is not available"}]
    saved.run([other.path])
    report, lines, card = told(meta, other, "test")
    assert report["leaks"] == [] and len(lines) == 1
    assert lines[0].endswith("(it is not available): whether they hold the same pictures is unknown")
    assert "could not be compared in full with `" in card and "No leak was found" not in card
    shutil.copytree(other.path, meta["data"])
    assert told(meta, other, "test")[0]["not_compared"][0]["why"] == "another data set is at its path now"
    (pathlib.Path(meta["data"]) / "columns.parquet").write_bytes(b"x")
    assert "it cannot be read: " in told(meta, other, "test")[0]["not_compared"][0]["why"]
    monkeypatch.setattr(records, "open_dataset", lambda *_: (_ for _ in ()).throw(PermissionError("closed")))
    assert told(meta, other, "test")[0]["not_compared"] == [{"data": meta["data"], "why": "it cannot be read: closed"}]


def test_without_perceptual_hashes_only_files_are_compared_and_that_is_said(strangers, monkeypatch):
    meta, other = strangers
    has = records.Dataset.has_column
    monkeypatch.setattr(records.Dataset, "has_column", lambda self, name: name != "phash" and has(self, name))
    report, lines, _ = told(meta, other, "test")
    assert [leak["kind"] for leak in report["leaks"]] == PLANTED[:1]
    assert "(there are no perceptual hashes, so only files were compared)" in lines[-1]
    # Nor did an audit of both.
    saved.run([other.path, pathlib.Path(meta["data"])])
    shutil.rmtree(meta["data"])
    report, lines, _ = told(meta, other, "test")
    assert [leak["kind"] for leak in report["leaks"]] == PLANTED[:1] and "(it is not available)" in lines[-1]


def test_all_that_a_run_and_those_before_it_were_trained_on_is_compared(strangers, faces, tmp_path, small_config):
    meta, other = strangers
    config = small_config("classify")
    more = ("again.jpg", age_of(0), "validation", 0)
    config.data.path = str(prepared(faces, tmp_path / "second", more, named=True))
    second = records.open_dataset(config.data.path)
    trained_on = leaks.trained_on(config, second, meta)
    assert [one["data"] for one in trained_on] == [meta["data"], str(second.path)]
    assert leaks.trained_on(config, second, {"trained_on": trained_on}) == trained_on
    # Of weights nobody knows what they were trained on.
    assert leaks.trained_on(config, second, {"crop": {}}) == trained_on[1:]
    found = told({"trained_on": trained_on}, other, "test")[0]["leaks"]
    assert leaks.of_evaluations([{"trained_on": [one]} for one in trained_on], other, "test")["leaks"] == found
    assert [(leak["kind"], leak["other"]["path"]) for leak in found] == [
        (kind, data) for data in (meta["data"], str(second.path)) for kind in PLANTED
    ]


def test_people_of_all_trainings_count_where_their_names_can_be_compared(faces, tmp_path):
    """'person 7' is a label, and somebody else in another data set; a name is not."""

    def made(folder, names):
        lines = [f"{i}.jpg,{age_of(i)},{'train' if i < 8 else 'test'},{name}" for i, name in enumerate(names)]
        (tmp_path / folder).mkdir()
        table = tmp_path / folder / "faces.csv"
        table.write_text("\n".join(["path,age,split,identity", *lines]) + "\n")
        prepare.prepare(table, table.parent / "data", **planted.crops_of(faces))
        dataset = records.open_dataset(table.parent / "data")
        return dataset, {"data": str(dataset.path), "data_hash": dataset.hash, "split": "train"}

    named = ["Ada Lovelace", "Alan Turing", "Grace Hopper", "Kurt Goedel", "Emmy Noether", "Carl Gauss"]
    one, trained_on_one = made("one", named + ["Someone Else"] * 2 + ["Nobody Here"] * 2)
    two, trained_on_two = made("two", ["Ada Lovelace"] * 8 + ["Alan_Turing", "grace hopper"])
    numbered, trained_on_numbers = made("three", [f"person {i}" for i in range(10)])

    def both(*trainings, dataset=two):
        return leaks.of_evaluation({"trained_on": list(trainings)}, dataset, "test")["same_people_on_both_sides"]

    assert both(trained_on_one) == both(trained_on_one, trained_on_two) == 2 and both(trained_on_two) == 0
    assert both(trained_on_numbers) is None and both(trained_on_numbers, dataset=numbered) == 0
    metas = [{"trained_on": [one]} for one in (trained_on_numbers, trained_on_two, trained_on_one)]
    report = leaks.of_evaluations(metas, two, "test")
    assert report["same_people_on_both_sides"] == 2
    assert [f["kind"] for f in report["findings"]] == ["same_identity"]


def test_the_order_tells_which_data_set_a_split_is_of():
    finding = {"severity": "leak", "kind": "same_file", "splits": ["test", "train"], "other": {"hash": "a"}}
    assert saved.leaks([finding], "test", "train", "a") and saved.leaks([finding], "test", "all", "a")
    assert saved.leaks([finding], "all", "train", "a") and not saved.leaks([finding], "all", "test", "a")
    assert not saved.leaks([finding], "train", "test", "a") and not saved.leaks([finding], "test", "train")
    own = {**finding, "splits": ["train", "validation"]}
    del own["other"]
    assert saved.leaks([own], "validation", "train") and saved.leaks([own], "train", "all")
    assert not saved.leaks([own], "train", "test")


def test_training_on_what_is_validated_is_a_leak(small_config):
    config = small_config("represent")
    config.data.train = "all"
    with pytest.raises(InputError, match="64 images of validation are in all"):
        make_plan(config)


def test_the_people_of_pretraining_travel_and_stop_a_run_that_is_validated_on_them(
    faces, tmp_path, small_config, caplog
):
    caplog.set_level("INFO", "lae_jax")
    first = small_config("pretrain")
    first.epochs, first.data.split = 0.3, ""
    loop.train(first)
    known = checkpoints.load_run(first.workdir).meta["identities"]
    dataset = records.open_dataset(first.data.path)
    trained_on = {*dataset.column("identity")[dataset.rows("train")]}
    assert len(known["hashes"]) == len(trained_on) and known["schemes"] == [f"label of {dataset.hash[:12]}"]

    second = small_config("represent")
    second.init_from = first.workdir
    plan = make_plan(second)
    assert plan.history.identities == known and "0 people of validation were in the backbone's" in caplog.text
    assert "ready-made crops of another data set" not in caplog.text
    second.data.train, second.data.split = "test", "train"
    with pytest.raises(InputError, match=f"{len(trained_on)} people of train were in the backbone's pre-training"):
        make_plan(second)

    # Numbers of another data set are other people: nothing can be said.
    second.data.path = str(prepared(faces, tmp_path / "other", named=True))
    second.data.train, second.data.split = "train", "validation"
    caplog.clear()
    assert make_plan(second).history.leaks == []
    assert "trained on ready-made crops of another data set" in caplog.text  # both contracts are `unknown`
    assert "unknown whether people of validation were in pre-training: none of its 24 names" in caplog.text


@pytest.mark.parametrize("spelling", ["--allow_leak", "--allow-leak"])
def test_both_spellings_of_the_flag_reach_every_stage(spelling, monkeypatch):
    from lae_jax.configs import demo, represent

    for config in (represent.get_config(), demo.get_config()):
        got = []
        monkeypatch.setattr(main, "check_paths", lambda config: None)
        monkeypatch.setattr(main, "set_up_devices", lambda: None)
        monkeypatch.setattr(main, "run", lambda c, signals, profile, got=got: got.append(c))
        monkeypatch.setattr(config_flag, "CONFIG", type("Flag", (), {"value": config}))
        main.flags.FLAGS.unparse_flags()
        try:
            main.flags.FLAGS(config_flag.with_underscores(["main", spelling]))
            main.main(["main"], None)
        finally:
            main.flags.FLAGS["allow_leak"].unparse()
        stages = got[0].stages.values() if "stages" in got[0] else got
        assert all(stage.data.allow_leak for stage in stages)

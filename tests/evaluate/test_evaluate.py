"""Evaluating: batch size and devices change predictions by rounding alone, and files agree with each other."""

import csv
import dataclasses
import functools
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from etils import epath

from lae_jax import evaluate, main, metrics, stages
from lae_jax.data import pipeline, records
from lae_jax.evaluate import __main__ as door
from lae_jax.evaluate import contents, measure
from lae_jax.evaluate import results as reporting
from lae_jax.report import loading
from lae_jax.runs import build, fields, inference, inputs
from lae_jax.runtime import checkpoints, parallel, watch
from lae_jax.runtime.errors import InputError, Preempted
from lae_jax.stages import verification
from lae_jax.train.plan import make_plan


@pytest.fixture(scope="module")
def run(trained, make_config, tmp_path_factory):
    """The config of a run, whose folder is this file's own."""
    c = make_config("represent", tmp_path_factory.mktemp("runs"))
    shutil.copytree(trained("represent"), c.workdir)
    return c


def test_report_predictions_and_pictures_agree(run, capsys):
    door.main(["--run", run.workdir, "--split", "test", "--batch-size", "8"])
    told = capsys.readouterr().out
    folder = pathlib.Path(run.workdir) / "evaluation" / "drawn-test"
    report = json.loads((folder / "report.json").read_text())
    with open(folder / "predictions.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == report["n"] == 16
    # Read back, they are what was scored.
    done = measure.predict(checkpoints.load_run(run.workdir), split="test", batch_size=8)
    np.testing.assert_array_equal([float(row["prediction"]) for row in rows], done.outputs)
    ages, predictions = ([float(row[name]) for row in rows] for name in ("age", "prediction"))
    again = metrics.age_report(np.array(ages), np.array(predictions)).to_dict()
    for name, value in again.items():
        assert report[name] == value, name
    assert f"MAE {report['mae']:.2f}" in told and "AAR (2021)" in told and "AAR (2022)" in told
    text = (folder / "report.html").read_text()
    assert f"is wrong by {report['mae']:.2f} years" in text and "Model card" in text
    assert {path.suffix for path in (folder / "report").iterdir()} == {".svg", ".csv"}
    low, high = report["intervals"]["mae"]
    assert low < report["mae"] < high and report["bootstrap"]["units"] == "people"
    assert f"95 % intervals over people: MAE {low:.2f} to {high:.2f}" in told
    assert sum(report["training"]["count"]) == 96
    median = np.median(ages)
    constant = report["constant"]
    assert (constant["age"], constant["mae"]) == (median, pytest.approx(np.abs(ages - median).mean(), abs=1e-4))
    assert constant["difference"][0] < report["mae"] - constant["mae"] < constant["difference"][1]
    inside = [float(row["lower"]) <= float(row["age"]) <= float(row["upper"]) for row in rows]
    by_rank = [abs(float(row["below"]) - 0.5) <= report["interval"]["level"] / 2 for row in rows]
    assert inside == by_rank and np.mean(inside) == pytest.approx(report["interval"]["coverage"])
    dataset = records.open_dataset(run.data.path)
    assert len({row["person"] for row in rows}) == len(set(dataset.column("identity")[dataset.rows("test")]))


def test_what_a_report_shows_is_chosen(run, tmp_path):
    """A baseline, a decision, slices, an epsilon-error and faces."""
    other = tmp_path / "other"
    shutil.copytree(run.workdir, other, ignore=shutil.ignore_patterns("evaluation", "tensorboard"))
    shown = {"split": "test", "threshold": 18, "slices": ["split", "identity"], "spread": "width"}
    with pytest.raises(
        InputError, match=r"other has no evaluation of ages yet: make one with python -m lae_jax.evaluate"
    ):
        evaluate.evaluate(run.workdir, **shown, baseline=other)
    evaluate.evaluate(other, split="test")
    report, folder = evaluate.evaluate(run.workdir, **shown, show_faces=True, baseline=other)
    text = (folder / "report.html").read_text()
    for title in ("Decision", "Slices", "Faces"):
        assert f">{title}</h2>" in text
    found = loading.read(folder)
    groups = {*metrics.age_group(found.sample.ages)} - {-1}
    assert text.count("data:image/jpeg") == 3 * len(groups) and "difference to other" in text
    # All images are 32 wide: that is the spread.
    errors = found.sample.predictions - found.sample.ages
    assert report["epsilon"] == pytest.approx((1 - np.exp(-((errors / 32) ** 2) / 2)).mean(), abs=1e-4)
    table = next(line for line in text.split("<tr>") if "epsilon-error" in line)
    assert table.count(f"{report['epsilon']:.3f}") == 2, "the same model has the same, also evaluated without a spread"
    assert "For other this is unknown: evaluate with --threshold 18 there too." in text
    assert ((found.chances > 0) & (found.chances < 1)).any() and report["threshold"] == 18
    assert {*found.slices} == {"split", "identity"} and {*found.slices["split"]} == {"test"}
    with pytest.raises(InputError, match="unknown column 'sex'"):
        evaluate.evaluate(run.workdir, slices=["sex"])
    with pytest.raises(InputError, match="column name of .* does not hold numbers"):
        evaluate.evaluate(run.workdir, split="test", spread="name")
    before = {*folder.parent.iterdir()}
    with pytest.raises(
        InputError,
        match="other was not evaluated on these images: evaluate it first with python -m .* --split validation",
    ):
        evaluate.evaluate(run.workdir, baseline=other, flip=True)
    assert {*folder.parent.iterdir()} == before


def test_a_signal_while_the_report_is_made_leaves_it_to_the_next_start(run, monkeypatch):
    page, signals = pathlib.Path(run.workdir) / "report.html", watch.Signals()

    def until_asked(any_host, given, original=inference.until_asked):
        beat = original(any_host, given)
        assert given is signals
        signals.asked = True
        return beat

    with monkeypatch.context() as patch, pytest.raises(Preempted, match="represent is trained, but has no report yet"):
        patch.setattr(inference, "until_asked", until_asked)
        main.run(run, signals)
    assert not page.exists() and not (page.parent / "evaluation" / "drawn-validation").exists()
    main.run(run, watch.Signals())
    assert "on validation of" in page.read_text()
    page.unlink()


def test_data_sets_of_one_name_have_a_folder_each(drawn, tmp_path, caplog):
    shutil.copytree(drawn, tmp_path / "moved" / drawn.name)
    shutil.copytree(drawn, tmp_path / "other" / drawn.name)
    manifest = tmp_path / "other" / drawn.name / "dataset.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"protocol": "image"}))
    run = epath.Path(tmp_path / "run")
    first = contents.place(run, drawn, "test", "-flip")
    assert first == run / "evaluation" / f"{drawn.name}-test-flip"
    first.mkdir(parents=True)
    report = {"data": str(drawn), "data_hash": records.open_dataset(drawn).hash, "split": "test"}
    (first / "report.json").write_text(json.dumps(report))
    assert contents.place(run, drawn, "test", "-flip") == first
    assert contents.place(run, tmp_path / "moved" / drawn.name, "test", "-flip") == first
    assert contents.place(run, tmp_path / "other" / drawn.name, "test", "-flip").name == f"{first.name}-2"
    for damaged in ("[]", "{}", "cut"):
        (first / "report.json").write_text(damaged)
        assert contents.place(run, tmp_path / "other" / drawn.name, "test", "-flip") == first
        nothing = contents.Contents()
        assert contents.checked(nothing, first, drawn, "test", True) is nothing
        assert "report.json is damaged" in caplog.text and "It is replaced" in caplog.text
        caplog.clear()


def test_an_evaluation_keeps_what_an_earlier_one_showed_and_the_runs_page_is_the_newest(run, tmp_path, caplog):
    copy, other = tmp_path / "run", tmp_path / "other"
    for place in (copy, other):
        shutil.copytree(run.workdir, place, ignore=shutil.ignore_patterns("evaluation", "tensorboard", "report.html"))
    evaluate.evaluate(other)
    _, folder = evaluate.evaluate(copy, threshold=18, slices=["split"], baseline=other)
    page = copy / "report.html"
    assert page.read_text() == (folder / "report.html").read_text() and "difference to other" in page.read_text()
    with caplog.at_level("INFO", "lae_jax"):
        report, _ = evaluate.evaluate(copy, slices=["identity"])
    assert "kept from the earlier evaluation: --threshold, --slice, --baseline" in caplog.text
    assert report["threshold"] == 18 and report["contents"]["slices"] == ["identity", "split"]
    text = page.read_text()
    assert ">Decision</h2>" in text and "difference to other" in text and text == (folder / "report.html").read_text()
    shutil.rmtree(other)
    report, _ = evaluate.evaluate(copy, threshold=21)
    assert report["threshold"] == 21 and report["contents"]["baseline"] == ""
    assert "difference to" not in page.read_text()
    before = page.read_text()
    evaluate.evaluate(copy, split="test")
    reporting.of_run(epath.Path(copy))
    assert page.read_text() == before, "only the validation split's newest evaluation is the run's page"
    report = json.loads((folder / "report.json").read_text()) | {"step": 1}
    (folder / "report.json").write_text(json.dumps(report))
    reporting.of_run(epath.Path(copy))
    assert page.read_text() == (folder / "report.html").read_text()
    assert json.loads((folder / "report.json").read_text())["step"] == 3, "an evaluation of another step is replaced"


@pytest.mark.parametrize("several", [False, True])
def test_a_signal_ends_the_batches_of_all_hosts_after_the_same_one(several):
    # Of several hosts: each asks all of them, by an array whose value is looked at after the next batch.
    signals, heard = [watch.Signals(), watch.Signals()], []
    for own in signals:
        any_host = (lambda _: np.bool_(signals[1].asked)) if several else bool
        heard.append(inference.until_asked(any_host, own))
    for beat in heard:
        beat()
    signals[1].asked = True
    if several:
        for beat in heard:
            beat()
    for beat in heard if several else heard[1:]:
        with pytest.raises(inference.Interrupted):
            beat()


def test_a_run_that_ended_has_its_report(run):
    workdir = epath.Path(run.workdir)
    reporting.of_run(workdir)
    text = (workdir / "report.html").read_text()
    assert "on validation of" in text and "Scores while training" in text
    (workdir / "report.html").write_text("mine")
    reporting.of_run(workdir)
    assert (workdir / "report.html").read_text() == "mine", "a report that is there stays"


def test_default_split_is_the_runs_validation_and_scores_are_the_checkpoints(run):
    report, folder = evaluate.evaluate(run.workdir)
    assert folder.name == "drawn-validation"
    # One definition of an age, so one precision: only the rounding of other programs and batches remains.
    done, again = (measure.predict(checkpoints.load_run(run.workdir), batch_size=size) for size in (32, 256))
    mae = checkpoints.load_run(run.workdir).meta["scores"]["mae"]
    for score in (done.scores()["mae"], again.scores()["mae"], report["mae"]):
        assert score == pytest.approx(mae, rel=1e-6)


def test_predictions_do_not_depend_on_batch_size_or_devices(run):
    checkpoint, dataset = checkpoints.load_run(run.workdir), records.open_dataset(run.data.path)
    rows, stage = dataset.rows("validation"), stages.REPRESENT
    module = build.model(run, stage, 101)
    results = []
    for devices, batch_size in [(8, 64), (8, 24), (1, 13), (2, 64)]:
        par = parallel.Parallel(tuple(jax.local_devices()[:devices]))
        forward = build.forward(run, stage, module, par)
        results.append(inputs.outputs_of(run, dataset, rows, forward, par.place(checkpoint.variables), par, batch_size))
    assert all(result.shape == rows.shape for result in results)
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], atol=1e-4)


def test_thirteen_images_in_batches_of_8_are_thirteen_on_one_and_on_eight_devices(run):
    checkpoint, dataset = checkpoints.load_run(run.workdir), records.open_dataset(run.data.path)
    rows, module = dataset.rows("validation")[:13], build.model(run, stages.REPRESENT, 101)
    results = {}
    for devices in (1, 8):
        par = parallel.Parallel(tuple(jax.local_devices()[:devices]))
        forward = build.forward(run, stages.REPRESENT, module, par)
        results[devices] = inputs.outputs_of(run, dataset, rows, forward, par.place(checkpoint.variables), par, 8)
    np.testing.assert_allclose(results[8], results[1], atol=1e-4)
    for outputs in results.values():
        assert outputs.shape == (13,) and metrics.age_report(dataset.column("age")[rows], outputs).n == 13


def test_padding_is_dropped_by_its_number_wherever_it_stands():
    par = parallel.Parallel(tuple(jax.local_devices()[:1]))
    batches = [
        {"image": np.array([3.0, 9.0]), "position": np.array([1, 7])},
        {"image": np.array([1.0, 2.0]), "position": np.array([2, 0])},
    ]
    got = inference.over_batches(lambda _, images: images[None], {}, iter(batches), 3, par=par)
    assert got.tolist() == [2.0, 3.0, 1.0]


@pytest.mark.parametrize("together", [1, 3, 4, 100])
def test_outputs_are_written_as_they_come_into_one_array(monkeypatch, together):
    monkeypatch.setattr(inference, "_ROWS_TOGETHER", together)
    par, made = parallel.Parallel(tuple(jax.local_devices()[:1])), []
    images = np.arange(10.0).reshape(5, 2, 1)
    batches = [{"image": image, "position": 2 * i + np.arange(2)} for i, image in enumerate(images)]

    def allocate(shape, dtype):
        made.append(np.full(shape, np.nan, np.float32))
        return made[-1]

    got = inference.over_batches(lambda _, x: x[None], {}, iter(batches), 9, par=par, allocate=allocate)
    assert [got] == made and got.ravel().tolist() == list(range(9))


def test_stage_1_predicts_only_the_images_that_are_in_its_pairs(trained, monkeypatch):
    checkpoint = checkpoints.load_run(trained("pretrain"))
    whole = measure.predict(checkpoint)
    every = np.full((len(whole.targets), whole.outputs.shape[1]), np.nan)
    every[verification.draw_pairs(whole.targets).images] = whole.outputs
    few = functools.partial(verification.draw_pairs, num_pairs=4)
    monkeypatch.setattr(verification, "draw_pairs", few)
    done, pairs = measure.predict(checkpoint), few(whole.targets)
    assert len(done.outputs) == len(pairs.images) <= 8 < len(whole.targets) and done.scores()["pairs"] == 4
    np.testing.assert_allclose(done.outputs, every[pairs.images], atol=1e-5)
    plan = make_plan(fields.from_json(checkpoint.meta["config"]))
    assert plan.scored_rows.tolist() == whole.rows[pairs.images].tolist()


def test_flip_averages_the_distribution_with_that_of_the_mirror_image(run):
    checkpoint, dataset = checkpoints.load_run(run.workdir), records.open_dataset(run.data.path)
    rows, par = dataset.rows("test"), parallel.Parallel()
    stage = dataclasses.replace(stages.REPRESENT, output=functools.partial(jax.nn.softmax, axis=-1))
    forward = build.forward(run, stage, build.model(run, stage, 101), par)
    places = pipeline.Places(len(rows), 0, len(rows))
    (batch,) = pipeline.eval_batches(dataset, rows, inputs.augmentation(run), places=places, threads=1)
    images, variables = batch["image"], par.place(checkpoint.variables)
    plain, mirrored = (np.asarray(par.collect(forward(variables, x))) for x in (images, images[:, :, ::-1]))
    flipped = measure.predict(checkpoint, split="test", flip=True).probabilities
    # The run has learnt little, so its ages of both sides are near each other: what differs is small.
    np.testing.assert_allclose(flipped, (plain + mirrored) / 2, rtol=1e-3, atol=1e-8)
    assert np.abs(flipped - plain).max() > 20 * np.abs(flipped - (plain + mirrored) / 2).max()
    report, folder = evaluate.evaluate(run.workdir, split="test", flip=True)
    assert folder.name == "drawn-test-flip" and report["flip"]


def test_undefined_scores_are_told_with_the_missing_group():
    scores = stages.REPRESENT.score({"age": np.array([5.0, 25.0])}, np.array([6.0, 20.0]))
    assert scores["sigma"] is None
    assert "no image of age 11-20, 31-40" in "\n".join(door.tell(scores))


def test_the_console_tells_babies_and_people_over_81_as_groups_of_their_own():
    ages = np.array([0.4, 0.0, 5, 81.5])
    told = "\n".join(door.tell(metrics.age_report(ages, ages + [3, 5, 1, -2]).to_dict()))
    lines = [line.split() for line in told.splitlines()]
    assert ["0", "2", "4.00", "+4.00"] in lines and ["82+", "1", "2.00", "-2.00"] in lines
    assert ["1-10", "1", "1.00", "+1.00"] in lines and "3 of the 4 images show babies" in told


def test_the_console_has_the_intervals_of_the_scores():
    ages = np.linspace(1, 81, 40)
    report = metrics.age_report(ages, ages + 2).to_dict()
    report |= {"intervals": {"mae": [1.5, 2.5], "mae_1-10": [1.0, 3.0]}, "bootstrap": {"units": "images"}}
    told = "\n".join(door.tell(report))
    lines = [line.split() for line in told.splitlines()]
    assert ["1-10", "5", "2.00", "1.00", "to", "3.00", "+2.00"] in lines and [
        "11-20",
        "5",
        "2.00",
        "-",
        "+2.00",
    ] in lines
    assert told.endswith("\n95 % intervals over images: MAE 1.50 to 2.50")


def test_wrong_calls_say_what_there_is(run, tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        evaluate.evaluate(tmp_path)
    with pytest.raises(InputError, match="known: all, test, train, validation"):
        evaluate.evaluate(run.workdir, split="nothing")
    with pytest.raises(InputError, match=r"no checkpoint of step 77, only \[3\]"):
        evaluate.evaluate(run.workdir, step=77)
    with pytest.raises(InputError, match="not a prepared data set"):
        evaluate.evaluate(run.workdir, tmp_path)


def test_another_crop_contract_is_refused_with_both_unless_it_is_allowed(run, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(run.data.path, other)
    manifest = json.loads((other / "dataset.json").read_text())
    manifest["crop"] = {"align": "eyes", "detector": "by hand"}
    (other / "dataset.json").write_text(json.dumps(manifest))
    words = ["--run", run.workdir, "--data", str(other), "--split", "test"]
    with pytest.raises(
        InputError,
        match=r"there: ready-made crops.*; here: align eyes.*\): .* with --align none, or pass --allow-other-crop",
    ):
        door.main(words)
    door.main([*words, "--allow-other-crop"])
    assert "cut in another way" in capsys.readouterr().out
    report = json.loads((pathlib.Path(run.workdir) / "evaluation" / "other-test" / "report.json").read_text())
    assert report["other_crop_than_training"] and report["crop"] == manifest["crop"]


def test_ready_crops_of_another_data_set_are_a_warning(run, tmp_path, caplog):
    other = tmp_path / "other"
    shutil.copytree(run.data.path, other)
    manifest = json.loads((other / "dataset.json").read_text())
    (other / "dataset.json").write_text(json.dumps({**manifest, "rejected": 1}))
    for path, differs in ((run.data.path, False), (other, True)):
        report, _ = evaluate.evaluate(run.workdir, path, split="test")
        assert report["unknown_crops"] == differs and not report["other_crop_than_training"]
        assert ("it is unknown whether these were cut in the same way" in "\n".join(door.tell(report))) == differs
        assert ("trained on ready-made crops of another data set" in caplog.text) == differs

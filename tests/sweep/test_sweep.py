"""A sweep from its command line to its tables: which setting is surely better, over runs and images."""

import csv
import io
import json
import re
import shutil
import textwrap

import numpy as np
import pytest
from etils import epath

from lae_jax import metrics, sweep
from lae_jax.evaluate import __main__ as evaluation
from lae_jax.report import loading, scores
from lae_jax.runs import fields
from lae_jax.runtime.errors import Diverged, InputError, RunsFailed
from lae_jax.sweep import __main__ as program
from lae_jax.sweep import claims, pooled, verdict_page
from lae_jax.train import config_flag

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
AGES = np.resize(np.arange(1, 82.0), 162)
COUNT = len(AGES)


def write_evaluation(folder, ages, predictions, names, split, people=None, step=9):
    """An evaluation as lae_jax.evaluate leaves it, and the summary of its run if it has none."""
    place = epath.Path(folder) / "evaluation" / f"faces-{split}"
    place.mkdir(parents=True)
    report = {
        **metrics.age_report(ages, predictions).to_dict(), "run": str(folder), "step": step, "stage": "represent",
        "model": "resnet18", "data": "data/faces", "data_hash": "a" * 64, "same_data_as_training": True,
        "split": split, "flip": False, "crop": {"align": "none"}, "audit": "read", "leaks": [],
    }  # fmt: skip
    people = [""] * len(ages) if people is None else people
    lines = [f"{n},{a},{p!r},{i}" for n, a, p, i in zip(names, ages, predictions.tolist(), people, strict=True)]
    (place / "predictions.csv").write_text("\n".join(["name,age,prediction,person", *lines, ""]))
    (place / "report.json").write_text(json.dumps(report))
    if (path := epath.Path(folder) / "summary.json").exists():
        return place
    summary = {"step": 9, "last_step": 9, "stage": "represent", "seconds": 3.0, "scores": None, "selected_by": None}
    path.write_text(json.dumps(summary))
    return place


def made_run(tmp_path, setting, seed, errors, fold=None, names=None, people=None, split="validation"):
    name = f"{setting}-{fold}-{seed}"
    names = [f"{i}.jpg" for i in range(COUNT)] if names is None else names
    place = write_evaluation(tmp_path / name, AGES[: len(errors)], AGES[: len(errors)] + errors, names, split, people)
    return claims.Run(name, setting, seed, fold, (), name, "data/faces", split), loading.read(place)


def easy_and_hard(rng):
    return np.abs(rng.normal(4, 2, COUNT))


def test_the_better_setting_is_named_and_an_equal_one_is_not(tmp_path):
    rng = np.random.default_rng(0)
    hard, found = easy_and_hard(rng), {}
    for setting, of_setting in (("a", 0.0), ("b", 1.5), ("c", 0.02)):
        for seed in range(3):
            errors = hard + of_setting + rng.normal(0, 0.05) + np.abs(rng.normal(0, 0.3, COUNT))
            run, one = made_run(tmp_path, setting, seed, errors)
            found[run] = one
    result = pooled.pool(found, False)
    assert [len(one.trainings) for one in result.settings] == [3, 3, 3] and result.unit == "images"
    told = {(one.setting, one.other): one for one in result.differences if one.score.name == "mae"}
    assert told["a", "b"].verdict == "better" and told["b", "c"].verdict == "worse"
    assert told["a", "c"].verdict == scores.UNCLEAR
    # Paired: images that are hard for all settings do not widen the interval of a difference.
    (mae,) = (score for score in result.shown if score.name == "mae")
    alone = result.settings[0].estimate(mae)
    width = told["a", "b"].value.high - told["a", "b"].value.low
    assert width < 0.5 * (alone.high - alone.low)
    of_seeds = [one.report["mae"] for run, one in found.items() if run.setting == "a"]
    assert alone.value == pytest.approx(np.mean(of_seeds)) and alone.spread == pytest.approx(np.std(of_seeds, ddof=1))
    sentences = verdict_page.sentences(result)
    assert "a is surely better than b in MAE." in sentences and "c is surely better than b in MAE." in sentences
    assert "for 6 comparisons" in sentences[0]  # three pairs, MAE and sigma


def test_of_many_settings_only_the_one_with_the_lowest_score_has_a_sentence(tmp_path):
    rng = np.random.default_rng(0)
    hard, found = easy_and_hard(rng), {}
    for setting, of_setting in (("a", 0.0), ("b", 1.5), ("c", 0.001), ("d", 2.0), ("e", 2.5)):
        for seed in range(3):
            errors = hard + of_setting + rng.normal(0, 0.05) + np.abs(rng.normal(0, 0.3, COUNT))
            run, one = made_run(tmp_path, setting, seed, errors)
            found[run] = one
    (mae,) = (line for line in verdict_page.sentences(pooled.pool(found, False)) if line.startswith("MAE"))
    assert re.fullmatch(
        r"MAE is lowest for ([ac]) \(.*\)\. After Holm's correction for 20 comparisons, this setting is surely better"
        r" than 3 of the 4 others and not distinguishable from (?!\1)[ac]\. The table of differences has all pairs\.",
        mae,
    ), mae


def test_the_p_values_are_corrected_for_all_pairs_and_scores(tmp_path):
    rng = np.random.default_rng(3)
    hard = easy_and_hard(rng)
    found = dict(
        made_run(tmp_path, name, 0, hard + add + rng.normal(0, 1, COUNT)) for name, add in (("a", 0), ("b", 0.2))
    )
    result = pooled.pool(found, False)
    from lae_jax.report import bootstrap

    single = []
    for score in (each.score for each in result.differences):
        (a, of_a), (b, of_b) = (pooled._stacked([*one.trainings.values()], score) for one in result.settings)
        single.append(bootstrap.joint(a - b, of_a - of_b, COUNT).p)
    assert [one.p for one in result.differences] == bootstrap.holm(np.array(single)).tolist()
    assert max(one.p for one in result.differences) > min(single)


def folds_of(tmp_path, setting, seed, shift, rng, count=4, people=None):
    size = 40
    for fold in range(count):
        errors = 5 + shift[fold] + np.abs(rng.normal(0, 1, size))
        names = [f"{fold}-{i}.jpg" for i in range(size)]
        yield made_run(tmp_path, setting, seed, errors, fold, names, people, f"fold{fold}-validation")


def test_folds_are_scored_together_over_all_their_predictions(tmp_path):
    rng, found = np.random.default_rng(1), {}
    for seed in (0, 1):
        found.update(folds_of(tmp_path, "a", seed, [0, 1, 2, 3], rng, people=np.arange(40) // 2))
    result = pooled.pool(found, False)
    (setting,) = result.settings
    assert set(setting.trainings) == {0, 1} and result.images == 160 and result.unit == "people"
    assert setting.units == 80  # people of two folds are not one
    for seed in (0, 1):
        parts = [one.sample for run, one in found.items() if run.seed == seed]
        report = metrics.age_report(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("ages", "predictions")))
        assert setting.trainings[seed].values["sigma"] == pytest.approx(report.sigma, nan_ok=True)
        assert setting.trainings[seed].values["mae"] == pytest.approx(report.mae)


def test_the_folds_of_one_seed_are_drawn_in_place_of_images(tmp_path):
    rng = np.random.default_rng(2)
    shift = [0.0, 1.0, 2.0, 3.0, 4.0]
    found = dict(folds_of(tmp_path, "a", 0, shift, rng, count=5))
    result = pooled.pool(found, False)
    (mae,) = (score for score in result.shown if score.name == "mae")
    estimate = result.settings[0].estimate(mae)
    from scipy import stats

    means = np.array([one.report["mae"] for one in found.values()])
    half = stats.t.ppf(0.975, 4) * means.std(ddof=1) / np.sqrt(5)
    assert result.unit == "folds" and (estimate.high - estimate.low) / 2 == pytest.approx(half, rel=0.1)


def test_with_few_folds_and_without_an_age_group_nothing_is_sure(tmp_path):
    rng = np.random.default_rng(2)
    found = dict(each for name in "ab" for each in folds_of(tmp_path, name, 0, [0.0, 1.0], rng, count=2))
    result = pooled.pool(found, False)
    assert result.missing == ["41-50", "51-60", "61-70", "71-81"]  # 40 images a fold, of ages 1 to 40
    (line,) = verdict_page.sentences(result)  # sigma is undefined
    assert line.startswith("MAE is lowest for ") and line.endswith("; too few folds to say whether that is sure.")
    for one in found.values():
        one.report["constant"] = {"age": 20.0, "mae": 3.0, "difference": [1.0, 2.0]}
    page, _ = verdict_page.made(found, result, {}, [])
    (poor,) = [one for one in page.warnings if "not better than one age" in one]
    assert poor.endswith("for everyone: 4 of 4 runs (a-0-0, a-1-0, b-0-0, b-1-0)")
    assert sum("sigma and AAR are undefined: no image of age 41-50, 51-60" in one for one in page.warnings) == 1


def test_on_a_test_split_each_model_of_a_fold_is_a_training(tmp_path):
    rng = np.random.default_rng(2)
    found = dict(made_run(tmp_path, "a", 0, rng.normal(0, 3, COUNT), fold, split="test") for fold in range(3))
    result = pooled.pool(found, True)
    assert set(result.settings[0].trainings) == {(0, 0), (1, 0), (2, 0)} and result.images == COUNT


def test_a_seed_without_all_folds_does_not_count(tmp_path):
    rng, found = np.random.default_rng(1), {}
    for seed in (0, 1):
        found.update(folds_of(tmp_path, "a", seed, [0, 1, 2, 3], rng))
    missing = next(run for run in found if (run.seed, run.fold) == (1, 2))
    del found[missing]
    result = pooled.pool(found, False)
    assert set(result.settings[0].trainings) == {0} and sorted(result.incomplete) == ["a-0-1", "a-1-1", "a-3-1"]


def test_evaluations_of_other_images_are_not_joined(tmp_path):
    rng = np.random.default_rng(0)
    one = made_run(tmp_path, "a", 0, rng.normal(0, 3, COUNT))
    other = made_run(tmp_path, "b", 0, rng.normal(0, 3, COUNT), names=[f"{i}.png" for i in range(COUNT)])
    with pytest.raises(InputError, match="hold different images"):
        pooled.pool(dict([one, other]), False)
    other[1].report["data_hash"] = "b" * 64
    with pytest.raises(InputError, match="different data sets.*changed while the sweep"):
        pooled.pool(dict([one, other]), False)
    shared = [made_run(tmp_path, "c", 0, rng.normal(0, 3, COUNT), fold) for fold in range(2)]
    with pytest.raises(InputError, match="share images"):
        pooled.pool(dict(shared), False)


@pytest.fixture
def trainer(monkeypatch):
    """Stands in for the processes: writes the run that a command line describes; `calls` has the runs' names."""
    calls, status = [], {}

    def call(words, log, signals):
        if words[0] != "lae_jax.main":
            raise AssertionError(words)
        config = config_flag.read([word for word in words[1:] if word.startswith("--config")])
        workdir = epath.Path(config.workdir)
        calls.append(workdir.name)
        if ending := status.get(workdir.name):
            log.write_text("a line\ndiverged: the loss is not finite\n\n")
            return ending
        fields.claim_folder(workdir, config)
        rng = np.random.default_rng(config.seed)
        errors = (
            np.abs(np.random.default_rng(0).normal(4, 2, COUNT)) + config.loss.er_weight + rng.normal(0, 0.1, COUNT)
        )
        write_evaluation(workdir, AGES, AGES + errors, [f"{i}.jpg" for i in range(COUNT)], config.data.split)
        return 0

    monkeypatch.setattr(claims, "_call", call)
    call.calls, call.status = calls, status
    return call


def words(drawn, out, *more):
    data = f"--set=config.data.path={drawn}"
    fixed = ["--config", "represent", "--set", "init_from=scratch", "--set", "loss.er_weight=0,1", data]
    return [*fixed, "--seeds", "3", "4", "--out", str(out), *more]


def test_the_program_trains_all_runs_and_writes_tables_and_the_page(drawn, tmp_path, trainer, capsys):
    out = tmp_path / "out"
    program.main(words(drawn, out))
    told = capsys.readouterr().out
    assert trainer.calls == [f"er_weight={w}-seed{s}" for s in (3, 4) for w in (0, 1)]
    assert "er_weight=0 is surely better than er_weight=1 in MAE." in told and "±" in told
    rows = list(csv.DictReader(io.StringIO((out / "table.csv").read_text())))
    assert [row["setting"] for row in rows] == ["er_weight=0", "er_weight=1"]
    assert float(rows[0]["MAE low"]) < float(rows[0]["MAE"]) < float(rows[0]["MAE high"])
    assert float(rows[0]["MAE spread"]) > 0 and rows[0]["trainings"] == "2"
    runs = list(csv.DictReader(io.StringIO((out / "runs.csv").read_text())))
    assert [row["run"] for row in runs] == trainer.calls
    assert np.mean([float(row["MAE"]) for row in runs if row["setting"] == "er_weight=0"]) == pytest.approx(
        float(rows[0]["MAE"]), abs=2e-3
    )
    differences = list(csv.DictReader(io.StringIO((out / "differences.csv").read_text())))
    assert differences[0]["verdict"] == "better" and differences[0]["corrected p"] == "< 0.001"
    page = (out / "report.html").read_text()
    assert "surely better than" in page and "--config.loss.er_weight=1" in page
    assert "\\begin{tabular}" in (out / "table.tex").read_text() and "| setting |" in (out / "table.md").read_text()
    # The same command trains nothing and makes the tables again.
    before = (out / "table.csv").read_text()
    (out / "table.csv").unlink()
    program.main(words(drawn, out))
    assert len(trainer.calls) == 4 and (out / "table.csv").read_text() == before
    # A sweep grows.
    program.main([*words(drawn, out), "--seeds", "3", "4", "5"])
    assert len(trainer.calls) == 6 and '"er_weight=0-seed5"' in (out / "sweep.json").read_text()


def test_tasks_of_an_array_share_the_runs_and_the_last_one_writes(drawn, tmp_path, trainer):
    out = tmp_path / "out"
    program.main(words(drawn, out, "--only", "2/3"))
    assert trainer.calls == ["er_weight=1-seed3"] and not (out / "report.html").exists()
    program.main(words(drawn, out, "--only", "3/3"))
    program.main(words(drawn, out, "--only", "1/3"))
    assert len(trainer.calls) == 4 == len({*trainer.calls}) and (out / "report.html").exists()


def test_runs_that_fail_are_on_the_page_and_decide_the_status(drawn, tmp_path, trainer):
    out = tmp_path / "out"
    trainer.status["er_weight=0-seed4"] = 3
    with pytest.raises(Diverged, match="1 run failed .er_weight=0-seed4: diverged: the loss is not finite.: read"):
        program.main(words(drawn, out))
    assert "er_weight=0-seed4 failed with status 3: diverged" in (out / "report.html").read_text()
    (row, _) = csv.DictReader(io.StringIO((out / "table.csv").read_text()))
    assert row["trainings"] == "1"
    trainer.status["er_weight=1-seed4"] = 134
    shutil.rmtree(out / "runs" / "er_weight=1-seed4")
    with pytest.raises(RunsFailed, match="2 runs failed"):
        program.main(words(drawn, out))
    trainer.status.clear()
    program.main(words(drawn, out))
    assert "failed with status" not in (out / "report.html").read_text()


@pytest.mark.parametrize(("more", "message"), [
    (["--only", "4/3"], "--only 4/3"),
    (["--only", "x"], "--only x: write I/N"),
    (["--fold", "all", "1"], "--fold: name numbers, or all"),
    (["--set", "epochs"], "--set epochs: write FIELD=VALUE"),
    (["--set", "epochs=1", "--set", "epochs=2"], "names a field twice"),
    (["--split", "tset"], "unknown split 'tset'; did you mean 'test'"),
    (["--seed", "3"], "unknown flag --seed; did you mean --seeds"),
])  # fmt: skip
def test_a_wrong_command_is_refused_and_trains_nothing(drawn, tmp_path, trainer, more, message):
    with pytest.raises(InputError, match=message):
        program.main(words(drawn, tmp_path / "out", *more))
    assert not trainer.calls and not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_refused(drawn, tmp_path, trainer):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        program.main(words(drawn, tmp_path))
    with pytest.raises(InputError, match="local disk or a mount"):
        sweep.sweep("represent", "gs://bucket/out")


def test_a_run_of_the_real_trainer_is_done_and_only_evaluated(drawn, trained, tmp_path, monkeypatch):
    (tmp_path / "tiny.py").write_text(
        textwrap.dedent(f"""
        from lae_jax.configs import represent
        def get_config():
            c = represent.get_config()
            c.data.path, c.data.image_size, c.data.threads = {str(drawn)!r}, 24, 2
            c.model.name, c.model.embedding_size, c.init_from = "efficientnet_v2_pico", 16, "scratch"
            c.batch_size, c.eval_batch_size, c.epochs, c.log_steps = 32, 32, 1.0, 1
            c.optim.milestones = (1,)
            return c
        """)
    )
    shutil.copytree(trained("represent"), tmp_path / "out" / "runs" / "tiny-seed0")
    (tmp_path / "out" / "sweep.json").write_text("{}")
    commands = []

    def call(words, log, signals):
        args = evaluation.parse_args(list(words[1:]))
        commands.append((words[0], args.split))
        step = json.loads((epath.Path(args.run) / "summary.json").read_text())["step"]
        write_evaluation(args.run, AGES, AGES + 3, [f"{i}.jpg" for i in range(COUNT)], args.split, step=step)
        return 0

    monkeypatch.setattr(claims, "_call", call)
    made, tables = sweep.sweep(str(tmp_path / "tiny.py"), tmp_path / "out", split="test")
    assert commands == [("lae_jax.evaluate", "test")]  # the run itself is done
    (row,) = tables["table"].rows
    assert row[:2] == ("tiny", "1") and row[2].is_known and made.verdict[0].startswith("MAE of tiny: ")
    sweep.sweep(str(tmp_path / "tiny.py"), tmp_path / "out", split="test")
    assert len(commands) == 1

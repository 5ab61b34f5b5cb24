"""Ranges as labels, from the table to the report: some ages of a data set are ranges, and every program knows it."""

import csv
import json
import logging
import shutil

import numpy as np
import pytest
from etils import epath
from sources import make_source, run

from lae_jax import evaluate, metrics, report
from lae_jax.audit import saved as audited
from lae_jax.data import records, sampling
from lae_jax.evaluate import __main__ as door
from lae_jax.evaluate import measure
from lae_jax.longtail import compare, extraction, setup
from lae_jax.prepare import sheets
from lae_jax.report import loading
from lae_jax.runs import calibration, distributions, lineage
from lae_jax.runtime import checkpoints
from lae_jax.runtime.errors import InputError
from lae_jax.stages import methods
from lae_jax.train import early, loop
from lae_jax.train.plan import make_plan

LABELS = ("0-2", "03-Sep", "10-19", "34", "(25, 32)", "40 - 49", "more than 70", "81")
RANGES = ((0, 2), (3, 9), (10, 19), (34, 34), (25, 32), (40, 49), (70, 100), (81, 81))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """96 pictures: each label twelve times, of which eight are trained on and four validate."""
    folder = tmp_path_factory.mktemp("mixed")
    rows = [
        (f"{i}.png", f'"{LABELS[i % 8]}"', f"p{i},{'validation' if i % 24 < 8 else 'train'},{'fm'[i % 2]}")
        for i in range(96)
    ]
    table = make_source(folder / "source", rows, "path,age,identity,split,sex")
    run(folder / "faces", "--source", table, "--size", 32, "--shards", 1)
    return folder / "faces"


@pytest.fixture(scope="module")
def configs(mixed, make_config, tmp_path_factory):
    """(stage, name) -> a config of a run on these, of three steps of 32."""
    folder = tmp_path_factory.mktemp("runs")

    def config(stage, name=""):
        c = make_config(stage, folder)
        c.data.path = str(mixed)
        c.select_images = 4
        c.workdir += name
        return c

    return config


@pytest.fixture(scope="module")
def trained_on_ranges(configs):
    """Folders of a run of stage 2 and of stage 3."""
    for stage in ("represent", "classify"):
        loop.train(configs(stage))
    return [epath.Path(configs(stage).workdir) for stage in ("represent", "classify")]


def test_a_table_with_ranges_is_prepared_and_told(mixed, monkeypatch):
    dataset = records.open_dataset(mixed)
    order = np.argsort([int(name.split(".")[0]) for name in dataset.column("name")])
    np.testing.assert_array_equal(dataset.age_ranges()[order], RANGES * 12)
    assert np.isnan(dataset.column("age")).sum() == 72
    assert dataset.targets("age", dataset.rows("train")).shape == (64, 2)
    exact = order[3::8]
    assert dataset.targets("age", exact).tolist() == [34.0] * 12
    table = " ".join(sheets.table(dataset)).split()
    assert table[table.index("21-30") + 1 :][:2] == ["8", "4"]  # 25-32, whose middle is 28.5
    assert "--config configs/represent.py" in audited.next_commands(dataset, "faces")[0]
    monkeypatch.setattr(sheets, "_sheet", lambda tiles, *_: [text for _, (text,) in tiles])
    assert {*sheets._crops(dataset)} == {"0-2", "3-9", "10-19", "34", "25-32", "40-49", "70+", "81"}


def test_a_run_on_ranges_is_scored_by_the_distance_and_hands_it_over(trained_on_ranges):
    represent, classify = trained_on_ranges
    lines = [json.loads(line) for line in (represent / "metrics.jsonl").read_text().splitlines()]
    (scored,) = (line for line in lines if line["kind"] == "validation")
    summary = json.loads((represent / "summary.json").read_text())
    assert (scored["n"], scored["n_exact"]) == (32, 8) and summary["selected_by"] == "distance"
    assert scored["distance"] == summary["scores"]["distance"] > 0 and 0 <= scored["in_range"] <= 1
    meta = checkpoints.load_run(classify).meta
    assert meta["constants"]["mae"] == summary["scores"]["distance"]
    assert meta["selected_by"].startswith("mean error of the age groups 1-10, 11-20, 21-30")


def test_an_evaluation_of_ranges_agrees_with_its_predictions(trained_on_ranges, mixed, capsys):
    folder = trained_on_ranges[1]
    args = ["--run", str(folder), "--threshold", "18", "--slice", "sex", "--show-faces", "--calibrate"]
    door.main(args)
    told = capsys.readouterr().out
    place = folder / "evaluation" / "faces-validation"
    found = json.loads((place / "report.json").read_text())
    rows = list(csv.DictReader((place / "predictions.csv").read_text().splitlines()))
    ranges = np.array([[float(row[name]) for name in ("age_low", "age_high")] for row in rows])
    predictions = np.array([float(row["prediction"]) for row in rows])
    assert sorted({*map(tuple, ranges)}) == sorted(RANGES)
    assert {row["age"] for row in rows} == {"", "34.0", "81.0"}
    for name, value in metrics.range_report(ranges, predictions).to_dict().items():
        assert found[name] == value, name
    assert [(one["range"], one["n"]) for one in found["ranges"]] == [
        (name, 4) for name in ("0-2", "3-9", "10-19", "25-32", "40-49", "70+")
    ]
    # The constant of the smallest mean distance.
    grid = np.arange(0, 100.5, 0.5)
    by_hand = [np.abs(metrics.range_differences(ranges, np.full(32, one))).mean() for one in grid]
    assert found["constant"]["distance"] == pytest.approx(min(by_hand))
    # The temperature has the highest likelihood of the ranges, among others near it.
    temperature = calibration.read_temperature(folder, found["step"])
    assert found["interval"]["temperature"] == temperature
    below, up_to = (np.array([float(row[name]) for row in rows]) for name in ("below", "up_to"))
    exact = ranges[:, 0] == ranges[:, 1]
    assert (up_to[exact] == below[exact]).all() and (up_to[~exact] > below[~exact]).all()
    held = metrics.coverage(below, up_to, [found["interval"]["level"]])[0]
    assert found["interval"]["coverage"] == pytest.approx(held)
    text = (place / "report.html").read_text()
    for part in (
        "years from the range of the label on average", "of the 8 exact ages it is wrong by", "Predictions by range",
        "8 images with an exact age", "By sex", "By range", "4 of the 32 images are left out: 18 lies in the range",
        "in range", "share in range",
    ):  # fmt: skip
        assert part in text, part
    assert "of the 8 images with an exact age:" in told and "70+" in told and "AAR" in told
    assert loading.read(place).coverage([0.5])[0] == pytest.approx(metrics.coverage(below, up_to, [0.5])[0])


def test_runs_on_ranges_are_compared_by_the_distance(trained_on_ranges, tmp_path):
    for run_of in trained_on_ranges:
        evaluate.evaluate(run_of)
    page, table = report.compare(trained_on_ranges, tmp_path / "out")
    assert ["run", "distance", "distance 1-10"] == [*table.header][:3] and "MAE 31-40" in table.header
    assert "Lowest distance:" in page.verdict[0] and "highest in range:" in page.verdict[0]
    assert "distance " in page.verdict[1] and "MAE " in page.verdict[1]


def test_the_card_has_the_scores_of_ranges(trained_on_ranges):
    """Of the training and of the evaluation, as an export has them too."""
    folder = trained_on_ranges[0]
    report, place = evaluate.evaluate(folder)
    for text in ((place / "model_card.md").read_text(), lineage.run_card(folder)[0]):
        assert text.count("| age group | images | distance | bias |") == 2
        assert f"distance to the range {report['distance']:.2f} years" in text and "8 of them with an exact age" in text
        assert "| 25-32 | 4 | " in text and "MAE of the exact ages" in text


def test_a_range_in_predictions_that_was_changed_is_told(trained_on_ranges, tmp_path):
    folder = shutil.copytree(trained_on_ranges[0], tmp_path / "run") / "evaluation" / "faces-validation"
    path = folder / "predictions.csv"
    path.write_text(path.read_text().replace("0.0,2.0", "0.0,72.0", 1))
    with pytest.raises(InputError, match="in report.json is not that of predictions.csv"):
        loading.read(folder)


def test_what_cannot_take_ranges_says_so(configs, trained_on_ranges, mixed, tmp_path):
    config = configs("classify", "-mse")
    config.classify.method, config.classify.setting = "balanced_mse", 2.0
    with pytest.raises(
        InputError, match=r"'balanced_mse' needs exact ages, and in .* some are ranges: use one of lae, "
    ):
        make_plan(config)
    config.classify.method = "c_mixup"
    with pytest.raises(InputError, match="'c_mixup' needs exact ages"):
        make_plan(config)
    with pytest.raises(
        InputError, match=r"--methods balanced_mse: each needs exact ages, and in .* use any of stage2,"
    ):
        compare([trained_on_ranges[0]], mixed, tmp_path / "bench", test="", methods=["lae", "balanced_mse"])
    with pytest.raises(InputError, match="--spread width: in split validation of .* write --spread MEAN,STD"):
        evaluate.evaluate(trained_on_ranges[0], spread="width")
    config = configs("represent", "-other")
    config.loss.in_range = "models"
    for check in (early.check_names, make_plan):
        with pytest.raises(
            InputError, match="config.loss.in_range: unknown distribution 'models'; did you mean 'model'"
        ):
            check(config)


def test_exact_ages_in_the_form_of_ranges_are_drawn_as_exact_ages():
    ages = np.random.default_rng(0).integers(1, 82, 300).astype(np.float64)
    ages[::7] += 0.4
    for power in (0.0, 0.5):
        order = sampling.balanced_ages(np.stack([ages, ages], axis=1), 16, 3, power)
        exact = sampling.balanced_ages(ages, 16, 3, power)
        classes = sampling.class_balanced(metrics.age_class(ages), 16, 3, power)
        for step in (0, 5):
            np.testing.assert_array_equal(order(step).numpy(), exact(step).numpy())
            np.testing.assert_array_equal(order(step).numpy(), classes(step).numpy())


def test_the_bench_takes_ranges_as_stage_3_does(configs, trained_on_ranges, mixed, tmp_path, caplog, monkeypatch):
    """The same order, counts and mae as in training; distances as an evaluation has them, and so they are called."""
    plan = make_plan(configs("classify"))
    extractor = extraction.open_run(trained_on_ranges[0], mixed, tmp_path)
    made = setup.prepare(extractor, plan.config, 0, "", False)
    orders = made.bench.orders("class_balanced", 0.0, (plan.config.seed,))
    np.testing.assert_array_equal(orders[0], [plan.order(step).numpy() for step in range(plan.durations.total)])
    assert made.bench.mae == plan.constants["mae"] and len(orders[0]) == 2
    for name in ("counts", "smoothed"):
        np.testing.assert_array_equal(made.bench.constants[name], plan.constants[name])

    how = {"test": "", "passes": 0, "seeds": 1, "base_learning_rates": 0.01, "epochs": 0.5}
    found = compare(trained_on_ranges[0], mixed, tmp_path / "out", methods=["stage2", "lae", "crt"], **how)
    assert found["error"] == "distance" and {"lowest distance", "lowest sigma of the distances"} < {*found["sentences"]}
    assert "on validation distance " in found["sentences"]["lowest distance"]
    real = measure.predict(checkpoints.load_run(trained_on_ranges[0])).scores()
    page, table = report.compare([tmp_path / "out"], tmp_path / "page")
    assert [*table.header][2:6] == ["distance", "sigma of the distances", "mean group distance", "1-10"]
    assert "distance - lae, joint" in table.header and "distance of the head groups" in page.sections[1].pictures[0].svg
    with (tmp_path / "out" / "table.csv").open() as file:
        row = next(csv.DictReader(file))
    assert row["method"] == "stage2" and float(row["distance"]) == pytest.approx(real["distance"], rel=1e-4)
    np.testing.assert_allclose([float(row[f"distance_{g}"] or "nan") for g in metrics.GROUPS],
                               [np.nan if v is None else v for v in real["group_distance"]], rtol=1e-3)  # fmt: skip
    assert "mae" not in row and "aar_2021" not in row
    monkeypatch.setattr(logging.getLogger("lae_jax"), "propagate", True)
    with caplog.at_level("INFO"):
        chosen = {method.name for method in setup.methods_for(extractor.dataset, ["train"], [])}
    left = {"feature_calibration", "balanced_mse", "c_mixup", "two_layers_c_mixup"}
    assert chosen == {*methods.METHODS} - left and ", ".join(n for n in methods.METHODS if n in left) in caplog.text


def test_weights_of_stage_3s_methods_are_means_over_the_range(configs, trained_on_ranges):
    config = configs("classify", "-inverse")
    config.classify.method = "inverse"
    found = make_plan(config).constants["counts"]
    np.testing.assert_allclose(found.sum(), 64, rtol=1e-6)
    np.testing.assert_allclose(found[[0, 3, 34, 81]], [8 / 3, 8 / 7, 8, 8 + 8 * tail(81)], rtol=1e-6)
    assert found[24] == 0


def tail(age):
    """Share of an age in '70 and above'."""
    people = 0.5 ** (np.arange(31) / 5)
    return people[age - 70] / people.sum()


def test_a_temperature_of_ranges_is_that_of_the_highest_likelihood():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (400, 101))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    warm = distributions.tempered(probabilities, 2.0)
    ages = np.array([rng.choice(101, p=p) for p in warm])
    ranges = np.stack([ages // 10 * 10, ages // 10 * 10 + 9], axis=1).astype(float)
    ranges[::4] = ages[::4, None]

    def likelihood(temperature):
        p = distributions.tempered(probabilities, temperature)
        return np.mean(
            [np.log(row[int(low) : int(high) + 1].sum()) for row, (low, high) in zip(p, ranges, strict=True)]
        )

    found = distributions.fit_temperature(probabilities, ranges)
    best = max(np.geomspace(0.5, 8, 200), key=likelihood)
    assert found == pytest.approx(best, rel=0.02) and found == pytest.approx(2.0, rel=0.2)
    exact = distributions.fit_temperature(probabilities, ages)
    assert distributions.fit_temperature(probabilities, np.stack([ages, ages], axis=1)) == pytest.approx(
        exact, rel=1e-6
    )
    # Calibrated distributions hold of ranges what they hold of ages.
    below, up_to = distributions.ends(warm, ranges)
    held = metrics.coverage(below, up_to, [0.5, 0.9])
    assert held == pytest.approx([0.5, 0.9], abs=0.04)


def test_cures_that_need_exact_ages_are_refused_on_ranges(configs):
    config = configs("represent", "-cured")
    config.cure.name = "lds+fds+conr"
    with pytest.raises(InputError, match="fds, conr needs exact ages, and in .* some are ranges: use lds, dist_loss"):
        make_plan(config)
    config.cure.name = "lds+dist_loss"
    assert make_plan(config).stage.cure.names == ("lds", "dist_loss")

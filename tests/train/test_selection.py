"""The kept checkpoint: selected by scores of enough images, else the newest; the log and the summary say why."""

import json

import numpy as np
import pytest

from lae_jax import metrics, stages
from lae_jax.train import loop

GROUPS = np.array([5.0, 15, 25, 35, 45, 55, 65, 75])


@pytest.mark.parametrize(
    ("counts", "images", "score", "value"),
    [
        ([30] * 8, 30, "mae_plus_sigma", 9.5),
        ([1] * 8, 1, "mae_plus_sigma", 9.5),
        ([29] + [30] * 7, 30, "mean error of the age groups 11-20, 21-30, 31-40, 41-50, 51-60, 61-70, 71-81", 5.0),
        ([0] + [1] * 7, 1, "mean error of the age groups 11-20, 21-30, 31-40, 41-50, 51-60, 61-70, 71-81", 5.0),
        ([0, 0, 40, 30, 29, 5, 1, 1], 30, "mean error of the age groups 21-30, 31-40", 3.5),
        ([0, 0, 400, 29, 29, 5, 1, 1], 30, None, None),
        ([29] * 8, 30, None, None),
    ],
)
def test_stage_3_selects_by_scores_of_enough_images(counts, images, score, value):
    selection = stages.CLASSIFY.select(np.concatenate([np.repeat(GROUPS, counts), [0.0, 90.0]]), images)
    scores = {"mae": 4.0, "mae_plus_sigma": 9.5, "group_mae": [9.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]}
    assert (selection.score, selection.value(scores)) == (score, value)
    if score == "mae_plus_sigma":
        assert selection.because == f"each of the eight age groups has at least {images} validation images"
    else:
        place = int(np.argmin(counts))
        group = f"{metrics.GROUPS[place]} ({counts[place]})"
        assert selection.because.startswith(f"these age groups have fewer than {images} validation images: ")
        assert group in selection.because


def test_runs_on_ranges_select_by_the_distance():
    ranges = np.repeat(np.stack([GROUPS - 4, GROUPS + 4], axis=1), 30, axis=0)
    scores = {"distance": 4.0, "distance_plus_sigma": 9.5, "group_distance": [9.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]}
    assert stages.REPRESENT.select(ranges, 30).value(scores) == 4
    chosen = stages.CLASSIFY.select(ranges, 30)
    assert (chosen.score, chosen.value(scores)) == ("distance_plus_sigma", 9.5)
    assert stages.CLASSIFY.select(ranges[30:], 30).value(scores) == 5


@pytest.mark.parametrize(("count", "score"), [(30, "mae"), (29, None)])
def test_stage_2_selects_by_the_mae_of_enough_images(count, score):
    selection = stages.REPRESENT.select(np.full(count, 25.0), 30)
    assert (
        selection.score == score and selection.because == f"there are {count} validation images and select_images is 30"
    )
    assert selection.value({"mae": 4.0}) == (4.0 if score else None)
    assert stages.PRETRAIN.select(np.array(["a", "a", "b"]), 30).score is None


def test_a_run_keeps_the_newest_checkpoint_where_scores_are_of_few_images(small_config, trained, monkeypatch, caplog):
    config = small_config("represent")
    config.epochs = 2.0
    maes = iter([1.0, 2.0] * 2)
    scores = json.loads((trained("represent") / "summary.json").read_text())["scores"]
    monkeypatch.setattr(loop._Loop, "evaluate", lambda *_: scores | {"mae": next(maes)})
    kept = {}
    for images in (64, 65):  # of 64 validation images
        config.select_images, config.workdir = images, f"{config.workdir}_{images}"
        with caplog.at_level("INFO"):
            kept[images] = loop.train(config)
        assert f"there are 64 validation images and select_images is {images}" in caplog.text
    assert (kept[64]["step"], kept[64]["selected_by"]) == (3, "mae")
    assert (kept[65]["step"], kept[65]["selected_by"]) == (6, None)
    assert kept[65]["selected_because"] == "there are 64 validation images and select_images is 65"
    assert "the checkpoint with the lowest mae is kept" in caplog.text
    assert "the newest checkpoint is kept" in caplog.text

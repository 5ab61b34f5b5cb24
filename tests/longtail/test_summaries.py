"""Tables and sentences of the bench: choices are validation's, and differences are told with what is certain."""

import dataclasses

import numpy as np
import pytest

from lae_jax.longtail import summaries
from lae_jax.longtail.outcomes import Labels, Trial
from lae_jax.stages.methods import METHODS


def labels(ages):
    return Labels(ages, np.arange(len(ages)), np.full(len(ages), -1))


def trial(name, ages, validation, test, setting=0.0):
    """A trial whose predictions are the ages + shifts (runs, seeds); of ranges, from their upper ends."""
    last = ages if ages.ndim == 1 else ages[:, 1]
    shifts = {"validation": validation, "test": test}
    predictions = {split: [last[None] + np.asarray(of_run)[:, None] for of_run in of] for split, of in shifts.items()}
    same = labels(ages)
    return Trial(METHODS[name], setting, 1.0, 0, {s: [same] * len(of) for s, of in shifts.items()}, predictions)


def sentences(all_trials):
    return summaries.sentences(all_trials, summaries.compared(all_trials))


def one_try(name, validation, test, seeds, setting=0.0):
    """Predictions whose eight groups all have the error given: MAE is it, sigma 0."""
    ages = np.arange(1, 82, dtype=float)
    return trial(name, ages, *(np.resize(x, (len(test) // seeds, seeds)) for x in (validation, test)), setting)


def test_validation_chooses_and_test_is_only_told():
    all_trials = [
        one_try("lae", [5.0, 5.2], [4.0, 4.2], 2),
        one_try("lae_power", [4.0, 4.0], [9.0, 9.2], 2, 0.25),
        one_try("lae_power", [4.5, 4.5], [1.0, 1.0], 2, 0.5),
    ]
    assert summaries.choose(all_trials, "lowest MAE") is all_trials[1]
    assert summaries.best_of_each(all_trials) == all_trials[:2]
    told = sentences(all_trials)["lowest MAE"]
    sentences_before = sentences(all_trials)
    assert "use lae_power, power 0.25 (base_learning_rate 1): its expected MAE (from validation) is 4.00 ± 0.00" in told
    assert "; on test MAE 9.10 ± 0.14" in told
    over = "joint 95 % intervals over 2 seeds of one backbone and 81 images, nothing about other backbones"
    over += "; verdicts after Holm's correction for 2 differences"
    assert f"Difference to lae on test ({over}): MAE +5.00 (+5.00 to +5.00), higher; sigma +0.00 (" in told
    assert told.endswith("), not distinguishable.")
    # What is named does not depend on the errors of test.
    for one in all_trials:
        one.predictions["test"] = [80 - predicted for predicted in one.predictions["test"]]
    again = [Trial(*(getattr(one, f.name) for f in dataclasses.fields(Trial))) for one in all_trials]
    for aim, sentence in sentences(again).items():
        assert sentence.partition("on test")[0] == sentences_before[aim].partition("on test")[0], aim


def made(name, error, of_children, of_test=None):
    """A try whose errors are those of children and of all others, of two seeds; a validation split of few children
    and, with `of_test` children, a test split of its own."""

    def split(children):
        ages = np.concatenate([np.tile(np.arange(1, 11.0), children), np.tile(np.arange(11, 82.0), 20)])
        return labels(ages), [
            np.stack([ages + np.where(ages < 11, of_children, error) + shift for shift in (0.0, 0.1)])
        ]

    both = {"validation": split(1), "test": split(1 if of_test is None else of_test)}
    return Trial(
        METHODS[name], 0.0, 1.0, 0, {n: [one] for n, (one, _) in both.items()}, {n: p for n, (_, p) in both.items()}
    )


def test_an_improvement_is_worse_in_nothing():
    lae, even, dear = made("lae", 3.0, 9.0), made("crt", 3.0, 6.0), made("inverse", 5.0, 5.0)
    told = sentences([lae, even, dear])["improvement"]
    assert "crt has the lowest expected MAE + sigma" in told and told.count(", lower") == 2
    assert "Holm's correction for 4 differences): MAE -" in told
    assert "No other method has an expected MAE and an" in sentences([lae, dear])["improvement"]
    assert "It is unknown" in sentences([even, dear])["improvement"]


def test_the_choice_is_for_the_groups_of_the_test_split():
    """What costs the frequent ages a little and gives the children much is chosen where the children count."""
    dear, cheap = (made(name, *errors, 20) for name, errors in (("crt", (3.5, 5.0)), ("lae", (3.2, 9.0))))
    assert summaries.choose([dear, cheap], "lowest MAE") is dear
    assert dear.mean("validation", "mae") > cheap.mean("validation", "mae")
    for one in (dear, cheap):
        assert one.mean("expected", "mae") == pytest.approx(one.mean("test", "mae"))
        assert one.mean("expected", "sigma") == pytest.approx(one.mean("test", "sigma"))
    few = [made(name, *errors, 1) for name, errors in (("crt", (3.5, 5.0)), ("lae", (3.2, 9.0)))]
    assert summaries.choose(few, "lowest MAE") is few[1]


def test_pairs_are_seeds_of_one_run_and_means_of_several():
    one, other = one_try("lae", [1.0], [5.0, 6.0, 7.0], 3), one_try("crt", [1.0], [4.0, 5.5, 5.0], 3)
    mean, half = summaries.paired(one, other, "test", "mae")
    differences = np.array([1.0, 0.5, 2.0])
    assert mean == pytest.approx(differences.mean())
    assert half == pytest.approx(4.30265 * differences.std(ddof=1) / 3**0.5, rel=1e-4)
    several = one_try("lae", [1.0], [5.0, 7.0, 8.0, 8.0], 2), one_try("crt", [1.0], [5.0, 5.0, 6.0, 5.0], 2)
    mean, half = summaries.paired(*several, "test", "mae")
    assert mean == pytest.approx(1.75) and half == pytest.approx(12.7062 * 0.75 * 2**0.5 / 2**0.5, rel=1e-4)
    assert np.isnan(summaries.paired(one, several[0], "test", "mae")).all()


@pytest.mark.parametrize(("errors", "seeds", "over", "told"), [
    # Means of three backbones, each over its two seeds.
    ([4.0, 4.0, 5.0, 5.0, 4.5, 4.5], 2, "joint 95 % intervals over 3 backbones with 2 seeds each and 81 images",
     "MAE -0.50 (-1.7"),
    ([4.5], 1, "95 % intervals over 81 images, one head, nothing about other trainings",
     "MAE -0.50 (-0.50 to -0.50), lower; sigma +0.00 (+0.00 to +0.00), not"),
])  # fmt: skip
def test_a_difference_is_told_with_what_its_interval_is_over(errors, seeds, over, told):
    lae = one_try("lae", [5.0] * len(errors), [5.0] * len(errors), seeds)
    other = one_try("crt", [4.0] * len(errors), errors, seeds)
    found = sentences([lae, other])
    for aim in ("lowest MAE", "improvement"):
        assert f"({over}; verdicts after Holm's correction for 2 differences): {told}" in found[aim]


def test_an_undefined_aim_is_said():
    ages = np.arange(11, 82, dtype=float)
    told = sentences([trial("lae", ages, [[0.0]], [[0.0]])])
    assert "no image of age 1-10" in told["lowest sigma"] and "use lae" in told["lowest MAE"]


def test_the_tables_show_babies_and_people_over_81_where_there_are_any():
    ages = np.append(np.arange(1, 82.0), 90.0)
    one = trial("lae", ages, [[2.0]], [[2.0]])
    assert "| 71-81 | 82+ |" in summaries.markdown([one], {}) and "mae_82+" in summaries.csv_of([one])
    assert "82+" not in summaries.markdown([one_try("lae", [1.0], [1.0], 1)], {})


def test_head_groups_have_an_equal_share_or_more():
    head, tail = summaries.head_and_tail(np.repeat([5.0, 15, 25, 35, 45, 55, 65, 75], [1, 10, 40, 20, 20, 10, 5, 2]))
    assert head.tolist() == [2, 3, 4] and tail.tolist() == [0, 1, 5, 6, 7]

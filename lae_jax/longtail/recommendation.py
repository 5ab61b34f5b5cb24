"""What the benches of several data sets recommend together, as sentences, a command and tables."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lae_jax.longtail.certainty import Difference
from lae_jax.longtail.choices import SCORES, Bench, Choice, Comparison, not_compared
from lae_jax.longtail.summaries import REFERENCE, in_words, verdict
from lae_jax.report import bootstrap, tables
from lae_jax.stages.methods import METHODS


def sentences(found: Comparison, config: Mapping) -> dict[str, str]:
    """Returns what to use and with what gain, what is chosen without each data set, and the command.

    Args:
      found: The comparison.
      config: Fields of the heads that differ from configs/classify.py, for the command.
    """
    benches, choice = found.benches, found.choice
    where = f"over {len(benches)} data sets" if len(benches) > 1 else f"on {benches[0].data}"
    where += ", on validation with all age groups counted alike"
    usable = sum(METHODS[one.method].on_images for one in found.order)
    if choice == found.reference:
        text = (
            f"Use {choice.text}: each other of the {usable} methods that can be a stage 3 has a higher MAE, or no lower"
            f" MAE + sigma, {where}."
        )
    else:
        count = sum(math.isfinite(one.p) for scores in found.means.values() for one in scores)
        text = (
            f"Use {choice.text}: of the {usable} methods that can be a stage 3, it has the lowest MAE + sigma {where}"
            f" among those with an MAE of at most that of {REFERENCE}. Difference to {found.reference.text}:"
            f" {_all_in_words(found.means[choice])}. 'Lower' and 'higher' are said after Holm's correction for {count}"
            " differences. They are on the validation splits that chose the method, so they look better than they are."
        )
    texts = {"recommendation": text}
    if aside := not_compared(benches):
        texts["not_compared"] = (
            "Not compared, because a bench lacks them with the same setting and base_learning_rate:"
            f" {', '.join(aside)}."
        )
    texts["intervals"] = "Joint 95 % intervals: " + "; ".join(f"{one.data} over {one.over}" for one in benches) + "."
    if found.left_out:
        parts = [
            f"{bench.data}: {of_others.text}, {_all_in_words(differences)}"
            for bench, (of_others, differences) in zip(benches, found.left_out, strict=True)
        ]
        texts["left_out"] = (
            f"Chosen without each data set, with the difference to {REFERENCE} on that data set: {'; '.join(parts)}."
        )
    return {**texts, "command": _command(choice, config)}


def _all_in_words(differences: Sequence[Difference | bootstrap.Joint]) -> str:
    return ", ".join(f"{title} {_in_words(one)}" for title, one in zip(SCORES.values(), differences, strict=True))


def _in_words(difference: Difference | bootstrap.Joint) -> str:
    if not math.isfinite(difference.p):
        return f"{in_words(*difference[:3])} (no interval)"
    text = in_words(*difference[:3])
    return f"{text} {verdict(difference)}" if isinstance(difference, Difference) else text


def _command(choice: Choice, config: Mapping) -> str:
    """Returns the command that trains a choice on images."""
    method = METHODS[choice.method]
    flags = {"classify.method": choice.method}
    if method.setting:
        flags["data.power" if method.sets == "power" else "classify.setting"] = f"{choice.setting!r}"
    flags |= {"optim.base_learning_rate": f"{choice.rate!r}", **config}
    words = " ".join(f"--config.{name}={value}" for name, value in flags.items())
    return f"python -m lae_jax.main --config configs/classify.py {words}"


def table(found: Comparison) -> tables.Table:
    """Returns a table: the mean differences to LAE, and the scores on each data set; lowest MAE + sigma first."""
    header = ["method", "can be stage 3", *(f"{score} - {REFERENCE}" for score in SCORES.values())]
    header += [f"{title}, {one.data}" for one in found.benches for title in _titles(one)]
    rows = []
    for choice in found.order:
        means = found.means.get(choice)
        words = [""] * len(SCORES) if means is None else map(_in_words, means)
        usable = "yes" if METHODS[choice.method].on_images else "no"
        scores = (f"{value:.2f}" for one in found.benches for value in one.scores[choice])
        rows.append([choice.text, usable, *words, *scores])
    return tables.Table(header, rows)


def _titles(bench: Bench) -> list[str]:
    """The titles of the scores of a bench; where ages are ranges, the errors are distances to them."""
    return [title.replace("MAE", bench.words.title) for title in SCORES.values()]


def csv_of(found: Comparison) -> str:
    """Returns a line for each method and data set, and one for the mean over the data sets (`all`)."""
    ends = ("", "_low", "_high", "_p", "_p_corrected")
    header = ["method", "parameter", "setting", "base_learning_rate", "data", *SCORES]
    header += [f"{score}_minus_{REFERENCE}{end}" for score in SCORES for end in ends]
    rows = []
    for choice in found.order:
        parameter = METHODS[choice.method].setting
        names = [choice.method, parameter, f"{choice.setting:g}" if parameter else "", f"{choice.rate:g}"]
        by_data = [one.scores[choice] for one in found.benches]
        unknown = [math.nan] * len(SCORES) * len(ends)
        for number, one in enumerate(found.benches):
            of_data = [value for of in found.differences.get(choice, []) for value in (*of[number][:4], math.nan)]
            rows.append([*names, one.data, *map(float, [*by_data[number], *(of_data or unknown)])])
        of_all = [value for each in found.means.get(choice, []) for value in each]
        rows.append([*names, "all", *map(float, [*np.mean(by_data, axis=0), *(of_all or unknown)])])
    return tables.csv_text(header, rows)

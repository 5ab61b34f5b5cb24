"""The forms (`typed`) of the JSON files of runs, evaluations and exports, and of the parts that they share."""

import functools
from typing import TYPE_CHECKING

from lae_jax.runtime.typed import Form, fields, flag, many, named, nullable, number, one_of, optional, text, whole

if TYPE_CHECKING:
    from ml_collections import ConfigDict

DIGEST = text("[0-9a-f]{64}", "a SHA-256, 64 hexadecimal digits")
NAME = text(r"[^/\0]{1,255}", "the name of a file, without a folder")
BYTES = {"bytes": whole(0), "sha256": DIGEST}
TEMPERATURE = number(1e-3, 1e3)
_AGE_GROUPS = ("0", "1-10", "11-20", "21-30", "31-40", "41-50", "51-60", "61-70", "71-81", "82+")

# All that a program reads of a crop contract; the contract is compared as a whole.
CROP = fields(
    {
        "align": text(),
        "detector": optional(text()),
        "size": optional(whole(16, 4096)),
        "margin": optional(number(0, 1)),
        "quality": optional(whole(1, 100)),
    }
)
# All that a program reads of recipe.json; `prepare` compares the whole.
RECIPE = fields(
    {
        "reader": optional(text()),
        "images": optional(text()),
        "size": optional(whole(16, 4096)),
        "crop": optional(CROP),
    }
)
OTHER = optional(fields({"hash": optional(DIGEST)}))  # the other data set, of a finding that concerns two
LEAK = {"kind": text(), "splits": many(text()), "data": text(), "message": text(), "other": OTHER}
_FINDING = fields({"severity": text(), "message": text()})

_YEARS = nullable(number(0))
# Scores of ages; null: undefined, as where an age group has no images.
_OF_AGES = {
    "n": whole(1),
    **dict.fromkeys(("mae", "mmae", "mean_group_mae", "sigma", "aar_2021", "aar_2022"), _YEARS),
    "group_mae": many(_YEARS, 8),
    "group_count": many(whole(0), 8),
    "bias": many(nullable(number()), 8),
    "outside_mae": many(_YEARS, 2),
    "outside_count": many(whole(0), 2),
    "outside_bias": many(nullable(number()), 2),
    "cs": many(nullable(number(0, 1))),
    "missing_groups": many(text()),
}
# Scores where ages are ranges, with those of exact ages where there are any.
_OF_RANGES = {
    "n": whole(1),
    "n_exact": whole(0),
    **dict.fromkeys(("distance", "distance_sigma", "mean_group_distance"), _YEARS),
    "distance_plus_sigma": optional(number(0)),  # only of checkpoints
    "in_range": nullable(number(0, 1)),
    "group_distance": many(_YEARS, 8),
    "group_count": many(whole(0), 8),
    # Missing: written before them.
    "bias": optional(many(nullable(number()), 8)),
    "missing_groups": optional(many(text())),
    "outside_distance": optional(many(_YEARS, 2)),
    "outside_count": optional(many(whole(0), 2)),
    "outside_bias": optional(many(nullable(number()), 2)),
    **dict.fromkeys(("mae", "mmae", "sigma", "aar_2021", "aar_2022"), optional(number(0))),
    "cs": optional(many(nullable(number(0, 1)))),
}
_OF_IDENTITIES = {
    "equal_error_rate": optional(number(0, 1)),
    "true_accept_rate": optional(number(0, 1)),
    "pairs": optional(number(0)),
    "genuine_pairs": optional(number(0)),
}


SIDE = (1, 8192)  # pixels of a model's input
# The allowed values of the fields that a model or its input is built from; others have the type of their default.
_RANGES = {
    "data.image_size": whole(*SIDE),
    "data.resize": whole(0, SIDE[1]),
    "data.fold": nullable(whole(0)),
    "data.mean": many(number(), 3),
    "data.std": many(number(above=0), 3),
    "data.threads": nullable(whole(1)),
    "model.embedding_size": whole(1, 1 << 16),
    "model.hidden": optional(whole(0, 1 << 16)),  # missing: written before that field
    "model.class_weights": optional(one_of(("auto", "split", "copied"))),  # likewise
    "model.class_sampling": optional(number(0, 1)),  # likewise
    "loss.margin_form": optional(one_of(("am_softmax", "arcface", "adaface"))),  # likewise
    "loss.in_range": optional(one_of(("uniform", "model"))),  # likewise
    "loss.label_spread": optional(flag()),  # likewise
    "teacher": optional(text()),  # likewise
    "loss.teacher_weight": optional(number(0, 1)),  # likewise
    "loss.teacher_temperature": optional(number(above=0)),  # likewise
    "parallel": optional(one_of(("auto", "pmap", "shard_map"))),  # likewise
    "ema_decay": optional(number(0, 1)),  # likewise
    "optim.name": optional(one_of(("sgd", "adamw"))),  # likewise
    "optim.decay_all": optional(flag()),  # likewise
    **dict.fromkeys((f"optim.{name}" for name in ("warmup_epochs", "beta1", "beta2")), optional(number(0))),  # likewise
    **dict.fromkeys((f"optim.{name}" for name in ("epsilon", "head_factor", "layer_decay")), optional(number(above=0))),
    "batch_size": whole(1),
    "eval_batch_size": whole(1, 1 << 20),
    "epochs": number(above=0),
    "eval_epochs": number(above=0),
}
_ADDED = ("cure",)  # groups of fields that older configs do not have
_TYPES = {bool: flag(), int: whole(), float: number(), str: text(), tuple: many(number())}


def config(value: object, name: str) -> None:
    """The form of a run's config: the fields of `configs.common`."""
    _config()(value, name)


@functools.cache
def _config() -> Form:
    from lae_jax.configs import common

    return _of_config(common.get_config(), "")


def _of_config(default: "ConfigDict", prefix: str) -> Form:
    forms = {}
    for key, value in default.items():
        if (field := prefix + key) in _RANGES:
            forms[key] = _RANGES[field]
        elif hasattr(value, "items"):
            form = _of_config(value, f"{field}.")
            forms[key] = optional(form) if field in _ADDED else form
        else:
            form = _TYPES[default.get_type(key)]
            forms[key] = nullable(form) if value is None else form
    return fields(forms)


def _of_ages(value: object) -> dict[str, Form]:
    """The form of scores of ages; of ranges if there is a distance."""
    return _OF_RANGES if isinstance(value, dict) and "distance" in value else _OF_AGES


def _of_ages_or_identities(value: object, name: str) -> None:
    is_of_identities = isinstance(value, dict) and "equal_error_rate" in value and "mae" not in value
    fields(_OF_IDENTITIES if is_of_identities else _of_ages(value))(value, name)


SCORES = _of_ages_or_identities
# The teachers of a run and of the runs before it.
_TEACHERS = optional(
    many(
        fields(
            {
                "from": text(),
                "step": whole(0),
                "sha256": DIGEST,
                "weight": number(0, 1),
                "temperature": number(above=0),
            }
        )
    )
)
# The cures of stage 2 of a run and of the runs before it.
_CURES = optional(many(fields({"name": text(), "settings": named(number())})))
SUMMARY = fields(
    {
        "stage": text(),
        "step": whole(0),
        "last_step": whole(0),
        "scores": nullable(SCORES),
        "selected_by": nullable(text()),
        "seconds": number(0),
    }
)
META = fields(
    {
        "run": optional(text()),  # missing: written before runs had ids
        "step": whole(0),
        "stage": one_of(("pretrain", "represent", "classify")),
        "model": text(),
        "num_outputs": whole(1, 1 << 31),
        "scores": nullable(SCORES),
        "selected_by": nullable(text()),
        "selected": nullable(number()),
        "constants": named(number()),
        "config": config,
        "crop": CROP,
        "data": text(),
        "data_hash": DIGEST,
        "age_weights": nullable(DIGEST),
        "trained_on": optional(many(fields({"data": text(), "data_hash": DIGEST, "split": text()}))),
        "leaks": optional(many(fields(LEAK))),
        "identities": optional(fields({"schemes": many(text()), "hashes": many(text())})),
        "teachers": _TEACHERS,
        "cures": _CURES,
    }
)
PROVENANCE = fields(
    {
        "commit": optional(text()),
        "versions": optional(named(optional(text()))),
        "devices": optional(many(text())),
        "python": optional(text()),
        "hosts": optional(whole(1)),
        "crop": optional(CROP),
        "protocol": optional(text()),
        "init": optional(
            fields({"from": optional(text()), "step": optional(whole(0)), "sha256": optional(text())}),
        ),
    }
)
# Where the wall time of a run goes: steps that counted, and everything else by cause (`train.wall_time`).
CAUSES = ("goodput", "start", "compile", "data", "evaluation", "saving", "skipped", "lost", "other")
_LINE = {
    "step": whole(0),
    "kind": optional(text()),
    "seconds": optional(number(0)),
    **dict.fromkeys(("images_per_second", "flops_per_step", "utilisation"), optional(number(0))),
    "skipped_steps": optional(whole(0)),
    **dict.fromkeys(("loss", "mae", "sigma", "distance", "distance_sigma", "equal_error_rate"), optional(number())),
}
_KINDS = {
    "train": fields({"loss": nullable(number()), "learning_rate": number(0)}),
    "time": fields({"seconds": number(0), **dict.fromkeys(CAUSES, number(0, 1))}),
}


def line(value: object, name: str) -> None:
    """The form of a line of metrics.jsonl and divergence.jsonl; null: not finite."""
    fields(_LINE)(value, name)
    if (kind := value.get("kind")) in _KINDS:
        _KINDS[kind](value, name)


# What is read of config.json where the run itself is not needed.
CONFIG_HEAD = fields(
    {
        "stage": optional(text()),
        "init_from": optional(text()),
        "init_step": optional(whole(0)),
        "model": optional(fields({"name": optional(text())})),
        "optim": optional(fields({"name": optional(text()), "schedule": optional(text())})),
        "ema_decay": optional(number(0, 1)),
        "data": optional(
            fields(
                {
                    "path": optional(text()),
                    "train": optional(text()),
                    "split": optional(text()),
                    "fold": optional(whole(0)),
                }
            )
        ),
    }
)
# Thresholds of each age group at 1 to 99 %; null: infinite (`runs.conformal`).
CONFORMAL = fields(
    {
        "thresholds": fields(dict.fromkeys(_AGE_GROUPS, many(nullable(number(-1)), 99))),
        "images": many(whole(0), len(_AGE_GROUPS)),
        "flip": flag(),
    }
)
CALIBRATION = fields({"temperature": TEMPERATURE, "step": whole(0), "conformal": optional(CONFORMAL)})

# What the reports of evaluations and of the long-tail bench say about leaks (`runs.leaks.of_evaluation`).
_LEAKS = {
    "audit": optional(one_of(("read", "missing", "stale", "damaged"))),
    "findings": optional(many(_FINDING)),
    "leaks": optional(many(fields(LEAK))),
    "not_compared": optional(many(fields({"data": text(), "why": text()}))),
    "same_people_on_both_sides": optional(whole(0)),
    "protocol": optional(text()),
}
_RANGE = many(number(), 2)
_HEAD = {"data": text(), "data_hash": DIGEST, "split": text()}
_CONTENTS = fields(
    {
        "threshold": optional(number(0, 100)),
        "challenge": optional(number(0, 100)),
        "costs": optional(many(number(0), 3)),
        "slices": optional(many(text())),
        "spread": optional(text()),
        "faces": optional(flag()),
        "baseline": optional(text()),
    }
)
# What tells which evaluation a report.json is of.
REPORT = fields({**_HEAD, "step": optional(whole(0)), "flip": optional(flag()), "contents": optional(_CONTENTS)})
_REPORT = {
    **_HEAD,
    **_LEAKS,
    "run": text(),
    "step": whole(0),
    "stage": text(),
    "model": text(),
    "flip": flag(),
    "same_data_as_training": flag(),
    "crop": CROP,
    "other_crop_than_training": optional(flag()),
    "unknown_crops": optional(flag()),
}
_REPORT_OF_AGES = {
    **_REPORT,
    "interval": optional(
        fields(
            {
                "level": number(0, 1),
                "temperature": TEMPERATURE,
                "coverage": number(0, 1),
                "mean_width": number(0),
            }
        )
    ),
    "conformal": optional(
        fields(
            {
                "level": number(0, 1),
                "coverage": nullable(number(0, 1)),  # null: no age is exact
                "mean_width": number(0),
                "borrowing": many(text()),
                "needed": whole(1),
                "fewest": optional(fields({"group": text(), "images": whole(1), "coverage": number(0, 1)})),
                "on_these": flag(),
            }
        )
    ),
    "threshold": optional(number(0, 100)),
    "unprocessed": optional(
        fields(
            {
                "labels": many(many(number(0, 1e9), 3)),  # first and last age, number of photographs
                "of_unknown_age": whole(0),
                "share": number(0, 1),  # of a photograph that each of them counts as
            }
        )
    ),
    "training": optional(fields({"split": text(), "count": many(number(0))})),  # of ranges also fractions
    "constant": optional(
        fields(
            {
                "age": number(0),
                **dict.fromkeys(("mae", "distance"), optional(number(0))),
                "difference": optional(_RANGE),
            }
        )
    ),
    "ranges": optional(
        many(
            fields({"range": text(), "n": whole(1), "in_range": number(0, 1), "distance": number(0), "bias": number()})
        )
    ),
    "intervals": optional(named(_RANGE)),
    "bootstrap": optional(fields({"units": text(), "replicates": whole(1), "level": number(0, 1)})),
    "contents": optional(_CONTENTS),
}


def report_of_ages(value: object, name: str) -> None:
    """The form of the report.json of an evaluation of ages."""
    fields({**_REPORT_OF_AGES, **_of_ages(value)})(value, name)


BENCH = fields(
    {
        **_LEAKS,
        "runs": many(text()),
        "data": text(),
        "data_hash": optional(DIGEST),
        "epochs": optional(number(above=0)),
        "optim": optional(fields({"name": optional(text()), "schedule": text()})),
        "test": text(),
        "seeds": whole(1),
        "head_groups": many(whole(0, 7)),
        "tail_groups": many(whole(0, 7)),
        "sentences": named(text()),
        "error": optional(one_of(("mae", "distance"))),
        "joint": optional(text()),
    }
)

"""What the loop refuses, and what is said before work begins."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest

from lae_jax import evaluate
from lae_jax.data import records
from lae_jax.runs import fields
from lae_jax.runtime import checkpoints, lock
from lae_jax.runtime.errors import Diverged, FolderInUse, InputError
from lae_jax.train import loop
from lae_jax.train.plan import make_plan


@pytest.mark.parametrize("place", ["", "file", "data", "/proc/run"])
def test_a_folder_that_can_be_no_runs_is_refused(small_config, tmp_path, drawn, place):
    config = small_config("represent")
    (tmp_path / "file").write_text("")
    config.workdir = {"file": str(tmp_path / "file"), "data": str(drawn)}.get(place, place)
    with pytest.raises(InputError, match="name a folder that is only for the run|cannot be written"):
        loop.train(config)


def test_two_runs_in_one_folder(small_config):
    config = small_config("represent")
    with lock.hold(config.workdir), pytest.raises(FolderInUse, match=f"in use by process {os.getpid()}"):
        loop.train(config)
    assert not pathlib.Path(config.workdir).exists()


def test_going_on_with_another_config_is_refused_with_the_difference(small_config):
    config = small_config("represent")
    plan = make_plan(config)
    fields.claim_folder(plan.workdir, config)
    config.log_steps = 7
    fields.claim_folder(plan.workdir, config)
    config.optim.base_learning_rate = 0.5
    with pytest.raises(InputError, match=r"optim.base_learning_rate: 0.005 there, 0.5 now"):
        fields.claim_folder(plan.workdir, config)


def test_a_finished_run_is_not_started_again_with_other_data_or_weights(make_config, trained, drawn, tmp_path):
    from lae_jax import prepare

    shutil.copytree(trained("classify"), tmp_path / "classify")
    config = make_config("classify", tmp_path)
    config.init_from = str(trained("represent"))
    config.data.path = str(shutil.copytree(drawn, tmp_path / "moved"))
    assert loop.train(config)["step"] == 3
    source = {"train": "8", "validation": "8"}
    prepare.prepare(source, tmp_path / "other", reader="synthetic", size=32, shards=1, workers=1)
    config.data.path = str(tmp_path / "other")
    with pytest.raises(InputError, match="other is not the data set that .*classify was started with: its hash is"):
        loop.train(config)
    config.data.path, config.data.age_weights = str(drawn), str(tmp_path / "weights.csv")
    (tmp_path / "weights.csv").write_text("age,weight\n30,2\n")
    with pytest.raises(InputError, match="config.data.age_weights is .*: other weights than when .*classify was"):
        loop.train(config)


def test_bad_steps_in_a_row_end_the_run_and_leave_the_checkpoint(small_config):
    config = small_config("represent")
    config.epochs, config.max_skipped_steps, config.save_steps, config.eval_epochs = 8.0, 4, 2, 8.0
    config.optim.base_learning_rate, config.optim.schedule = 1e30, "constant"
    with pytest.raises(Diverged, match="4 steps in a row.*base_learning_rate"):
        loop.train(config)
    with checkpoints.Checkpoints(config.workdir, read_only=True) as saved:
        assert saved.latest() == 4
    config.workdir += "_scored"
    config.eval_epochs = 1.0
    with pytest.raises(Diverged, match="outputs on the validation split are not finite"):
        loop.train(config)


def test_what_is_missing_is_said_with_the_command_that_makes_it(small_config, tmp_path):
    config = small_config("classify")
    with pytest.raises(
        InputError, match="represent holds no run: make it with python -m lae_jax.main --config configs/represent.py"
    ):
        loop.train(config)
    config.init_from = ""
    with pytest.raises(InputError, match="--config.init_from"):
        loop.train(config)
    for stage in ("pretrain", "represent"):
        config = small_config(stage)
        config.init_from = ""
        with pytest.raises(InputError, match="config.init_from is empty: .*hf:owner/name.*--config.init_from=scratch"):
            loop.train(config)
    config = small_config("represent")
    config.data.path = str(tmp_path / "nothing")
    with pytest.raises(InputError, match="python -m lae_jax.prepare"):
        loop.train(config)
    config = small_config("represent")
    config.data.train = "trian"
    with pytest.raises(InputError, match="did you mean 'train'"):
        loop.train(config)
    config = small_config("represent")
    config.init_from = str(tmp_path / "pretrain")
    with pytest.raises(InputError, match="--config configs/pretrain.py"):
        loop.train(config)


@pytest.mark.parametrize(("field", "value", "message"), [
    ("batch_size", 30, "30 cannot be divided over 8"), ("log_steps", 0, "log_steps is 0: it must be at least 1"),
    ("epochs", 0.0, "above 0"), ("seed", -1, "seed"), ("model.name", "resnet19", "did you mean 'resnet18'"),
    ("optim.schedule", "cosine", "one_cycle"), ("data.resize", 5, "resize"), ("accumulate", 3, "does not divide"),
    ("model.dtype", "int8", "dtype"),
])  # fmt: skip
def test_a_config_that_cannot_run_does_not_claim_the_folder(small_config, field, value, message):
    config = small_config("represent")
    config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=message):
        loop.train(config)
    assert not pathlib.Path(config.workdir).exists()


def test_stage_1_without_pairs_of_a_person_is_an_error_before_it_trains(small_config, monkeypatch):
    config = small_config("pretrain")
    config.data.split = "test"

    def column(self, name, original=records.Dataset.column):
        return np.arange(len(self)).astype(str).astype(object) if name == "identity" else original(self, name)

    monkeypatch.setattr(records.Dataset, "column", column)
    with pytest.raises(InputError, match="two images"):
        loop.train(config)


def test_data_prepared_again_is_refused_by_stage_3(small_config, trained, monkeypatch):
    third = small_config("classify")
    third.init_from = str(trained("represent"))
    monkeypatch.setattr(records.Dataset, "hash", "a" * 64)
    with pytest.raises(InputError, match="prepared again"):
        loop.train(third)


def test_foreign_runs_are_refused_by_name(small_config, trained):
    first, third = str(trained("pretrain")), small_config("classify")
    third.init_from = first
    with pytest.raises(InputError, match="stage pretrain, but stage classify starts from a run of stage represent"):
        loop.train(third)
    second = small_config("represent")
    second.init_from, second.model.name = first, "resnet18"
    with pytest.raises(
        InputError,
        match="trained with model.name 'efficientnet_v2_pico', not 'resnet18': add --config.model.name=eff",
    ):
        loop.train(second)
    second = small_config("represent")
    second.init_from, second.data.split, second.epochs = first, "", 0.3
    loop.train(second)
    third.init_from = second.workdir
    with pytest.raises(InputError, match="has no validation mae.*--config.mae_from"):
        loop.train(third)


def test_checkpoints_of_another_run_are_neither_trained_on_nor_evaluated(trained, make_config, tmp_path):
    shutil.copytree(trained("represent"), tmp_path / "represent")
    run, config = tmp_path / "represent", make_config("represent", tmp_path)
    assert checkpoints.load_run(run).meta["run"] == json.loads((run / "run.json").read_text())["id"]
    (run / "run.json").write_text('{"id": "of another run"}')
    with pytest.raises(InputError, match="checkpoints/3 .*it is of another run"):
        evaluate.evaluate(run)
    (run / "summary.json").unlink()
    with pytest.raises(InputError, match="were moved to .*damaged/3"):
        loop.train(config)

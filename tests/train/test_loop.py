"""The loop: stages hand over, runs resume bit for bit, and what is wrong is said before work begins."""

import json
import pathlib

import jax
import numpy as np
import pytest

from lae_jax.data import pipeline, records
from lae_jax.runs import build, fields, provenance
from lae_jax.runtime import checkpoints, watch
from lae_jax.runtime.errors import InputError, Preempted
from lae_jax.runtime.typed import declared
from lae_jax.train import loop, steps
from lae_jax.train.plan import make_plan, settled


def leaves(workdir, step):
    with checkpoints.Checkpoints(workdir, read_only=True) as saved:
        state = saved.arrays(step, ("step", "skipped_steps", "params", "batch_stats", "opt_state"))
    return {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_flatten_with_path(state)[0]}


def lines(workdir, kind):
    rows = [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def without_times(rows):
    times = ("images_per_second", "waiting", "seconds", "goodput")
    return [{k: v for k, v in row.items() if k not in times} for row in rows]


@pytest.fixture
def trace_count(monkeypatch):
    """Counts the traces of the training step."""
    counted = []

    def step(*args, original=steps.train_step, **kwargs):
        counted.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(steps, "train_step", step)
    return counted


def test_the_three_stages_hand_over(small_config, trace_count):
    first = small_config("pretrain")
    summary = loop.train(first)
    assert summary["selected_by"] is None and 0 <= summary["scores"]["equal_error_rate"] <= 1
    assert len(trace_count) == 1

    second = small_config("represent")
    second.init_from, second.epochs = first.workdir, 2.0
    summary = loop.train(second)
    assert summary["selected_by"] == "mae" and summary["last_step"] == 6
    assert len(trace_count) == 2, "a run of two epochs, each evaluated and saved, traces its step once"
    scored = lines(second.workdir, "validation")
    assert len(scored) == 2 and summary["scores"]["mae"] == min(row["mae"] for row in scored)
    meta = checkpoints.load_run(second.workdir).meta
    dataset = records.open_dataset(second.data.path)
    assert meta["data_hash"] == dataset.hash and meta["crop"] == dataset.crop and meta["stage"] == "represent"

    third = small_config("classify")
    summary = loop.train(third)
    checkpoint = checkpoints.load_run(second.workdir)
    assert summary["constants"] == {"mae": checkpoint.meta["scores"]["mae"]}
    before, after = leaves(second.workdir, checkpoint.step), leaves(third.workdir, summary["last_step"])
    backbone = [name for name in before if "backbone" in name and "opt_state" not in name]
    assert backbone and all(before[name].tobytes() == after[name].tobytes() for name in backbone)
    assert any(before[name].tobytes() != after[name].tobytes() for name in before if "['params']['head']" in name)
    assert not any("backbone" in name for name in after if "opt_state" in name)
    for name in ("config.json", "provenance.json", "summary.json", "metrics.jsonl"):
        assert (pathlib.Path(third.workdir) / name).exists()
    assert list((pathlib.Path(third.workdir) / "tensorboard").iterdir())
    assert loop.train(third) == summary


@pytest.mark.parametrize("stage", ["represent", "classify"])
def test_a_run_stopped_in_mid_epoch_ends_as_the_one_that_was_not(small_config, trained, monkeypatch, stage):
    """Two times, between which the checkpoints go from pmap to shard_map and back."""
    config = small_config(stage)
    if stage == "classify":
        config.init_from = str(trained("represent"))
        # With more to go on with than LAE: draws of partners, and two layers that are new.
        config.classify.method, config.classify.setting = "two_layers_c_mixup", 3.0
        config.optim.base_learning_rate = 0.1
    config.epochs, config.save_steps = 2.0, 1
    whole = config.copy_and_resolve_references()
    whole.workdir += "_whole"
    loop.train(whole)

    signals, used = watch.Signals(), []

    def save(self, state, number, scores, original=loop._Loop.save):
        original(self, state, number, scores)
        used.append(self.plan.par.form)
        signals.asked = number in (1, 3)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "save", save)
        for form, step in (("pmap", 2), ("shard_map", 4)):
            config.parallel, signals.asked = form, False
            with pytest.raises(Preempted, match=f"saved at step {step} of 6"):
                loop.train(config, signals)
    assert used == ["pmap", "pmap", "shard_map", "shard_map"]
    config.parallel = "pmap"
    loop.train(config)
    one, two = leaves(whole.workdir, 6), leaves(config.workdir, 6)
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].tobytes() == two[name].tobytes(), name
    for kind in ("train", "validation"):
        assert without_times(lines(whole.workdir, kind)) == without_times(lines(config.workdir, kind))


@pytest.mark.parametrize("number", [3, 6])
def test_a_run_stopped_in_an_evaluation_begins_with_it_and_ends_as_the_one_that_was_not(
    small_config, monkeypatch, number
):
    config = small_config("represent")
    config.epochs, config.eval_batch_size, config.optim.base_learning_rate = 2.0, 16, 0.1
    whole = config.copy_and_resolve_references()
    whole.workdir += "_whole"
    summary, workdir = loop.train(whole), pathlib.Path(config.workdir)
    evaluated = []

    def evaluate(self, state, stop=False, original=loop._Loop.evaluate):
        evaluated.append(int(state.step))
        signals.asked = int(state.step) == number
        return original(self, state, stop)

    def batches(*args, original=pipeline.eval_batches, **kwargs):
        for place, batch in enumerate(original(*args, **kwargs)):
            assert place < 2 or not signals.asked, "two of four batches were begun when the signal was heard"
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "evaluate", evaluate)
        patch.setattr(pipeline, "eval_batches", batches)
        for _ in range(2):  # the second time in the evaluation that the resumed run begins with
            signals = watch.Signals()
            with pytest.raises(Preempted, match=f"saved at step {number} of 6, before its evaluation ended"):
                loop.train(config, signals)
            assert [path.name for path in (workdir / "unscored").iterdir()] == [str(number)]
            assert not (workdir / "checkpoints" / str(number)).exists() and not (workdir / "summary.json").exists()
    assert evaluated == [3, 3] if number == 3 else [3, 6, 6]
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        # Killed when the scores are written, but not the checkpoint.
        patch.setattr(loop._Loop, "save", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
        loop.train(config)
    assert lines(config.workdir, "validation")[-1]["step"] == number
    again = loop.train(config)
    assert {**again, "seconds": 0} == {**summary, "seconds": 0} and not (workdir / "unscored").exists()
    kept = [
        sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (workdir, pathlib.Path(whole.workdir))
    ]
    assert kept[0] == kept[1]
    for step in kept[0]:
        one, two = leaves(whole.workdir, int(step)), leaves(config.workdir, int(step))
        assert all(one[name].tobytes() == two[name].tobytes() for name in one)
        metas = [checkpoints.read_meta(folder, int(step)) for folder in (whole.workdir, config.workdir)]
        assert metas[0]["scores"] == metas[1]["scores"] and metas[0]["selected"] == metas[1]["selected"]
    for kind in ("train", "validation"):
        assert without_times(lines(whole.workdir, kind)) == without_times(lines(config.workdir, kind))


def test_a_signal_in_the_last_step_before_an_evaluation_leaves_it_to_the_resumed_run(
    small_config, trained, monkeypatch
):
    config, signals = small_config("represent"), watch.Signals()
    config.save_steps = 2
    with monkeypatch.context() as patch, pytest.raises(Preempted, match="saved at step 3 of 3, before its evaluation"):
        patch.setattr(
            loop._Loop, "save", lambda *_, original=loop._Loop.save: setattr(signals, "asked", True) or original(*_)
        )
        patch.setattr(pipeline, "eval_batches", None)
        loop.train(config, signals)
    assert loop.train(config)["scores"] == checkpoints.load_run(trained("represent")).meta["scores"]


def test_a_run_goes_on_with_half_of_the_devices(small_config, trained, monkeypatch):
    config = small_config("represent")
    config.save_steps = 1
    signals = watch.Signals()
    with monkeypatch.context() as patch, pytest.raises(Preempted, match="saved at step 2 of 3"):
        patch.setattr(
            loop._Loop, "save", lambda *_, original=loop._Loop.save: setattr(signals, "asked", True) or original(*_)
        )
        loop.train(config, signals)
    half = jax.local_devices()[:4]
    monkeypatch.setattr(jax, "local_devices", lambda: half)
    loop.train(config)
    one, two = leaves(trained("represent"), 3), leaves(config.workdir, 3)
    for name in one:
        if "params" in name or "batch_stats" in name:
            np.testing.assert_allclose(two[name], one[name], rtol=2e-4, atol=2e-6, err_msg=name)


def test_a_signal_before_the_first_step_ends_the_run_before_it_begins(small_config):
    signals = watch.Signals()
    signals.asked = True
    config = small_config("represent")
    with pytest.raises(Preempted, match="was not started"):
        loop.train(config, signals)
    assert not pathlib.Path(config.workdir).exists()


def test_going_on_is_strict_about_data_config_classes_and_leaves(small_config, monkeypatch):
    config = small_config("represent")
    config.epochs, config.save_steps = 2.0, 2
    signals = watch.Signals()
    with monkeypatch.context() as patch, pytest.raises(Preempted):
        patch.setattr(
            loop._Loop, "save", lambda *_, original=loop._Loop.save: setattr(signals, "asked", True) or original(*_)
        )
        loop.train(config, signals)
    with (
        monkeypatch.context() as patch,
        pytest.raises(InputError, match="not the data set that .* its hash is aaaa"),
    ):
        patch.setattr(records.Dataset, "hash", "a" * 64)
        loop.train(config)
    with monkeypatch.context() as patch, pytest.raises(InputError, match="101 outputs, .* needs 90"):
        patch.setattr(build, "NUM_AGES", 90)
        loop.train(config)
    (pathlib.Path(config.workdir) / "config.json").unlink()
    other = config.copy_and_resolve_references()
    other.optim.clip_norm = 1.0
    with pytest.raises(InputError, match=r"the checkpoint .* another config \(optim.clip_norm: 0.0 there, 1.0 now"):
        loop.train(other)
    plan = make_plan(config, checkpoints.read_meta(config.workdir, 3, checkpoints.UNSCORED))
    wrong = steps.TrainState(np.int32(0), np.int32(0), {"head": np.zeros(3)}, {}, {})
    with (
        checkpoints.Checkpoints(plan.workdir, checkpoints.UNSCORED, read_only=True) as saved,
        pytest.raises(InputError, match="batch_stats/"),
    ):
        saved.restore(3, wrong)


def test_a_done_run_that_lost_its_checkpoint_goes_on_from_the_rest(small_config):
    config = small_config("represent")
    config.save_steps = 2
    summary = loop.train(config)
    assert loop.train(config) == summary
    (pathlib.Path(config.workdir) / "checkpoints" / "3" / "meta" / "metadata").write_text("")
    again = loop.train(config)
    assert (pathlib.Path(config.workdir) / "damaged" / "3").is_dir()
    assert again["step"] == 3 and again["scores"] == summary["scores"]


def test_stage_3_wants_the_features_that_its_head_was_trained_on(small_config, trained):
    third = small_config("classify")
    third.init_from, third.data.image_size = str(trained("represent")), 32
    with pytest.raises(InputError, match="data.image_size 24, not 32: add --config.data.image_size=24, or"):
        loop.train(third)
    third.data.image_size, third.model.hidden = 24, 8
    with pytest.raises(InputError, match="model.hidden 0, not 8: add --config.model.hidden=0, or"):
        loop.train(third)
    third.classify.method = "two_layers"
    assert make_plan(third).config.model.hidden == 8


def test_a_method_settles_where_its_head_starts_and_its_layers(small_config):
    config = small_config("classify")
    for method, new_head, hidden in (
        ("lae", False, 0),
        ("crt", True, 0),
        ("c_mixup", False, 0),
        ("two_layers", True, 256),
    ):
        config.classify.method = method
        made = settled(config)
        assert (made.reinit_head, made.model.hidden) == (new_head, hidden)
        assert settled(made).to_dict() == made.to_dict() and config.model.hidden == 0
    assert settled(small_config("represent")).reinit_head is False


def test_a_run_older_than_a_field_was_trained_without_it(small_config):
    config = small_config("represent")
    older = fields.as_json(config)
    del older["model"]["hidden"], older["loss"]["in_range"], older["parallel"], older["cure"]
    assert fields.from_json(older).model.hidden == 0 and not fields.differences(older, fields.as_json(config))
    assert fields.from_json(older).loss.in_range == "uniform" and fields.from_json(older).parallel == "auto"
    assert fields.from_json(older).cure == config.cure and "cure" not in fields.from_json({"data": {"mean": 0}})
    declared.config(older, "config")
    config.model.hidden = 8
    assert fields.differences(older, fields.as_json(config)) == ["model.hidden: 0 there, 8 now"]


def test_resuming_on_another_cpu_warns_that_numbers_agree_up_to_rounding(tmp_path, caplog):
    caplog.set_level("WARNING", "lae_jax")
    before = {"devices": ["cpu"], "hosts": 1, "cpu": "A", "cores": 2, "deterministic": True, "versions": {"jax": "1"}}
    (tmp_path / "provenance.json").write_text(json.dumps(before))
    provenance.warn_of_another_machine(tmp_path, before)
    assert not caplog.text
    provenance.warn_of_another_machine(tmp_path, before | {"cpu": "B", "cores": 4})
    assert "differs in cpu, cores" in caplog.text and "up to rounding" in caplog.text

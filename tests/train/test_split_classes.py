"""Class weights that are split over the devices: the same loss, gradients and runs as with copies."""

import json
import re
import shutil

import jax
import numpy as np
import pytest

from benchmarks.split_classes import PEOPLE, WIDTH, batches, furthest, make, run
from lae_jax import optim
from lae_jax.runtime import files, origin
from lae_jax.runtime.checkpoints import Checkpoints
from lae_jax.runtime.parallel import rows


@pytest.mark.parametrize(("form", "accumulate"), [("am_softmax", 1), ("am_softmax", 2), ("arcface", 1), ("adaface", 1)])
def test_split_class_weights_train_as_copies_do_in_float64(form, accumulate):
    with jax.enable_x64(True):
        how = {"form": form, "accumulate": accumulate}
        _, copied, before = run(3, 8, "copied", **how)
        split, state, told = run(3, 8, "split", **how)
        assert {leaf.data.shape for leaf in split.params["head"]["class_weights"].addressable_shards} == {(256, WIDTH)}
        assert furthest(state, copied) < 1e-12
        assert furthest(told, before) < 1e-9
        first = make(8, "copied", **how)[2]
        assert furthest(copied.params, first.params) > 1e-3
        assert min(one["grad_norm"] for one in told) > 0.5  # so that gradients are clipped


def test_adamw_and_an_ema_go_over_split_class_weights_as_over_copies():
    with jax.enable_x64(True):
        how = {"optimiser": optim.adamw, "ema_decay": 0.5}
        _, copied, _ = run(2, 4, "copied", **how)
        split, state, _ = run(2, 4, "split", **how)
        moments = [
            leaf for path, leaf in jax.tree_util.tree_leaves_with_path(split) if rows.is_split(path, ("class_weights",))
        ]
        assert len(moments) == 4  # weights, two moments, EMA
        assert {leaf.addressable_shards[0].data.shape for leaf in moments} == {(512, WIDTH)}
        # AdamW divides by the root of the mean square: rounding of a gradient near 0 is a share of the rate.
        assert furthest(state, copied) < 1e-6


def test_the_number_of_devices_changes_nothing():
    with jax.enable_x64(True):
        _, one, _ = run(2, 1, "split")
        for devices in (2, 8):
            assert furthest(run(2, devices, "split")[1], one) < 1e-12


def test_a_run_goes_on_with_fewer_devices_from_the_same_checkpoint(tmp_path):
    """8 -> 4 -> 2 devices; every checkpoint holds the arrays of the state and is read in parts."""
    origin.give_id(tmp_path)
    meta = {"selected": None, "scores": None}
    with jax.enable_x64(True), Checkpoints(tmp_path, asynchronous=False) as saved:
        given, state, kept, unbroken = list(batches(3)), None, None, run(3, 8, "copied")[1]
        for number, devices in enumerate((8, 4, 2), 1):
            par, step, first = make(devices, "split")
            if state is not None:
                state = saved.restore(number - 1, par.targets(first))
                weights = state.params["head"]["class_weights"]
                assert [shard.data.shape for shard in weights.addressable_shards] == [
                    (2048 // devices, WIDTH)
                ] * devices
                assert isinstance(state.step, np.ndarray)
                again = saved.restore(number - 1, first)  # whole, as NumPy arrays
                # Which of the two differs from what was saved is told, should they ever differ.
                jax.tree.map(np.testing.assert_array_equal, again, kept)
                jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, state), again)
            state, _ = step(par.place(first if state is None else state), given[number - 1])
            kept = jax.tree.map(np.array, state)
            saved.save(state, {**meta, "step": number})
            saved.wait()
        state = jax.tree.map(lambda leaf: np.asarray(leaf)[:PEOPLE] if leaf.ndim else np.asarray(leaf), state)
        assert furthest(state, unbroken) < 1e-12
        # What other programs read of the run has no class weights, which do not fit a host.
        assert set(saved.arrays(3)["params"]["head"]) == {"embedding", "bn"}


def test_the_first_state_is_the_same_on_any_number_of_devices_and_beside_copies():
    copied = np.asarray(make(8, "copied", dtype="float32")[2].params["head"]["class_weights"])
    for devices in (1, 2, 8):
        par, _, first = make(devices, "split", dtype="float32")
        placed = np.asarray(par.place(first).params["head"]["class_weights"])
        assert placed[:PEOPLE].tobytes() == copied.tobytes() and placed.shape == (2048, WIDTH)
    rows_of = make(8, "split", dtype="float32")[2].params["head"]["class_weights"]
    assert np.asarray(rows_of[1000:1100]).tobytes() == placed[1000:1100].tobytes()


def test_only_the_classes_that_take_part_change():
    par, step, first = make(8, "split", share=0.25, dtype="float32")
    (batch,) = batches(1)
    before = par.place(first)
    old = np.asarray(before.params["head"]["class_weights"])
    state, metrics = step(before, batch)
    new, momentum = (
        np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if rows.is_split(path, ("class_weights",))
    )
    changed = (new != old).any(axis=1)
    assert changed[batch["target"]].all() and changed.sum() == 8 * 64
    assert not changed[PEOPLE:1536].any()  # padding of a device that has people
    assert ((momentum != 0).any(axis=1) == changed).all()
    assert np.isfinite(metrics["grad_norm"]) and not metrics["skipped"]
    second, _ = step(state, batch)
    assert ((np.asarray(second.params["head"]["class_weights"]) != new).any(axis=1) != changed).any()


def test_all_classes_drawn_is_the_loss_of_all():
    with jax.enable_x64(True):
        _, every, told = run(2, 4, "split")
        _, drawn, again = run(2, 4, "split", share=0.9999)
        assert furthest(every, drawn) < 1e-12 and furthest(told, again) < 1e-9


def test_a_step_that_is_not_finite_changes_no_class():
    par, step, first = make(8, "split", share=0.25, dtype="float32")
    (batch,) = batches(1)
    batch["target"][5] = PEOPLE  # there is no such person
    state, metrics = step(par.place(first), batch)
    assert metrics["skipped"] and int(state.skipped_steps) == 1
    old, new = (np.asarray(one.params["head"]["class_weights"]) for one in (first, state))
    assert old.tobytes() == new.tobytes()


def test_a_run_with_split_class_weights_scores_as_one_with_copies_and_resumes(make_config, trained, tmp_path):
    from lae_jax.evaluate import evaluate
    from lae_jax.train import loop

    def told(run):
        text = files.read_text(run / "metrics.jsonl")
        return [float(x) for x in re.findall(r'"(?:loss|grad_norm)": ([\d.e-]+)', text)]

    config = make_config("pretrain", tmp_path)
    config.model.class_weights, config.save_steps = "split", 1
    scores, run = loop.train(config)["scores"], tmp_path / "pretrain"
    np.testing.assert_allclose(told(run), told(trained("pretrain")), rtol=2e-4)
    copied = json.loads((trained("pretrain") / "summary.json").read_text())["scores"]
    assert scores["equal_error_rate"] == pytest.approx(copied["equal_error_rate"], abs=0.01)
    assert evaluate(run).report["equal_error_rate"] == pytest.approx(scores["equal_error_rate"], abs=0.001)
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoints" / "3")
    assert loop.train(config)["scores"] == scores

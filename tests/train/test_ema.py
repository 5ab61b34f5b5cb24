"""The EMA of the weights: torch's numbers, the same in both forms and after a stop, and what others read of a run."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from halted import state_of, train_until
from trees import equal

from lae_jax import optim
from lae_jax.evaluate import measure
from lae_jax.runtime import checkpoints
from lae_jax.runtime.errors import InputError
from lae_jax.train import loop, steps
from lae_jax.train.plan import make_plan

# torch 2.14.1, float64: 20 steps of SGD(0.05, momentum=0.9, nesterov=True) on 0.5 sum(h (x - c)^2) and a buffer
# v <- v / 2 + step, in AveragedModel(multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True), which first takes the
# weights of step 0.
WEIGHTS, BUFFER = [1.9417657189101525, -1.9859779693507666, 0.688508861472482], [20.872247868655748, 20.735474251450647]


def quadratic_state(tx):
    variables = {
        "params": {"backbone": {"w": np.array([3.0, -1.0, 2.0])}, "head": {"b": np.ones(2)}},
        "batch_stats": {"backbone": {"v": np.array([1.0, 0.0])}},
    }
    return steps.create_state(variables, tx, ("backbone",))


def test_the_ema_is_torchs_and_a_skipped_step_leaves_it():
    with jax.enable_x64(True):
        tx = optim.sgd(0.05, weight_decay=0.0)
        state = jax.tree.map(jnp.asarray, quadratic_state(tx))
        update = jax.jit(lambda *args: steps._update(*args[:3], tx, args[3], 0.9))
        for number in range(20):
            gradient = np.array([0.2, 1.0, 3.0]) * (state.params["backbone"]["w"] - np.array([1.0, -2.0, 0.5]))
            stats = jax.tree.map(lambda v, number=number: v / 2 + number, state.batch_stats)
            grads = {"backbone": {"w": gradient}}
            bad = update(state, grads, jax.tree.map(lambda v: v + 9, stats), False)
            jax.tree.map(np.testing.assert_array_equal, bad.ema, state.ema)
            assert int(bad.skipped_steps) == 1
            state = update(state, grads, stats, True)
        np.testing.assert_allclose(state.ema["params"]["backbone"]["w"], WEIGHTS, rtol=1e-12)
        np.testing.assert_allclose(state.ema["batch_stats"]["backbone"]["v"], BUFFER, rtol=1e-12)


def test_weights_that_do_not_change_keep_their_bits_in_the_ema():
    tx = optim.sgd(0.1, weight_decay=0.0)
    start = {"params": {"head": {"b": np.float32([0.1, 1 / 3, 1e-7])}}}
    state = jax.tree.map(jnp.asarray, steps.create_state(start, tx, ("head",)))
    for _ in range(3):
        state = steps._update(state, {"head": {"b": jnp.zeros(3)}}, {}, tx, jnp.bool_(True), 0.9999)
    assert np.asarray(state.ema["params"]["head"]["b"]).tobytes() == start["params"]["head"]["b"].tobytes()


def test_a_run_without_ema_has_the_state_of_older_runs(trained):
    assert type(steps.create_state({"params": {}}, optim.sgd(0.1))) is steps.TrainState
    assert {*steps.TrainState.__dataclass_fields__} == {"step", "skipped_steps", "params", "batch_stats", "opt_state"}
    with checkpoints.Checkpoints(trained("represent"), read_only=True) as saved:
        assert "ema" not in saved._saved(saved.best())


@pytest.fixture(scope="module")
def averaged(once, make_config):
    """Folder of runs of stage 2 with an EMA: `whole`, and `parts`, which was stopped twice; and what each was given."""

    def make(folder):
        config = make_config("represent", folder)
        config.ema_decay, config.accumulate, config.save_steps, config.epochs = 0.75, 2, 1, 2.0
        config.optim.name, config.optim.base_learning_rate, config.optim.decay_all = "adamw", 0.1, False
        config.optim.schedule, config.optim.layer_decay, config.optim.head_factor = "warmup_cosine", 0.9, 2.0
        config.workdir = str(folder / "whole")
        loop.train(config)
        config.workdir, config.parallel = str(folder / "parts"), "pmap"
        train_until(config, 2, of=6)
        config.parallel = "shard_map"
        loop.train(config)

    return once("averaged", make)


def test_a_run_with_ema_and_adamw_goes_on_bit_for_bit_in_the_other_form(averaged):
    one, two = (state_of(averaged / name, 6) for name in ("whole", "parts"))
    assert equal(one, two)


def test_the_ema_of_a_step_follows_from_that_of_the_step_before(averaged):
    before, after = (state_of(averaged / "whole", step) for step in (5, 6))
    for kind in ("params", "batch_stats"):
        expected = jax.tree.map(lambda e, x: 0.75 * np.float64(e) + 0.25 * x, before["ema"][kind], after[kind])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), after["ema"][kind], expected)
        assert not equal(after["ema"][kind], after[kind])


def test_the_ema_is_scored_kept_read_and_handed_on(averaged, make_config, tmp_path, caplog):
    caplog.set_level("INFO", "lae_jax")
    run = checkpoints.load_run(averaged / "whole")
    ema = state_of(averaged / "whole", run.step)["ema"]
    assert equal(run.variables, ema)  # all parts train, so all are of the EMA
    raw = dataclasses.replace(run, variables=state_of(averaged / "whole", run.step, ("params", "batch_stats")))
    found = [measure.predict(one, split="validation").scores()["mae"] for one in (run, raw)]
    assert found[0] == pytest.approx(run.meta["scores"]["mae"], abs=1e-4) and abs(found[0] - found[1]) > 0.01

    third = make_config("classify", tmp_path)
    third.init_from, third.ema_decay = str(averaged / "whole"), 0.9
    loop.train(third)
    assert "has an EMA (config.ema_decay 0.75): its weights are taken" in caplog.text
    assert "73% of the EMA are the weights that it starts from" in caplog.text
    state, found = state_of(third.workdir, 3), checkpoints.load_run(third.workdir, 3).variables
    assert {*state["ema"]["params"]} == {"head"} and not jax.tree.leaves(state["ema"]["batch_stats"])
    for kind in ("params", "batch_stats"):
        assert equal(state[kind]["backbone"], ema[kind]["backbone"]) and equal(
            found[kind]["backbone"], ema[kind]["backbone"]
        )
    assert equal(found["params"]["head"], state["ema"]["params"]["head"])
    assert not equal(found["params"]["head"], state["params"]["head"])


def test_an_ema_cannot_be_turned_on_when_a_run_goes_on(small_config, trained):
    config = small_config("represent")
    config.workdir, config.ema_decay = str(trained("represent")), 0.9
    meta = checkpoints.load_run(pathlib.Path(config.workdir)).meta
    with pytest.raises(InputError, match=r"another config \(ema_decay: 0.0 there, 0.9 now\)"):
        make_plan(config, meta)

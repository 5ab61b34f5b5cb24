"""Runs that are asked to end after a step, and what their checkpoints hold bit for bit."""

import contextlib

import pytest

from lae_jax.runtime import checkpoints, watch
from lae_jax.runtime.errors import Preempted
from lae_jax.train import loop

STATE = ("step", "params", "batch_stats", "opt_state", "ema", "cure")


@contextlib.contextmanager
def asked_after(number):
    """Signals that ask a run to end once it has saved its step `number`, counted from 0."""
    signals = watch.Signals()

    def save(self, state, step, scores, *place, original=loop._Loop.save):
        original(self, state, step, scores, *place)
        signals.asked = signals.asked or step == number

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Loop, "save", save)
        yield signals


def train_until(config, step, of):
    """Trains a run, which saves each step, until it has done `step` of `of` steps."""
    with asked_after(step - 1) as signals, pytest.raises(Preempted, match=f"saved at step {step} of {of}"):
        loop.train(config, signals)


def state_of(workdir, step, names=STATE):
    """The arrays of a checkpoint, of those parts that it has."""
    with checkpoints.Checkpoints(workdir, read_only=True) as saved:
        return saved.arrays(step, tuple(name for name in names if name in saved._saved(step)))

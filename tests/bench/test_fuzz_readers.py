"""Damaged input: a reader reads or refuses it (benchmarks/fuzz_readers.py has the targets, for longer runs too)."""

import hypothesis
import pytest
from hypothesis import strategies as st

from benchmarks import fuzz_readers

QUICK = hypothesis.settings(
    max_examples=250, deadline=5000, derandomize=True, database=None, suppress_health_check=list(hypothesis.HealthCheck)
)
ODD = st.sampled_from(
    [b"\0", b"\xff", b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\0\0\0\x80", b'"', b"\n", b",", b"../"]
)


@st.composite
def damaged(draw, target: str) -> bytes:
    """A true input with a few bytes overwritten, put in, taken out or doubled, or cut off."""
    data = bytearray(draw(st.sampled_from(fuzz_readers.seeds(target))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["over", "in", "out", "double", "cut"]))
        piece = draw(ODD | st.binary(min_size=1, max_size=8))
        if kind == "over":
            data[at : at + len(piece)] = piece
        elif kind == "in":
            data[at:at] = piece
        elif kind == "out":
            del data[at : at + draw(st.integers(1, 40))]
        elif kind == "double":
            data[at:at] = data[at : at + draw(st.integers(1, 200))]
        elif draw(st.booleans()):
            del data[at:]
    return bytes(data)


# A target raises what no reader may raise; that is how these two fail.
@pytest.mark.parametrize("target", sorted(fuzz_readers.TARGETS))
def test_damaged_input_is_read_or_refused(target):
    @QUICK
    @hypothesis.given(damaged(target) | st.binary(max_size=300))
    def check(data):
        fuzz_readers.TARGETS[target](data)

    check()


@pytest.mark.parametrize("target", sorted(fuzz_readers.TARGETS))
def test_targets_read_their_seeds(target):
    for seed in fuzz_readers.seeds(target):
        fuzz_readers.TARGETS[target](seed)

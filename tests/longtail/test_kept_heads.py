"""Heads of a bench that was stopped are read and not trained again."""

import numpy as np
import pytest

from lae_jax.longtail import kept_heads

HEADS = {"fc": {"kernel": np.arange(6, dtype=np.float32).reshape(1, 2, 3), "bias": np.ones((1, 2), np.float32)}}
SKIPPED = np.array([[0, 3]], np.int32)


def call(folder, of, train=lambda: (HEADS, SKIPPED)):
    return kept_heads.trained(folder / "heads", "lae", of, train)


def must_not_train():
    raise AssertionError("trained again")


def test_heads_are_trained_once_for_what_determines_them(tmp_path):
    call(tmp_path, {"seeds": [0]})
    heads, skipped = call(tmp_path, {"seeds": [0]}, must_not_train)
    assert (heads["fc"]["kernel"] == HEADS["fc"]["kernel"]).all() and heads["fc"]["bias"].dtype == np.float32
    assert (skipped == SKIPPED).all()
    with pytest.raises(AssertionError, match="trained again"):
        call(tmp_path, {"seeds": [1]}, must_not_train)


@pytest.mark.parametrize("damage", [lambda c: c[:100], lambda c: b"", lambda c: c[:-300] + b"\0" * 300, lambda c: b"x"])
def test_heads_in_a_damaged_file_are_trained_again(tmp_path, damage, caplog):
    call(tmp_path, {"seeds": [0]})
    (path,) = (tmp_path / "heads").iterdir()
    path.write_bytes(damage(path.read_bytes()))
    heads, _ = call(tmp_path, {"seeds": [0]})
    assert (heads["fc"]["kernel"] == HEADS["fc"]["kernel"]).all()
    assert call(tmp_path, {"seeds": [0]}, must_not_train)


def test_a_flipped_number_is_seen(tmp_path):
    call(tmp_path, {"seeds": [0]})
    (path,) = (tmp_path / "heads").iterdir()
    content = bytearray(path.read_bytes())
    content[content.index(HEADS["fc"]["kernel"].tobytes()) + 5] ^= 4
    path.write_bytes(content)
    heads, _ = call(tmp_path, {"seeds": [0]})
    assert (heads["fc"]["kernel"] == HEADS["fc"]["kernel"]).all()

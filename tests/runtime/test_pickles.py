"""Pickles of strangers: plain values come out, and nothing else happens."""

import os
import pickle

import numpy as np
import pytest

from lae_jax.runtime.foreign import pickles

PLAIN = ([b"\xff\xd8a", b"b" * 300], [True, False])


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_bytes_bools_and_arrays_of_both_come_out_of_every_protocol(protocol):
    assert pickles.plain(pickle.dumps(PLAIN, protocol)) == PLAIN
    arrays = ([np.frombuffer(one, np.uint8) for one in PLAIN[0]], np.array(PLAIN[1]))
    assert pickles.plain(pickle.dumps(arrays, protocol)) == PLAIN
    copies = ([one.copy() for one in arrays[0]], [np.bool_(True), np.bool_(False)])
    assert pickles.plain(pickle.dumps(copies, protocol)) == PLAIN


def test_texts_of_python_2_are_bytes():
    # pickle.dumps((['\xff\xd8', 'b'], [True, False]), 2) of Python 2
    written = b"\x80\x02]q\x00(U\x02\xff\xd8q\x01U\x01bq\x02e]q\x03(\x88\x89e\x86q\x04."
    assert pickles.plain(written) == ([b"\xff\xd8", b"b"], [True, False])


class Command:
    def __init__(self, function, *arguments):
        self.what = function, arguments

    def __reduce__(self):
        return self.what


def test_a_hostile_pickle_runs_nothing(tmp_path):
    touched = tmp_path / "touched"
    hostile = [
        Command(os.mkdir, str(touched)),
        Command(eval, f"__import__('os').mkdir({str(touched)!r})"),
        [b"", Command(os.mkdir, str(touched))],
        Command(np.fromfile, str(touched)),
    ]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for one in hostile:
            with pytest.raises(pickles.BadPickle, match=r"it names |the instruction "):
                pickles.plain(pickle.dumps(one, protocol))
    pickle.loads(pickle.dumps(hostile[0]))  # it does run where nothing is checked
    assert touched.exists()


def build(*parts):
    return b"\x80\x04" + b"".join(parts) + b"."


NAME = b"cnumpy.core.multiarray\n_reconstruct\n"
DTYPE = b"cnumpy\ndtype\n\x8c\x02u1\x85R"


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (b"", "damaged"),
        (pickle.dumps(PLAIN)[:-5], "damaged"),
        (b"\x80\x04" + b"\x8e" + (1 << 62).to_bytes(8, "little") + b".", "damaged"),  # bytes without end
        (b"\x80\x05" + b"\x96" + (1 << 40).to_bytes(8, "little") + b".", "damaged"),  # a buffer of a terabyte
        (build(b"]r" + (1 << 30).to_bytes(4, "little")), "LONG_BINPUT"),  # a table of that length
        (b"\x80\x04\x95" + (1 << 60).to_bytes(8, "little") + b"].", "FRAME"),
        (build(b"}"), "EMPTY_DICT"),
        (build(b"I" + b"9" * 3000 + b"\n"), "INT"),
        (build(NAME), "something else"),
        (build(NAME, b")R", DTYPE, b"b"), "damaged"),  # the state is no tuple
        (build(NAME, b")R", b"(K\x01K\x05\x85", DTYPE, b"\x89C\x01atb"), "dimensions"),
        (build(NAME, b")R", b"(K\x01K\x01\x85K\x00\x89C\x01atb"), "neither of uint8"),
        (build(b"cnumpy\ndtype\n", b"]b"), "damaged"),  # sets the state of the class itself
        (build(b"c_codecs\nencode\n\x8c\x01a\x8c\x05utf-7\x86R"), "unknown way"),
        (build(b"]", b"\x94h\x00a"), "lists in lists"),  # a list in itself
        (
            build(*[b"]", *[b"\x94(" + b"h" + bytes([i]) + b"h" + bytes([i]) + b"e" for i in range(9)]]),
            "lists in lists",
        ),
    ],
)
def test_a_damaged_or_large_pickle_is_one_sentence(written, told):
    with pytest.raises(pickles.BadPickle, match=told):
        pickles.plain(written)


def test_a_list_that_occurs_many_times_is_counted_as_often(monkeypatch):
    monkeypatch.setattr(pickles, "MAX_INSTRUCTIONS", 1000)
    one = [True] * 100
    with pytest.raises(pickles.BadPickle, match="too many values"):
        pickles.plain(pickle.dumps([one] * 100))
    with pytest.raises(pickles.BadPickle, match="more than 1,000 instructions"):
        pickles.plain(pickle.dumps([[True] * 5000]))


def text_in_memory(letters):
    return b"\x8c" + bytes([len(letters)]) + letters + b"\x94"


FROM_BUFFER = b"cnumpy.core.numeric\n_frombuffer\n\x94"


def buffer_in_memory(kind):
    """A buffer, its type and the function that makes an array of it, in places 0, 1 and 2."""
    return b"\x96" + (90).to_bytes(8, "little") + bytes(90) + b"\x94" + kind + b"\x94" + FROM_BUFFER


@pytest.mark.parametrize(
    ("begin", "again"),
    [
        (text_in_memory(b"a" * 90) + text_in_memory(b"latin1") + b"c_codecs\nencode\n\x94", b"h\x02h\x00h\x01\x86R"),
        (buffer_in_memory(DTYPE), b"h\x02(h\x00h\x01K\x5a\x85K\x00tR"),
        (buffer_in_memory(DTYPE.replace(b"u1", b"b1")), b"h\x02(h\x00h\x01K\x5a\x85K\x00tR"),
    ],
)
def test_what_the_instructions_copy_is_bounded(begin, again, monkeypatch):
    monkeypatch.setattr(pickles, "MAX_COPIES", 1000)
    assert len(pickles.plain(b"\x80\x05" + begin + b"]" + again + b"a.")[0]) == 90
    with pytest.raises(pickles.BadPickle, match=r"its instructions copy more than \d,\d+ bytes"):
        pickles.plain(b"\x80\x05" + begin + b"]" + 100 * (again + b"a") + b".")


def test_a_function_with_many_arguments_is_not_called_again_and_again():
    """A call copies its arguments."""
    for name in (NAME, b"cnumpy\ndtype\n"):
        with pytest.raises(pickles.BadPickle, match="damaged"):
            pickles.plain(build(b"]", name, b"(" + b"\x88" * 99 + b"tRa"))


def test_the_name_of_a_type_is_not_hashed():
    """A tuple that holds a tuple twice, and so on: a hash of it takes 2^60 steps."""
    nested = b")" + b"".join(b"\x94h" + bytes([i]) + b"\x86" for i in range(60))
    written = build(NAME, b")R", b"(K\x01K\x01\x85cnumpy\ndtype\n", nested, b"\x85R\x89C\x01atb")
    with pytest.raises(pickles.BadPickle, match="neither of uint8"):
        pickles.plain(written)

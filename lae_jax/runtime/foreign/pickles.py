"""Pickles of strangers that hold plain values: nothing that such a file names is imported or called.

A pickle is a program for a small machine. The program is read first, and refused at the first instruction that plain
values do not need. The names of NumPy's arrays stand for classes of this file, which only hold bytes.
"""

import io
import pickle
import pickletools

import numpy as np

MAX_INSTRUCTIONS = 5_000_000  # instructions of a pickle; a value takes one to three
MAX_COPIES = 1 << 26  # bytes that the instructions copy, besides the size of the pickle: each byte once, and bools
_BOOL_BYTES = 8  # of a bool in a list
_ALLOWED = {
    *("PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2"),
    *("EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8", "SHORT_BINSTRING", "BINSTRING"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "MEMOIZE"),
    *("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),  # of the names below alone
}
_DEPTH = 4  # lists in lists


class BadPickle(ValueError):
    """A pickle is damaged or holds something else than plain values; the message is the reason."""


def plain(encoded: bytes) -> object:
    """Returns the content of a pickle: bytes, bools, whole numbers, None, texts, and lists and tuples of them.

    Texts of Python 2 are bytes. An array of NumPy of one dimension is bytes (of uint8) or a list of bools.

    Raises:
      BadPickle: The file is damaged, is too large a program, or holds anything else.
    """
    _require_plain(encoded)
    try:
        return _unwrapped(_Unpickler(encoded).load(), [MAX_INSTRUCTIONS], _DEPTH)
    except BadPickle:
        raise
    except Exception as error:  # the machine raises whatever a damaged program leads to
        raise BadPickle(f"damaged ({error})") from error


def _require_plain(encoded: bytes) -> None:
    """Checks each instruction, without running any."""
    try:
        for count, (instruction, argument, _) in enumerate(pickletools.genops(encoded)):
            name = instruction.name
            if name not in _ALLOWED:
                raise BadPickle(f"it has the instruction {name}, which lists of pictures do not need")
            # Tables and buffers are made as large as these say.
            too_large = name in ("LONG_BINPUT", "LONG_BINGET") and argument > count
            if too_large or (name == "FRAME" and argument > len(encoded)):
                raise BadPickle(f"damaged ({name} {argument})")
            if count >= MAX_INSTRUCTIONS:
                raise BadPickle(f"more than {MAX_INSTRUCTIONS:,} instructions")
    except (ValueError, IndexError, UnicodeError) as error:
        raise error if isinstance(error, BadPickle) else BadPickle(f"damaged ({error})") from error


class _Type:
    """Stands for numpy.dtype, and for numpy.ndarray, which is an argument alone."""

    def __init__(self, name: object = b"", align: object = False, copy: object = False):
        self.name = name

    def __setstate__(self, state: object) -> None:
        """The byte order, which a byte does not have."""


class _Array:
    """Stands for an array, whose content comes with its state."""

    def __init__(self, stand_ins: "_StandIns"):
        self._stand_ins = stand_ins
        self.values: bytes | list[bool] = b""

    def __setstate__(self, state: tuple) -> None:
        """Takes (version, shape, type, order, content)."""
        _, shape, kind, _, content = state
        self.values = self._stand_ins.values(shape, kind, content)


class _StandIns:
    """What the names in a pickle stand for.

    They take few arguments, because calling them copies these.
    """

    def __init__(self, most: int):
        self._most = self._left = most  # bytes that they copy
        self.of = {
            ("_codecs", "encode"): self._encoded,
            ("numpy", "dtype"): _Type,
            ("numpy", "ndarray"): _Type,
            **{(f"numpy.{core}.multiarray", "_reconstruct"): self._array for core in ("core", "_core")},
            **{(f"numpy.{core}.multiarray", "scalar"): self._scalar for core in ("core", "_core")},
            **{(f"numpy.{core}.numeric", "_frombuffer"): self._from_buffer for core in ("core", "_core")},
        }

    def values(self, shape: object, kind: object, content: object) -> bytes | list[bool]:
        """Returns the content of an array of one dimension."""
        # No lookup in a dict: the hash of a tuple takes as long as all that it holds, tuples in tuples many times.
        is_bytes, is_bools = (isinstance(kind, _Type) and kind.name in (n, n.encode()) for n in ("u1", "b1"))
        if not (is_bytes or is_bools) or not isinstance(content, bytes | bytearray):
            raise BadPickle("an array is neither of uint8 nor of bool")
        if not isinstance(shape, tuple) or shape != (len(content),):
            raise BadPickle("an array has more or fewer dimensions than one")
        if is_bools:
            self._take(_BOOL_BYTES * len(content))
            return np.frombuffer(content, np.bool_).tolist()
        if isinstance(content, bytearray):
            self._take(len(content))
        return bytes(content)

    def _take(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise BadPickle(f"its instructions copy more than {self._most:,} bytes")

    def _array(self, kind: object = None, shape: object = None, code: object = None) -> _Array:
        """Stands for numpy.core.multiarray._reconstruct."""
        return _Array(self)

    def _scalar(self, kind: object, content: object) -> bool:
        """Stands for numpy.core.multiarray.scalar."""
        (value,) = self.values((1,), kind, content)
        return bool(value)

    def _from_buffer(self, content: object, kind: object, shape: object, order: object) -> _Array:
        """Stands for numpy.core.numeric._frombuffer."""
        array = _Array(self)
        array.values = self.values(shape, kind, content)
        return array

    def _encoded(self, text: object, encoding: object) -> bytes:
        """Stands for _codecs.encode, by which Python 3 writes bytes for Python 2."""
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise BadPickle("bytes are written in an unknown way")
        self._take(len(text))
        return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    def __init__(self, encoded: bytes):
        super().__init__(io.BytesIO(encoded), encoding="bytes")
        self._stand_ins = _StandIns(len(encoded) + MAX_COPIES).of

    def find_class(self, module: str, name: str) -> object:
        """Returns what stands for a name; all others are refused."""
        if (module, name) not in self._stand_ins:
            raise BadPickle(f"it names {module[:60]}.{name[:60]}, which is not plain data")
        return self._stand_ins[module, name]


def _unwrapped(value: object, left: list[int], depth: int) -> object:
    """The value with arrays as bytes or lists; counts its parts in `left`, because a list may occur many times."""
    left[0] -= 1
    if left[0] < 0 or depth < 0:
        raise BadPickle("too many values, or lists in lists")
    if isinstance(value, _Array):
        return value.values
    if isinstance(value, list | tuple):
        return type(value)([_unwrapped(one, left, depth - 1) for one in value])
    if value is None or type(value) in (bytes, str, bool, int):
        return value
    raise BadPickle("it holds something else than bytes and bools")

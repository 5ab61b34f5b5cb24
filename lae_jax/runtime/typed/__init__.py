"""Forms of JSON: declare which types and ranges the fields of a file have, and find the first field that differs.

A form is a function (value, name) that raises `Differs` unless the value has the form. The functions here make forms:
`fields({"step": whole(0), "scores": optional(fields({"mae": number(0)}))})`.
"""

import math
import os
import re
from collections.abc import Callable, Collection, Mapping

from lae_jax.runtime.errors import InputError

RESTORE = "restore it, or choose another folder"  # what to do with a damaged file
Form = Callable[[object, str], None]

_LONGEST = 60  # characters of a wrong value in a message


class Differs(ValueError):
    """A value has another form. The message names the field, its value and what it must be."""

    def __init__(self, name: str, value: object, wanted: str):
        shown = repr(value)
        shown = shown if len(shown) <= _LONGEST else shown[:_LONGEST] + "..."
        super().__init__(f"{name or 'the content'} is {shown}: it must be {wanted}")


def number(low: float = -math.inf, high: float = math.inf, *, above: float | None = None) -> Form:
    """Returns the form of a finite number.

    Args:
      low: The lowest allowed number.
      high: The highest allowed number.
      above: The number must be larger than this one.
    """

    def check(value: object, name: str) -> None:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not (is_number and low <= value <= high and (above is None or value > above)):
            raise Differs(name, value, "a number" + _range(low, high, above))

    return check


def whole(low: float = -math.inf, high: float = math.inf) -> Form:
    """Returns the form of a whole number (written without a fraction) from `low` to `high`."""

    def check(value: object, name: str) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise Differs(name, value, "a whole number" + _range(low, high))

    return check


def _range(low: float, high: float, above: float | None = None) -> str:
    parts = [] if above is None else [f"above {above:g}"]
    parts += [f"{word} {bound:g}" for word, bound in (("at least", low), ("at most", high)) if math.isfinite(bound)]
    return " " * bool(parts) + " and ".join(parts)


def text(pattern: str = r"[\s\S]*", wanted: str = "text") -> Form:
    """Returns the form of text that matches a regular expression as a whole; `wanted` describes it in messages."""
    compiled = re.compile(pattern)

    def check(value: object, name: str) -> None:
        if not isinstance(value, str) or not compiled.fullmatch(value):
            raise Differs(name, value, wanted)

    return check


def one_of(values: Collection[object]) -> Form:
    """Returns the form of one of some values, of the same type."""

    def check(value: object, name: str) -> None:
        if not any(type(value) is type(one) and value == one for one in values):
            raise Differs(name, value, " or ".join(map(repr, values)))

    return check


def flag() -> Form:
    """Returns the form of true or false."""

    def check(value: object, name: str) -> None:
        if not isinstance(value, bool):
            raise Differs(name, value, "true or false")

    return check


def nullable(form: Form) -> Form:
    """Returns the form of a value that may be null."""

    def check(value: object, name: str) -> None:
        if value is not None:
            form(value, name)

    return check


def optional(form: Form) -> Form:
    """Returns the form of a value that may be null, and in `fields` may be missing."""
    check = nullable(form)
    _MAY_MISS.add(check)
    return check


_MAY_MISS: set[Form] = set()


def many(form: Form, count: int | None = None) -> Form:
    """Returns the form of a list of values of one form; `count` is its length (None: any)."""

    def check(value: object, name: str) -> None:
        if not isinstance(value, list) or (count is not None and len(value) != count):
            raise Differs(name, value, "a list" if count is None else f"a list of {count}")
        for place, one in enumerate(value):
            form(one, f"{name}[{place}]")

    return check


def named(form: Form, names: Form | None = None) -> Form:
    """Returns the form of an object with any fields of one form.

    Args:
      form: The form of each field.
      names: The form of their names; None: any.
    """

    def check(value: object, name: str) -> None:
        if not isinstance(value, Mapping):
            raise Differs(name, value, "an object")
        for key, one in value.items():
            if names is not None:
                names(key, f"a name in {name or 'the content'}")
            form(one, _joined(name, key))

    return check


def fields(forms: Mapping[str, Form]) -> Form:
    """Returns the form of an object with certain fields; other fields are not checked.

    Args:
      forms: The form of each field. An `optional` one may be missing.
    """

    def check(value: object, name: str) -> None:
        if not isinstance(value, Mapping):
            raise Differs(name, value, "an object")
        for key, form in forms.items():
            if key in value:
                form(value[key], _joined(name, key))
            elif form not in _MAY_MISS:
                raise ValueError(f"no {_joined(name, key)}")

    return check


def either(one: Form, other: Form) -> Form:
    """Returns the form of a value that has one of two forms."""

    def check(value: object, name: str) -> None:
        try:
            one(value, name)
        except Differs:
            other(value, name)

    return check


def require(content: object, form: Form, where: os.PathLike | str, again: str = RESTORE) -> None:
    """Checks that a content has a form.

    Args:
      content: What was read.
      form: Its form.
      where: The file, for the message.
      again: What to do if it is damaged, for the message.

    Raises:
      InputError: It has another form; the message names the file and the field.
    """
    try:
        form(content, "")
    except ValueError as error:
        raise InputError(f"{where} is damaged ({error}): {again}") from error


def _joined(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)

"""Ages as tables have them: numbers and ranges are read, other texts are rejected with a hint at what they are."""

import math
import re
from typing import NamedTuple

from lae_jax.data import people
from lae_jax.faces.images import BadImage

_NUMBER = r"\d{1,3}(?:\.\d+)?"
_UNITS = r"(?:years?(?:[ -]old)?|yrs?|yo|y/o|y|ans|jahre|años)"
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_LONG = ("uary", "ruary", "ch", "il", "", "e", "y", "ust", "t(?:ember)?", "ober", "ember", "ember")
_MONTH = rf"({'|'.join(f'{short}(?:{rest})?' for short, rest in zip(_MONTHS, _LONG, strict=True))})"
_DASHES = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2212", "-"))
_RANGE = re.compile(
    rf"(?:({_NUMBER})\s*(?:-|–|—|~|\.\.+|to|bis)\s*({_NUMBER})"
    rf"|[(\[]\s*({_NUMBER})\s*(?:-|–|—|~|\.\.+|,|;|to|bis)\s*({_NUMBER})\s*[)\]])\s*{_UNITS}?"
)
_UNSURE_RANGE = re.compile(rf"{_NUMBER}\s*[,;/]\s*{_NUMBER}\s*{_UNITS}?")
_FROM = re.compile(
    rf"(?:>=?|≥|over|above|(?:more|older|greater) than|at least)\s*({_NUMBER})\s*{_UNITS}?"
    rf"|({_NUMBER})\s*(?:(?:{_UNITS}\s*)?(?:\+|plus)|(?:{_UNITS}\s*)?(?:and|or) (?:over|above|older|more))"
)
_UP_TO = re.compile(
    rf"(?:<=|≤|at most|up to)\s*({_NUMBER})\s*{_UNITS}?|({_NUMBER})\s*(?:{_UNITS}\s*)?(?:and|or) (?:under|younger)"
)
_BELOW = re.compile(rf"(?:<|under|below|(?:less|younger) than)\s*(\d{{1,3}})\s*{_UNITS}?")
_DATE_OF_RANGE = re.compile(rf"(\d{{1,2}})[-. /]{{1,2}}{_MONTH}|{_MONTH}[-. /]{{1,2}}(\d{{1,2}})")
_DATE = re.compile(
    rf"(?:\d{{4}}[-./]\d{{1,2}}[-./]\d{{1,2}}|\d{{1,2}}[-./]\d{{1,2}}[-./]\d{{2,4}}"
    rf"|\d{{1,2}}[-. /]{{1,2}}{_MONTH}[-. /,]{{1,2}}\d{{2,4}})(?:[ t].*)?"
)
_COMMA = re.compile(r"\d{1,3},\d")
_WORDS = re.compile(rf"(?:age[d:]?|is)?\s*({_NUMBER})\s*{_UNITS}?")
_SHORT = re.compile(rf"{_NUMBER}\s*(months?|mos?|weeks?|wks?|days?)(?: old)?")


OLDEST = 100  # years; a range that ends here has no upper end
_LONGEST_LIFE = 120  # years: a range that ends above is a typing error


class AgeRange(NamedTuple):
    """A range of ages in years.

    Attributes:
      low: The first age.
      high: The last age, at least `low`; OLDEST if the range has no upper end.
      read_as: '' or, of a range that a spreadsheet turned into a date, how it is read.
    """

    low: float
    high: float
    read_as: str = ""


class BadAge(BadImage):
    """A text is not an age.

    Attributes:
      kind: What it and others of its kind look like, with what to do; '' if nothing is known.
    """

    def __init__(self, told: str, hint: str = ""):
        super().__init__(f"{told}: it looks like {hint}" if hint else told)
        self.kind = hint


def parse_number(text: str) -> float:
    """Reads a number as float does, but not 1_0, which Python reads as 10.

    Raises:
      ValueError: The text is not a number.
    """
    if "_" in text:
        raise ValueError(text)
    return float(text)


def parse_age(text: str) -> float:
    """Reads an age in years, with its fraction.

    Raises:
      BadAge: The text is not a number from 0 to 100.
    """
    try:
        age = parse_number(text)
    except ValueError:
        if not people.normalised(text[:40]):
            raise BadAge(f"no age ({text[:40]!r})" if text else "no age") from None
        raise BadAge(f"age {text[:40]!r} is not a number", looks_like(text)) from None
    if math.isnan(age):
        raise BadAge(f"no age ({text[:40]!r})")
    if not 0 <= age <= OLDEST:
        year = 1850 <= age <= 2100 and age == int(age)
        hint = "a year, perhaps of birth: write the age in the photograph" if year else ""
        raise BadAge(f"age {text[:40]!r} is outside 0 to 100", hint)
    return age


def parse_age_or_range(text: str) -> float | AgeRange:
    """Reads an age in years, or a range of ages: `20-29`, `(25, 32)`, `60+`, `more than 70`, `under 18`.

    Both ends of a range belong to it; `more than 70` is 70 and above, as tables of ranges mean it, and `under 18` ends
    at 17. A range whose ends are equal is an age. `03-Sep` and `Oct-19`, which spreadsheets make of 3-9 and 10-19, are
    read as these.

    Raises:
      BadAge: The text is neither a number from 0 to 100 nor a range of such.
    """
    found = _range(text)
    if found is None:
        return parse_age(text)
    low, high, read_as = found
    if low > OLDEST or not 0 <= high <= _LONGEST_LIFE:
        raise BadAge(f"age {text[:40]!r} is outside 0 to {OLDEST}")
    if low > high:
        raise BadAge(f"age {text[:40]!r} is a range from {low:g} to {high:g}: write the younger age first")
    high = min(high, float(OLDEST))
    return low if low == high and not read_as else found._replace(high=high)


def _range(text: str) -> AgeRange | None:
    """Returns the range that a text is, whatever its ends; None if it is none."""
    if len(text) > 60:
        return None
    text = _plain(text)
    if _DATE.fullmatch(text) or _COMMA.fullmatch(text):
        return None
    if found := _DATE_OF_RANGE.fullmatch(text):
        number = int(found[1] or found[4])
        if not 1 <= number <= 31:  # no day: a month and a year, perhaps of birth
            return None
        month = 1 + _MONTHS.index((found[2] or found[3])[:3])
        low, high = sorted((month, number))
        return AgeRange(float(low), float(high), f"{low}-{high}")
    if found := _RANGE.fullmatch(text):
        return AgeRange(float(found[1] or found[3]), float(found[2] or found[4]))
    if found := _FROM.fullmatch(text):
        return AgeRange(float(found[1] or found[2]), float(OLDEST))
    if found := _UP_TO.fullmatch(text):
        return AgeRange(0.0, float(found[1] or found[2]))
    if found := _BELOW.fullmatch(text):
        return AgeRange(0.0, float(found[1]) - 1)
    return None


def _plain(text: str) -> str:
    return " ".join(text.casefold().translate(_DASHES).split())


def looks_like(text: str) -> str:
    """Returns what a text that is not an age looks like, and what to do; '' if it looks like nothing known."""
    if len(text) > 60:
        return ""
    text = _plain(text)
    if _range(text) is not None:
        return "a range of ages: write one age"  # for readers whose ages are numbers
    for pattern, hint in (
        (_DATE, "a date, perhaps of birth: write the age in the photograph"),
        (_DATE_OF_RANGE, "a date, perhaps of birth: write the age in the photograph"),
        (_COMMA, "a decimal comma: write a point"),
        (_UNSURE_RANGE, "a range of ages, or a date: write a range as 25-32"),
        (_SHORT, "an age in months, weeks or days: write it in years"),
        (_WORDS, "an age with words: write the number alone"),
    ):
        if pattern.fullmatch(text):
            return hint
    return ""

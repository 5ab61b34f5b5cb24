"""Ages as tables have them: numbers are read, other texts are rejected with a hint at what they look like."""

import math
import re

from lae_jax.data import people
from lae_jax.faces.images import BadImage

_NUMBER = r"\d{1,3}(?:\.\d+)?"
_UNITS = r"(?:years?(?:[ -]old)?|yrs?|yo|y/o|y|ans|jahre|años)"
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = rf"({'|'.join(_MONTHS)})[a-z]*"
_RANGE = re.compile(rf"[(\[]?\s*({_NUMBER})\s*(?:-|–|—|~|\.\.+|,|;|/|to|bis)\s*({_NUMBER})\s*[)\]]?\s*{_UNITS}?")
_OPEN = re.compile(
    rf"(?:[<>≤≥]=?|over|above|under|below|(?:more|less|older|younger|greater) than|at least|at most|up to)\s*"
    rf"{_NUMBER}\s*{_UNITS}?|{_NUMBER}\s*(?:\+|plus|(?:{_UNITS}\s*)?(?:and|or) (?:over|above|older|more|under|younger))"
)
_DATE_OF_RANGE = re.compile(rf"(\d{{1,2}})[-. /]{{1,2}}{_MONTH}|{_MONTH}[-. /]{{1,2}}(\d{{1,2}})")
_DATE = re.compile(
    rf"(?:\d{{4}}[-./]\d{{1,2}}[-./]\d{{1,2}}|\d{{1,2}}[-./]\d{{1,2}}[-./]\d{{2,4}}"
    rf"|\d{{1,2}}[-. /]{{1,2}}{_MONTH}[-. /,]{{1,2}}\d{{2,4}})(?:[ t].*)?"
)
_COMMA = re.compile(r"\d{1,3},\d")
_WORDS = re.compile(rf"(?:age[d:]?|is)?\s*({_NUMBER})\s*{_UNITS}?")
_SHORT = re.compile(rf"{_NUMBER}\s*(months?|mos?|weeks?|wks?|days?)(?: old)?")


class BadAge(BadImage):
    """A text is not an age.

    Attributes:
      kind: What it and others of its kind look like, with what to do; '' if nothing is known.
    """

    def __init__(self, told: str, hint: str = ""):
        super().__init__(f"{told}: it looks like {hint}" if hint else told)
        self.kind = re.sub(r"range \d+-\d+", "range", hint)


def parse_age(text: str) -> float:
    """Reads an age in years, with its fraction.

    Raises:
      BadAge: The text is not a number from 0 to 100.
    """
    try:
        if "_" in text:  # Python reads 1_0 as 10
            raise ValueError
        age = float(text)
    except ValueError:
        if not people.normalised(text[:40]):
            raise BadAge(f"no age ({text[:40]!r})" if text else "no age") from None
        raise BadAge(f"age {text[:40]!r} is not a number", looks_like(text)) from None
    if math.isnan(age):
        raise BadAge(f"no age ({text[:40]!r})")
    if not 0 <= age <= 100:
        year = 1850 <= age <= 2100 and age == int(age)
        hint = "a year, perhaps of birth: write the age in the photograph" if year else ""
        raise BadAge(f"age {text[:40]!r} is outside 0 to 100", hint)
    return age


def looks_like(text: str) -> str:
    """Returns what a text that is not a number looks like, and what to do; '' if it looks like nothing known."""
    if len(text) > 60:
        return ""
    text = " ".join(text.casefold().split())
    if found := _DATE_OF_RANGE.fullmatch(text):
        number = int(found[1] or found[4])
        month = 1 + _MONTHS.index((found[2] or found[3])[:3])
        low, high = sorted((month, number))
        return f"the range {low}-{high} that a spreadsheet turned into a date: write one age"
    for pattern, hint in (
        (_DATE, "a date, perhaps of birth: write the age in the photograph"),
        (_COMMA, "a decimal comma: write a point"),
        (_RANGE, "a range of ages: write one age"),
        (_OPEN, "a range of ages without an end: write one age"),
        (_SHORT, "an age in months, weeks or days: write it in years"),
        (_WORDS, "an age with words: write the number alone"),
    ):
        if pattern.fullmatch(text):
            return hint
    return ""

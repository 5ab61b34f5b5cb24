"""The command line of every program: a parser, and the flags that several programs share."""

import argparse
import difflib
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

from lae_jax import __version__
from lae_jax.runtime.errors import InputError, unknown
from lae_jax.runtime.model_file import builtin

# What --run also takes, as part of a help text.
MODEL_FILE = (
    f"a model file (.safetensors); default: {builtin.DEFAULT}, the model of the package, also where a folder has that"
    f" name (./{builtin.DEFAULT} is the folder)"
)
# Flags that mean the same in every program that has them.
COMMON = {
    "run": {
        "default": builtin.DEFAULT,
        "metavar": "RUN",
        "help": f"folder of a run of stage 2 or 3, or {MODEL_FILE}",
    },
    "step": {"type": int, "metavar": "STEP", "help": "step of the checkpoint to use (default: the best one)"},
    "data": {"metavar": "DIR", "help": "folder of a prepared data set"},
    "split": {"metavar": "NAME", "help": "name of a split of the data set"},
    "out": {"required": True, "metavar": "DIR", "help": "folder to write"},
    "images": {"metavar": "DIR", "help": "folder that paths in a CSV are relative to (default: the CSV's)"},
    "seed": {"type": int, "default": 0, "metavar": "SEED", "help": "seed of all random choices"},
    "flip": {"action": "store_true", "help": "average the estimates for each image and its mirror image"},
    "interval": {
        "type": float,
        "default": 0.9,
        "metavar": "SHARE",
        "help": "probability that the interval of a prediction covers",
    },
    "threshold": {"type": float, "metavar": "AGE", "help": "age in years; also report P(age >= AGE)"},
    "aligned": {"action": "store_true", "help": "the images are face crops that match the crop contract of the run"},
    "smallest_face": {
        "type": int,
        "metavar": "PIXELS",
        "help": "side of the smallest face to find in a photograph, at least 20; for groups, and slower (default: a"
        " twentieth of the photograph's longer side)",
    },
    "rotate": {
        "action": "store_true",
        "help": "where no face is found for sure, also search the photograph turned by 90, 180 and 270 degrees",
    },
    "allow_other_crop": {
        "action": "store_true",
        "help": "continue although the faces do not match the crop contract of the run",
    },
    "allow_leak": {"action": "store_true", "help": "continue although splits share images or people; reports state it"},
    "devices": {
        "type": int,
        "default": 0,
        "metavar": "N",
        "help": "number of simulated devices on a CPU; 0: the devices of this machine",
    },
}


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help that includes the default of each flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        told = action.help or ""
        if action.default in (None, False, "", 0, [], ()) or "default" in told or action.default is argparse.SUPPRESS:
            return told
        return f"{told} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """Parses the flags of a program. Hyphens and underscores are equal; errors are `InputError`s that name the help.

    Args:
      program: Name of the program.
      description: Docstring of the program.
      meant: Flags of other programs, and the flag of this one that is meant.
    """

    def __init__(self, program: str, description: str, meant: Mapping[str, str] = MappingProxyType({})):
        super().__init__(
            prog=f"python -m lae_jax.{program}", description=description, formatter_class=_Help, allow_abbrev=False
        )
        self._meant = meant
        self.add_argument("--version", action="version", version=f"lae_jax {__version__}")

    def add_common(self, name: str, **changed: Any) -> None:
        """Adds a flag of `COMMON`.

        Args:
          name: Its key in `COMMON`.
          **changed: Arguments of `add_argument` that differ for this program.
        """
        self.add_argument(f"--{hyphenated(name)}", **COMMON[name] | changed)

    def parse_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Does what `argparse` does; for an unknown flag the error names the nearest one."""
        words = with_hyphens(sys.argv[1:] if args is None else args)
        known = [flag for flag in self._option_string_actions if flag.startswith("--")]
        for word in words[: words.index("--")] if "--" in words else words:
            flag = word.partition("=")[0]
            if flag.startswith("--") and flag not in known:
                like = [self._meant[flag]] if flag in self._meant else difflib.get_close_matches(flag, known, 1, 0.7)
                self.error(f"unknown flag {flag}" + "".join(f"; did you mean {name}?" for name in like))
        return super().parse_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """Raises an error instead of ending the process.

        Raises:
          InputError: Always; the message is one line that names the help.
        """
        raise InputError(f"{message.removeprefix('argument ')} (see {self.prog} --help)")


def hyphenated(name: str) -> str:
    """Replaces underscores by hyphens."""
    return name.replace("_", "-")


def with_hyphens(words: Sequence[str]) -> list[str]:
    """Returns a command line with hyphens in place of the underscores in flags; values stay as they are."""
    result = []
    for number, word in enumerate(words):
        if word == "--":
            return [*result, *words[number:]]
        flag, equals, value = word.partition("=")
        result.append(f"{hyphenated(flag)}{equals}{value}" if flag.startswith("--") else word)
    return result


def one_of(kind: str, known: Collection[str]) -> Callable[[str], str]:
    """Returns a type for `add_argument` that accepts the known words; the error for another names the nearest."""

    def read(word: str) -> str:
        if word not in known:
            raise argparse.ArgumentTypeError(unknown(kind, word, known))
        return word

    return read

"""Hooks of schemathesis: a file that the description allows is one of the pictures in the folder PICTURES."""

import os
import pathlib

import schemathesis
from hypothesis import strategies

PICTURES = [path.read_bytes() for path in sorted(pathlib.Path(os.environ["PICTURES"]).iterdir())]

schemathesis.openapi.format("binary", strategies.sampled_from(PICTURES))

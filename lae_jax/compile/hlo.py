"""What a compiled step exchanges and reads, from the text of its HLO.

The text is a list of computations. An instruction has a name, a result type, an operation and operands. The body of a
loop is a computation that runs `known_trip_count` times; where that is not written (TPU), until the counter, which
begins at 0, reaches the constant of the loop's condition.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

_BYTES = {"pred": 1, "bf16": 2, "c64": 8, "c128": 16, "token": 0}
_ARRAY = re.compile(r"\b(pred|bf16|token|[suf]\d+(?:e\d+m\d+\w*)?|c64|c128)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^ +(?:ROOT )?%?([\w.-]+) = (.*)$")
_NAME = re.compile(r"%([\w.-]+)")
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# What moves no bytes by itself. A `-done` belongs to its `-start`.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "iota", "opt-barrier", "async-start", "async-done", "async-update",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction of a computation."""

    name: str
    type: str  # of the result
    operation: str
    operands: tuple[str, ...]  # of a constant its value
    rest: str  # what follows the operands
    times: int  # how often it runs in a step


@dataclasses.dataclass(frozen=True)
class Exchange:
    """Collectives of one kind in a step: how many there are, and the bytes of their results on a device."""

    kind: str
    count: int
    bytes: int


def size(text: str) -> int:
    """Returns the bytes of a type: 'f32[8,3]{1,0}' -> 96; of a tuple the sum."""
    return sum(_width(array.partition("[")[0]) * math.prod(shape) for array, shape in arrays(text))


def arrays(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """Returns the arrays of a type with their shapes: '(f32[8,3], s32[])' -> [('f32[8,3]', (8, 3)), ('s32[]', ())]."""
    return [(f"{dtype}[{dims}]", tuple(int(n) for n in dims.split(",") if n)) for dtype, dims in _ARRAY.findall(text)]


def _width(dtype: str) -> int:
    if dtype in _BYTES:
        return _BYTES[dtype]
    return max(1, int(re.match(r"[suf](\d+)", dtype)[1]) // 8)  # s4 and the like take a byte


def instructions(text: str) -> list[Instruction]:
    """Returns the instructions that a step runs, of its entry and of the loops and calls in it, fusions as one."""
    computations, entry = _computations(text)
    return list(_run(computations, entry, 1))


def exchanges(text: str) -> list[Exchange]:
    """Returns the collectives of a step by kind, the largest first."""
    found: dict[str, list[int]] = {}
    for one in instructions(text):
        kind = one.operation.removesuffix("-start")
        if kind in COLLECTIVES:
            found.setdefault(kind, []).extend([size(_result(one))] * one.times)
    totals = [Exchange(kind, len(sizes), sum(sizes)) for kind, sizes in found.items()]
    return sorted(totals, key=lambda one: -one.bytes)


def _result(one: Instruction) -> str:
    """A started all-gather or permutation has the type (operands, results); that of an all-reduce is its result."""
    if one.operation.endswith("-start") and not one.operation.startswith("all-reduce"):
        every = [array for array, _ in arrays(one.type)]
        half = every[len(every) // 2 :]
        return " ".join(half[:1] if one.operation.startswith("collective-permute") else half)
    return one.type


def loop_factor(text: str) -> float:
    """Returns how many times as much a step moves as it would if the body of each loop ran once."""
    every = instructions(text)
    once = _moved([dataclasses.replace(one, times=1) for one in every])
    return _moved(every) / once if once else 1.0


def traffic(text: str) -> int:
    """Returns about how many bytes a step reads and writes: operands and results of all instructions that it runs.

    What a kernel keeps near itself, such as the inside of a fusion, does not count; what it reads twice counts once.
    """
    return _moved(instructions(text))


def _moved(every: list[Instruction]) -> int:
    sizes = {one.name: size(one.type) for one in every}
    moved = (one for one in every if one.operation not in _FREE and not one.operation.endswith("-done"))
    return sum((size(_result(one)) + sum(sizes.get(name, 0) for name in one.operands)) * one.times for one in moved)


def _computations(text: str) -> tuple[dict[str, list[tuple]], str]:
    found: dict[str, list[tuple]] = {}
    entry, current = "", []
    for line in text.splitlines():
        if begun := _COMPUTATION.match(line):
            current = found.setdefault(begun[2], [])
            entry = begun[2] if begun[1] else entry
        elif one := _INSTRUCTION.match(line):
            current.append((one[1], *_parts(one[2])))
    return found, entry


def _parts(text: str) -> tuple[str, str, tuple[str, ...], str]:
    """Splits `type operation(operands), rest`."""
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    kind, text = text[:end], text[end:].lstrip()
    operation, _, text = text.partition("(")
    end = _closing("(" + text, 0) - 1
    operands = (text[: end - 1],) if operation == "constant" else tuple(_NAME.findall(text[:end]))
    return kind, operation, operands, text[end:]


def _closing(text: str, start: int) -> int:
    """Returns the place after the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if not depth:
            return place + 1
    return len(text)


def _run(computations: Mapping[str, list[tuple]], name: str, times: int) -> Iterator[Instruction]:
    for own, kind, operation, operands, rest in computations.get(name, ()):
        yield Instruction(own, kind, operation, operands, rest, times)
        if operation == "while":
            for inner in re.findall(r"\bbody=%?([\w.-]+)", rest):
                yield from _run(computations, inner, times * _trips(computations, rest))
        elif operation in ("call", "async-start", "conditional"):
            called = re.findall(r"\b(?:to_apply|calls)=%?([\w.-]+)", rest)
            for inner in called[:1] + re.findall(r"(?:true|false)_computation=%?([\w.-]+)", rest):
                yield from _run(computations, inner, times)


def _trips(computations: Mapping[str, list[tuple]], rest: str) -> int:
    """Returns how often the body of a loop runs; 1 if the text does not tell."""
    if known := re.search(r'known_trip_count"?[:=]\{"?n"?[:=]"?(\d+)', rest):
        return int(known[1])
    named = re.search(r"\bcondition=%?([\w.-]+)", rest)
    condition = computations.get(named[1], []) if named else []
    constants = {own: operands[0] for own, _, operation, operands, _ in condition if operation == "constant"}
    for _, _, operation, operands, after in condition:
        if operation == "compare" and "direction=LT" in after and constants.get(operands[-1], "").isdigit():
            return int(constants[operands[-1]])
    return 1

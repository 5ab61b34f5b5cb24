"""The memory and the work of a StableHLO module, by the sizes of its tensors at every batch, before it runs.

A dimension that the file leaves open can be computed in the module from the batch: a few bytes could ask for terabytes.
So the integers from which sizes are made are computed here too, for all batches at once.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lae_jax.export.form import MAX_BATCH, most_held

_BATCHES = np.arange(1, MAX_BATCH + 1)
_LENGTH = 16  # numbers of a tensor that may be a shape
_LARGEST = 1 << 31  # a number that is computed beyond it may have wrapped round
_ARITHMETIC = {
    "stablehlo.add": np.add,
    "stablehlo.subtract": np.subtract,
    "stablehlo.multiply": np.multiply,
    "stablehlo.maximum": np.maximum,
    "stablehlo.negate": np.negative,
}
# Operations whose results have the shape of what they take, but for padding and joining.
_LIKE = {
    "add", "compare", "concatenate", "convert", "divide", "exponential", "log", "maximum", "minimum", "multiply",
    "negate", "pad", "reduce_window", "reverse", "rsqrt", "slice", "subtract",
}  # fmt: skip


class Unknown(Exception):
    """The size of a tensor cannot be told."""


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A tensor at each batch.

    Attributes:
      dims: Its dimensions; an array (batches,) where a dimension depends on the batch.
      width: Bytes of an element.
      content: (numbers, batches) for a short list of integers that is known; None for any other.
    """

    dims: tuple
    width: int
    content: np.ndarray | None = None

    @property
    def numbers(self) -> np.ndarray | float:
        return math.prod(self.dims, start=1.0)

    @property
    def bytes(self) -> np.ndarray | float:
        return self.width * self.numbers

    @property
    def key(self) -> tuple:
        dims = (one if isinstance(one, int) else one.tobytes() for one in self.dims)
        return *dims, None if self.content is None else self.content.tobytes()


def of_main(functions: Mapping[str, object]) -> tuple[float, float]:
    """Returns what `main` needs, each at the batch where it is largest.

    Args:
      functions: The operations `func.func` of the module, by name. None calls itself.

    Returns:
      The most bytes of tensors that exist at once, and the number of multiplications and of numbers that are moved.

    Raises:
      Unknown: A size does not follow from the batch, or an operation computes whole tensors for each number.
    """
    block = functions["main"].regions[0].blocks[0]
    *others, image = [one.type for one in block.arguments] or [None]
    if any(not kind.has_static_shape for kind in others) or (
        image and any(map(image.is_dynamic_dim, range(1, image.rank)))
    ):
        raise Unknown
    given = [_Tensor(_dims(one.type, [_BATCHES] * one.type.rank), _width(one.type)) for one in block.arguments]
    peak, _, work = _Module(functions).of_block(block, dict(zip(block.arguments, given, strict=True)))
    return float(np.max(peak + sum(one.bytes for one in given))), float(np.max(work))


class _Module:
    """Functions of a module, each computed once for the same sizes."""

    def __init__(self, functions: Mapping[str, object]):
        self.functions, self.done = functions, {}

    def of_block(self, block, known: dict) -> tuple[np.ndarray | float, list[_Tensor], np.ndarray | float]:
        """Returns the bytes that the tensors of a block take at most at once, what it returns, and its work.

        Args:
          block: The block.
          known: The tensors so far, by value; those of the block are added.
        """
        steps, returned, total = [], [], 0.0
        for one in (each.operation for each in block.operations):
            given = [known[value] for value in one.operands]
            if one.name in ("func.return", "stablehlo.return"):
                returned = given
            inside, made, work = self.of_operation(one, given, known)
            total = total + work
            made = dict(zip(one.results, made, strict=True))
            known |= made
            used = [*_used(one)] if len(one.regions) else one.operands
            steps.append((used, {value: tensor.bytes for value, tensor in made.items()}, inside))
        return most_held(steps), returned, total

    def of_operation(
        self, one, given: Sequence[_Tensor], known: dict
    ) -> tuple[np.ndarray | float, list[_Tensor], np.ndarray | float]:
        """Returns the bytes that an operation takes while it runs, besides its results, its results, and its work."""
        if one.name == "func.call":
            key = (name := one.attributes["callee"].value, *(tensor.key for tensor in given))
            if key not in self.done:
                block = self.functions[name].regions[0].blocks[0]
                self.done[key] = self.of_block(block, dict(zip(block.arguments, given, strict=True)))
            return self.done[key]
        if one.name == "stablehlo.case":
            branches = [self.of_block(region.blocks[0], known) for region in one.regions]
            made = [_largest(tensors) for tensors in zip(*(tensors for _, tensors, _ in branches), strict=True)]
            peak, work = (functools.reduce(np.maximum, (branch[place] for branch in branches)) for place in (0, 2))
            return peak, made, work
        for inner in (value for region in one.regions for block in region for each in block for value in each.results):
            if math.prod(_dims(inner.type)) > 1:
                raise Unknown
        made = _results(one, given)
        moved = sum(tensor.numbers for tensor in given)
        return 0, made, moved + _each(one, given) * sum(tensor.numbers for tensor in made)


def _results(one, given: Sequence[_Tensor]) -> list[_Tensor]:
    types = [value.type for value in one.results]
    if all(kind.has_static_shape for kind in types):
        made = [_Tensor(_dims(kind), _width(kind)) for kind in types]
        if len(made) == 1 and math.prod(made[0].dims) <= _LENGTH and _is_integer(types[0]):
            made = [dataclasses.replace(made[0], content=_content(one, given, math.prod(made[0].dims)))]
        return made
    return [_Tensor(_dims(kind, _computed(one, given, kind)), _width(kind)) for kind in types]


def _each(one, given: Sequence[_Tensor]) -> np.ndarray | float:
    """Returns the number of multiplications, or of numbers that are compared, for each number of the result."""
    from jax.extend.mlir.dialects import stablehlo

    if one.name == "stablehlo.dot_general":
        numbers = stablehlo.DotDimensionNumbers(one.attributes["dot_dimension_numbers"])
        return math.prod((given[0].dims[place] for place in numbers.lhs_contracting_dimensions), start=1.0)
    if one.name == "stablehlo.convolution":
        numbers = stablehlo.ConvDimensionNumbers(one.attributes["dimension_numbers"])
        return math.prod(_without(given[1].dims, {numbers.kernel_output_feature_dimension}), start=1.0)
    if one.name == "stablehlo.reduce_window":
        return math.prod((int(size) for size in one.attributes["window_dimensions"]), start=1.0)
    return 1.0


def _computed(one, given: Sequence[_Tensor], kind) -> list:
    """Returns the dimensions of a result by what the operation does; None where it may grow in a way not told here."""
    from jax.extend.mlir.dialects import stablehlo

    name = one.name.removeprefix("stablehlo.")
    if name in ("dynamic_broadcast_in_dim", "dynamic_reshape"):
        return _sizes(given[-1].content)
    if name == "real_dynamic_slice":
        first, end, step = (_sizes(tensor.content) for tensor in given[1:])
        return [np.maximum(0, b - a + s - 1) // np.maximum(s, 1) for a, b, s in zip(first, end, step, strict=True)]
    if name == "dynamic_gather":
        numbers = stablehlo.GatherDimensionNumbers(one.attributes["dimension_numbers"])
        inside = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
        taken = iter([size for place, size in enumerate(_sizes(given[2].content)) if place not in inside])
        wide = functools.reduce(_larger, given[1].dims)
        return [next(taken) if place in numbers.offset_dims else wide for place in range(kind.rank)]
    if name == "dot_general":
        numbers = stablehlo.DotDimensionNumbers(one.attributes["dot_dimension_numbers"])
        left, right = given[0].dims, given[1].dims
        shared = [left[place] for place in numbers.lhs_batching_dimensions]
        used = {*numbers.lhs_batching_dimensions, *numbers.lhs_contracting_dimensions}
        taken = {*numbers.rhs_batching_dimensions, *numbers.rhs_contracting_dimensions}
        return shared + _without(left, used) + _without(right, taken)
    if name == "convolution":
        numbers = stablehlo.ConvDimensionNumbers(one.attributes["dimension_numbers"])
        dims = [None] * kind.rank
        dims[numbers.output_batch_dimension] = given[0].dims[numbers.input_batch_dimension]
        return dims
    if name == "transpose":
        return [given[0].dims[place] for place in one.attributes["permutation"]]
    if name == "reduce":
        return _without(given[0].dims, {*one.attributes["dimensions"]})
    if name not in _LIKE:
        raise Unknown
    # The scalars are what is padded with and what a reduction begins with.
    dims = [functools.reduce(_larger, sizes) for sizes in zip(*(one.dims for one in given if one.dims), strict=True)]
    if name == "concatenate":
        axis = one.attributes["dimension"].value
        dims[axis] = sum(tensor.dims[axis] for tensor in given)
    return [None if place in _padded(one) else size for place, size in enumerate(dims)]


def _padded(one) -> set[int]:
    """Returns the dimensions that the padding of an operation makes larger."""
    names = {"edge_padding_low": 0, "edge_padding_high": 0, "interior_padding": 0, "base_dilations": 1}
    found = {
        place
        for name, neutral in names.items()
        if name in one.attributes
        for place, size in enumerate(one.attributes[name])
        if size != neutral
    }
    if "padding" in one.attributes:
        found |= {place for place, pair in enumerate(np.array(one.attributes["padding"])) if pair.any()}
    return found


def _largest(tensors: Sequence[_Tensor]) -> _Tensor:
    sizes = zip(*(one.dims for one in tensors), strict=True)
    return _Tensor(tuple(functools.reduce(_larger, some) for some in sizes), tensors[0].width)


def _without(dims: tuple, places: set[int]) -> list:
    return [size for place, size in enumerate(dims) if place not in places]


def _larger(one, other):
    return max(one, other) if isinstance(one, int) and isinstance(other, int) else np.maximum(one, other)


def _content(one, given: Sequence[_Tensor], length: int) -> np.ndarray | None:
    """Returns the integers of a result, (length, batches), if they follow from the batch; None if not."""
    if one.name == "stablehlo.constant":
        made = np.array(one.attributes["value"]).reshape(-1, 1)
    elif one.name == "stablehlo.get_dimension_size":
        made = np.asarray(given[0].dims[one.attributes["dimension"].value]).reshape(1, -1)
    elif not given or any(tensor.content is None for tensor in given):
        return None
    elif one.name in ("stablehlo.reshape", "stablehlo.convert") or (
        one.name == "stablehlo.broadcast_in_dim" and len(given[0].content) == 1
    ):
        made = given[0].content
    elif one.name == "stablehlo.concatenate":
        made = np.concatenate([tensor.content for tensor in given])
    elif one.name in _ARITHMETIC:
        made = _ARITHMETIC[one.name](*(tensor.content for tensor in given))
    else:
        return None
    if (np.abs(made) >= _LARGEST).any():
        return None
    return np.broadcast_to(made, (length, len(_BATCHES))).astype(np.int64)


def _sizes(content: np.ndarray | None) -> list[np.ndarray]:
    if content is None or (content < 0).any():
        raise Unknown
    return [*content]


def _dims(kind, computed: Sequence | None = None) -> tuple:
    """Returns the dimensions of a type.

    Args:
      kind: The type.
      computed: The dimensions for those that it leaves open.
    """
    shape = tuple(kind.shape)
    if kind.has_static_shape:
        return shape
    if computed is None or len(computed) != len(shape):
        raise Unknown
    dims = tuple(computed[place] if kind.is_dynamic_dim(place) else size for place, size in enumerate(shape))
    if any(size is None for size in dims):
        raise Unknown
    return dims


def _width(kind) -> int:
    return max(1, kind.element_type.width // 8)


def _is_integer(kind) -> bool:
    from jax.extend.mlir import ir

    return isinstance(kind.element_type, ir.IntegerType)


def _used(operation) -> Iterator:
    """Yields the values that an operation takes, and those that are taken inside it."""
    yield from operation.operands
    for region in operation.regions:
        for block in region:
            for inner in block.operations:
                yield from _used(inner.operation)

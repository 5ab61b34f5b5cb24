"""StableHLO modules, inside a StableHLO file or a SavedModel: checks that one only computes.

StableHLO has no files and no network. Only a custom call reaches what a runtime has registered, such as a callback.
"""

import math
import os
from collections.abc import Iterator

from lae_jax.export import footprint
from lae_jax.export.form import require_known, require_needs
from lae_jax.runtime.errors import InputError

# Operations in the exports of all models, with and without flip, temperature and hidden layer.
OPERATIONS = frozenset(
    {"func.call", "func.func", "func.return"}
    | {
        f"stablehlo.{name}"
        for name in (
            "add", "broadcast_in_dim", "case", "compare", "concatenate", "constant", "convert", "convolution",
            "custom_call", "divide", "dot_general", "dynamic_broadcast_in_dim", "dynamic_gather", "dynamic_reshape",
            "exponential", "get_dimension_size", "iota", "log", "maximum", "minimum", "multiply", "negate", "pad",
            "real_dynamic_slice", "reduce", "reduce_window", "reshape", "return", "reverse", "rsqrt", "slice",
            "subtract", "transpose",
        )
    }
)  # fmt: skip
CUSTOM_CALLS = frozenset({"shape_assertion"})  # the runtimes resolve it while they compile
# A bound on work that a small file can ask for: operations when all calls are inlined. The largest model has 1e5 with
# flip.
MAX_OPERATIONS = 1_000_000


def require_only_computes(path: os.PathLike | str, module: bytes) -> None:
    """Checks a module before a runtime gets it.

    Args:
      path: The model's file, for messages.
      module: The serialised module.

    Raises:
      InputError: It cannot be parsed, holds an operation or a custom call that no export of lae_jax holds, or exceeds a
        bound.
    """
    from jax.extend.mlir import ir
    from jax.extend.mlir.dialects import stablehlo

    with ir.Context() as context:
        context.attach_diagnostic_handler(lambda diagnostic: True)  # a stranger's text does not reach the terminal
        stablehlo.register_dialect(context)
        try:
            parsed = stablehlo.deserialize_portable_artifact(context, module)
        except Exception as error:  # MLIRError is not a public name
            raise InputError(f"{path} is damaged: its StableHLO cannot be parsed: export it again") from error
        functions = {operation.sym_name.value: [*_walk(operation)] for operation in parsed.body.operations}
        inside = [operation for some in functions.values() for operation in some]
        require_known(path, "operations", {operation.name for operation in inside}, OPERATIONS)
        calls = {one.attributes["call_target_name"].value for one in inside if one.name == "stablehlo.custom_call"}
        require_known(path, "custom calls", calls, CUSTOM_CALLS)
        count = _inlined(functions)
        if count > MAX_OPERATIONS:
            raise InputError(f"{path} has {count} operations: more than {MAX_OPERATIONS} are not opened")
        try:
            needs = footprint.of_main({one.sym_name.value: one.operation for one in parsed.body.operations})
        except footprint.Unknown:
            needs = math.inf, math.inf
    require_needs(path, *needs)


def _walk(operation) -> Iterator:
    """Yields an operation and all operations inside it."""
    waiting = [operation.operation]
    while waiting:
        one = waiting.pop()
        yield one
        waiting += [inner.operation for region in one.regions for block in region for inner in block.operations]


def _inlined(functions: dict[str, list]) -> float:
    """The number of operations when each call is replaced by what it calls; infinite if a function calls itself."""
    called = {
        name: [one.attributes["callee"].value for one in some if one.name == "func.call"]
        for name, some in functions.items()
    }
    counts: dict[str, float] = {}
    waiting = [*functions]
    while waiting:
        name = waiting[-1]
        left = [other for other in called.get(name, []) if other not in counts]
        if not left:
            counts[name] = len(functions.get(name, [])) + sum(counts[other] for other in called.get(name, []))
            waiting.pop()
        elif len(waiting) > 2 * len(functions):
            return math.inf
        else:
            waiting.append(left[0])
    return max(counts.values(), default=0)

"""What a step costs: its floating-point operations, and the share of the devices' peak that they use."""

import logging
import math
import re
from collections.abc import Callable

import jax
import jax.extend
import jax.numpy as jnp

logger = logging.getLogger("lae_jax")

# Published dense peaks of a device in TFLOP/s, without sparsity, of bfloat16 (Tesla: float16). A pattern fits a whole
# `device_kind`: a GPU that is divided (MIG) has another name and fits none.
_PEAKS = (
    # Google Cloud's pages of the TPU versions (cloud.google.com/tpu/docs). A device of JAX is a chip; of v2 and v3 it
    # is one of the two cores of a chip.
    (r"TPU v2", 22.5),
    (r"TPU v3", 61.5),
    (r"TPU v4", 275.0),
    (r"TPU v5 lite|TPU v5e", 197.0),
    (r"TPU v5|TPU v5p", 459.0),
    (r"TPU v6 lite|TPU v6e", 918.0),
    # NVIDIA's data sheets. Those of Hopper and Ada give twice these numbers, "with sparsity".
    (r"NVIDIA H100 PCIe", 756.5),
    (r"NVIDIA H100 NVL|NVIDIA H200 NVL", 835.5),
    (r"NVIDIA H100 80GB HBM3|NVIDIA H200", 989.5),
    (r"NVIDIA A100(-SXM4-[48]0GB|-PCIE-40GB| 80GB PCIe)", 312.0),
    (r"NVIDIA A10", 125.0),
    (r"NVIDIA A30", 165.0),
    (r"NVIDIA L40S", 362.0),
    (r"NVIDIA L4", 121.0),
    (r"Tesla T4", 65.0),
    (r"Tesla V100-SXM[23]-(16|32)GB(-LS)?", 125.0),
    (r"Tesla V100-PCIE-(16|32)GB", 112.0),
)
_ELEMENTWISE = ("add", "sub", "mul", "div")  # on a CPU, depthwise convolutions are sums of shifted products


def peak_flops(device_kind: str) -> float | None:
    """Returns a device's published dense peak in FLOP/s, in bfloat16 (of a Tesla in float16); None if it is unknown.

    The peak of a CPU is unknown: it depends on its clock.
    """
    return next((tflops * 1e12 for pattern, tflops in _PEAKS if re.fullmatch(pattern, device_kind)), None)


def flops(jaxpr: jax.extend.core.Jaxpr) -> int:
    """Returns the floating-point operations of a traced function.

    A multiply-add of a matrix product or a convolution counts as two, also on the padding. An addition, subtraction,
    multiplication or division of floats counts as one. The body of a loop counts as often as it runs, and what `remat`
    computes again counts again.
    """
    total = 0
    for equation in jaxpr.eqns:
        repeats = equation.params["length"] if equation.primitive.name == "scan" else 1
        inner = jax.extend.core.jaxprs_in_params(equation.params)
        total += _own_flops(equation) + repeats * sum(map(flops, inner))
    return total


def _own_flops(equation: jax.extend.core.JaxprEqn) -> int:
    """The operations of an equation, without those of the functions that it calls."""
    name, out = equation.primitive.name, equation.outvars[0].aval
    if name in _ELEMENTWISE:
        return out.size * jnp.issubdtype(out.dtype, jnp.floating)
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2 * out.size * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        _, channels, *places = equation.params["dimension_numbers"].rhs_spec
        kernel = equation.invars[1].aval.shape
        taps = kernel[channels] * math.prod(kernel[place] for place in places)
        # Of the gradient of a convolution with a stride, this share of the factors are zeros in between.
        return 2 * out.size * taps // math.prod(equation.params["lhs_dilation"])
    return 0


class StepCost:
    """What a run's step costs, known once it is traced.

    Attributes:
      flops: Floating-point operations of a step on all devices (`flops`); 0 before the step is traced.
    """

    def __init__(self, device_count: int, device_kind: str):
        """Looks up the peak of the devices.

        Args:
          device_count: Number of devices on all hosts.
          device_kind: Their kind, as JAX names it.
        """
        self.flops = 0
        self._devices, self._kind = device_count, device_kind
        peak = peak_flops(device_kind)
        self._peak = None if peak is None else peak * device_count

    def counted(self, step: Callable) -> Callable:
        """Returns the step of one device, (state, batch, ...) -> ..., which counts its operations when it is traced.

        That is the trace which is compiled: the step is traced once.
        """
        jitted = jax.jit(step)

        def counting(*args):
            self._take(flops(jitted.trace(*args).jaxpr.jaxpr) * self._devices)
            return jitted(*args)

        return counting

    def _take(self, total: int) -> None:
        self.flops = total
        peak = "of an unknown peak" if self._peak is None else f"with a peak of {self._peak / 1e12:.4g} TFLOP/s"
        logger.info("a step takes %.4g GFLOP on devices %s (%s)", total / 1e9, peak, self._kind)

    def row(self, seconds_per_step: float) -> dict[str, float]:
        """Returns the fields of a line of metrics.jsonl; `utilisation` is missing where the peak is unknown.

        Args:
          seconds_per_step: Wall time of a step.
        """
        row: dict[str, float] = {"flops_per_step": self.flops}
        if self._peak is not None:
            row["utilisation"] = self.flops / seconds_per_step / self._peak
        return row

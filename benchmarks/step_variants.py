"""Other ways to compute the same step, for `benchmarks.train_step --variants`: what does not pay stays out.

A variant is a name, flags for XLA and a change of the process that it is measured in.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from lae_jax import models
from lae_jax.models import efficientnet, layers


def _depthwise(form: Callable) -> None:
    """All depthwise convolutions by `form`, whatever the platform has."""
    xla = layers.xla_convolution

    def choose(x, kernel, stride, padding, precision=jax.lax.Precision.DEFAULT):
        depthwise = kernel.shape[2] == 1 and x.shape[-1] == kernel.shape[3] > 1
        return form(x, kernel, stride, padding) if depthwise else xla(x, kernel, stride, padding, precision)

    layers.shifted_depthwise = layers.xla_convolution = choose


def _squeeze_excite_products() -> None:
    """Squeeze-excite on (B, C) by matrix products, its mean in float32, instead of 1x1 convolutions of (B, 1, 1, C)."""

    def squeeze_excite(compute, x, width):
        flat = layers.Compute(compute.dtype, convolutions="cpu")
        gate = layers.Conv(flat, width, use_bias=True, name="se_reduce")(layers.pool(x)[:, None, None])
        return x * nn.sigmoid(layers.Conv(flat, x.shape[-1], use_bias=True, name="se_expand")(nn.swish(gate)))

    efficientnet.squeeze_excite = squeeze_excite


@dataclasses.dataclass(frozen=True)
class Variant:
    flags: str = ""  # of XLA
    change: Callable[[], None] = lambda: None
    case: dict = dataclasses.field(default_factory=dict)  # what differs in the case


FORMS = {
    "depthwise as XLA's": Variant(change=functools.partial(_depthwise, layers.xla_convolution)),
    "depthwise shifted": Variant(change=functools.partial(_depthwise, layers.shifted_depthwise)),
    "squeeze-excite as products": Variant(change=_squeeze_excite_products),
    "remat": Variant(case={"remat": True}),
}
FLAGS = {
    "cpu": ("--xla_cpu_prefer_vector_width=512", "--xla_cpu_experimental_ynn_fusion_type="),
    "gpu": (
        "--xla_gpu_enable_triton_gemm=false",
        "--xla_gpu_enable_latency_hiding_scheduler=true",
        "--xla_gpu_enable_command_buffer=",
        "--xla_gpu_exhaustive_tiling_search=true",
    ),
    "tpu": (),
}  # fmt: skip


def named(platform: str) -> dict[str, Variant]:
    return FORMS | {flag: Variant(flags=flag) for flag in FLAGS[platform]}


def apply(name: str) -> None:
    """Changes this process; '' changes nothing."""
    if name in FORMS:
        FORMS[name].change()


def depthwise_shapes(model_name: str, image_size: int, batch: int) -> list[tuple[tuple[int, ...], int, int]]:
    """Each ((B, H, W, C), side of the kernel, stride) of a depthwise convolution of the model, once."""
    found = {}

    def watch(call, args, kwargs, context):
        module = context.module
        if isinstance(module, layers.Conv) and module.depthwise and context.method_name == "__call__":
            found[args[0].shape, module.kernel_size, module.stride] = None
        return call(*args, **kwargs)

    images = jax.ShapeDtypeStruct((batch, image_size, image_size, 3), jnp.float32)
    with nn.intercept_methods(watch):
        jax.eval_shape(lambda x: models.create(model_name, 0).init(jax.random.key(0), x), images)
    return list(found)


def depthwise_times(model_name: str, image_size: int, batch: int, dtype: str, repeats: int = 10) -> list[dict]:
    """Milliseconds of each depthwise convolution, forward and both gradients, as XLA's and shifted, in turns."""
    forms = {"xla": layers.xla_convolution, "shifted": layers.shifted_depthwise}
    rows = []
    for shape, size, stride in depthwise_shapes(model_name, image_size, batch):
        padding = tuple(layers.same_padding(n, size, stride) for n in shape[1:3])
        x = jax.random.normal(jax.random.key(0), shape, dtype)
        kernel = jax.random.normal(jax.random.key(1), (size, size, 1, shape[-1]), dtype)

        def gradients(x, kernel, form, stride=stride, padding=padding):
            out, pull = jax.vjp(lambda x, kernel: form(x, kernel, stride, padding), x, kernel)
            return out, pull(out)

        ready = {name: jax.jit(functools.partial(gradients, form=form)) for name, form in forms.items()}
        times = {name: [] for name in forms}
        for turn in range(repeats + 1):
            for name, function in ready.items():
                start = time.perf_counter()
                jax.block_until_ready(function(x, kernel))
                if turn:  # the first one compiles
                    times[name].append(1e3 * (time.perf_counter() - start))
        rows.append(
            {"shape": shape, "kernel": size, "stride": stride, **{k: statistics.median(v) for k, v in times.items()}}
        )
    return rows

"""This project's side of `benchmarks.train_step`: the real train and forward step, compiled and run as `train` does.

Runs without TensorFlow, TFDS, ml_collections and clu.
"""

import functools
import time
from collections.abc import Callable

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from benchmarks import sides, step_variants
from lae_jax import losses, models, optim, stages
from lae_jax.runs.forward import forward_step
from lae_jax.runtime import cpu, parallel
from lae_jax.train import costs, steps

AGES, MAE = 101, 2.0
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CONSTANTS = {
    "er_weight": 1.0,
    "label_sigma": 1.0,
    "in_range": "uniform",
    "mae": MAE,
    "scale": 64.0,
    "margin": 0.35,
    "margin_form": "am_softmax",
}
STAGES = {"stage 1": "pretrain", "stage 2": "represent", "stage 3": "classify"}


def multiply_adds(module, image_size: int) -> int:
    """Of the convolutions and matrix products for an image, read off the traced model, which must be in XLA's form."""
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), image)

    def count(jaxpr) -> int:
        total = 0
        for eqn in jaxpr.eqns:
            out = eqn.outvars[0].aval
            if eqn.primitive.name == "conv_general_dilated":
                kernel = eqn.invars[1].aval.shape
                total += out.size * kernel[0] * kernel[1] * kernel[2]
            elif eqn.primitive.name == "dot_general":
                (contracting, _), _ = eqn.params["dimension_numbers"]
                total += out.size * int(np.prod([eqn.invars[0].aval.shape[axis] for axis in contracting]))
            total += sum(count(sub) for sub in jax.extend.core.jaxprs_in_params(eqn.params))
        return total

    return count(jax.make_jaxpr(module.apply)(variables, image).jaxpr)


def make_model(case: dict, convolutions: str):
    identity = case["mode"] == "stage 1"
    return models.create(
        case["model"], case["identities"] if identity else AGES, case["dtype"], head="identity" if identity else "age",
        axis_name=None if case["mode"] == "inference" else parallel.AXIS, remat=case["remat"],
        convolutions=convolutions,
    )  # fmt: skip


def make_batch(case: dict) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ages = rng.uniform(0, 100, case["batch"]).astype(np.float32)
    identities = rng.integers(0, case["identities"], case["batch"]).astype(np.int32)
    shape = (case["batch"], case["image_size"], case["image_size"], 3)
    return {
        "image": rng.integers(0, 256, shape, np.uint8),
        "target": identities if case["mode"] == "stage 1" else ages,
    }


def program(case: dict, convolutions: str = "auto") -> tuple[Callable[[], jax.stages.Lowered], tuple]:
    """What lowers a step, on one device, and the arguments of the step."""
    par = parallel.Parallel(tuple(jax.local_devices()[:1]))
    model = make_model(case, convolutions)
    variables = models.initialise(model, case["image_size"], seed=0)
    dtype = jnp.dtype(case["dtype"])
    batch = par.place(make_batch(case))
    if case["mode"] == "inference":
        how = {"model": model, "dtype": dtype, "mean": MEAN, "std": STD}
        step = functools.partial(forward_step, output=losses.expected_age, flip=False, **how)
        arguments = par.place(variables), batch["image"]
        return functools.partial(jax.jit(par.map_forward(step)).lower, *arguments), arguments
    stage = stages.get(STAGES[case["mode"]])
    tx = optim.trainable(optim.sgd(0.01), variables["params"], stage.trains)
    state = par.place(steps.create_state(variables, tx))
    settings = steps.Settings(0, dtype, MEAN, STD)
    step = functools.partial(steps.train_step, stage=stage, constants=CONSTANTS, model=model, tx=tx, settings=settings)
    return functools.partial(par.lower_train, step, state, batch), (state, par.shard(batch))


class Ours:
    """One case at a time."""

    def __init__(self):
        self._case = None

    def start(self, case: dict) -> dict:
        """Compiles and runs a step. Returns what is known of the program before it is timed.

        A case that was started last is still there.
        """
        if case != self._case:
            self.stop()
            self._facts, self._case = self._compile(case), case
        return self._facts

    def _compile(self, case: dict) -> dict:
        step_variants.apply(case["variant"])
        lower, arguments = program(case)
        start = time.perf_counter()
        self._step = lower().compile()
        compile_seconds = time.perf_counter() - start
        self._trains, self._arguments = case["mode"] != "inference", arguments
        del arguments
        jax.block_until_ready(self._once())
        memory = self._step.memory_analysis()
        device = jax.local_devices()[0]
        in_use = (device.memory_stats() or {}).get("peak_bytes_in_use")
        macs = multiply_adds(make_model({**case, "dtype": "float32"}, "xla"), case["image_size"])
        peak = costs.peak_flops(device.device_kind)
        return {
            "device": device.device_kind,
            "platform": device.platform,
            "versions": f"jax {jax.__version__}",
            "compile_seconds": compile_seconds,
            # Forward, and twice that for the gradients of activations and of weights.
            "gflop_image": 2e-9 * macs * (3 if case["mode"] in ("stage 1", "stage 2") else 1),
            "xla_gflop_image": 1e-9 * self._step.cost_analysis().get("flops", float("nan")) / case["batch"],
            "peak_tflops": peak and peak / 1e12,
            "peak_bytes": in_use or memory.temp_size_in_bytes + memory.argument_size_in_bytes,
            "temp_bytes": memory.temp_size_in_bytes,
        }

    def _once(self):
        out = self._step(*self._arguments)
        if self._trains:
            self._arguments = (out[0], self._arguments[1])
        return out

    def turn(self, steps: int) -> dict:
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            out = self._once()
        jax.block_until_ready(out)
        return sides.per_step(steps, start, cpu)

    def profile(self, folder: str) -> dict:
        """Three steps as a trace that TensorBoard and Perfetto open."""
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            self.turn(3)
        return {}

    def platform(self) -> dict:
        return {"platform": jax.default_backend()}

    def depthwise(self, model: str, image_size: int, batch: int, dtype: str) -> dict:
        return {"rows": step_variants.depthwise_times(model, image_size, batch, dtype)}

    def stop(self) -> dict:
        self._case = self._step = self._arguments = None
        return {}


def is_full(error: Exception) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error)


if __name__ == "__main__":
    cpu.prepare()  # as `lae_jax.main` does
    ours = Ours()
    can = (ours.start, ours.turn, ours.profile, ours.platform, ours.depthwise, ours.stop)
    sides.serve({method.__name__: method for method in can}, is_full)

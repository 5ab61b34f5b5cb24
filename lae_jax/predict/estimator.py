"""Ages of face crops by a run or an export, in batches of a few fixed sizes over all local devices."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from PIL import Image

from lae_jax.export import folder
from lae_jax.runs import calibration, distributions
from lae_jax.runs.conformal import Conformal
from lae_jax.runs.preprocessing import Input
from lae_jax.runtime import layout, model_file
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.model_file import builtin

# Per-device batch sizes. A batch is padded to the next of them, so that no other size is compiled.
_PER_DEVICE = (1, 8, 32)
_TOLERANCE = 0.05  # of ages and of sums of probabilities: rounding, also in bfloat16


@dataclasses.dataclass(frozen=True, eq=False)
class AgeEstimator:
    """A model that estimates ages.

    Attributes:
      forward: uint8 (B, S, S, 3) -> (B, 102), the age and the probabilities of the ages, where B is one of `sizes`.
        The result is an array or something that np.asarray converts.
      sizes: Batch sizes, in ascending order.
      input: How a crop becomes an input of the model.
      crop: Crop contract of the faces that the model was trained on.
      temperature: Temperature of the distributions.
      conformal: Intervals that were fitted for each age group; None: they were not fitted.
      source: Where the model is from, as text.
      is_tempered: Whether the distributions that `forward` returns are at the temperature already, as of exports.
    """

    forward: Callable[[np.ndarray], object]
    sizes: tuple[int, ...]
    input: Input
    crop: dict
    temperature: float = 1.0
    conformal: Conformal | None = None
    source: str = ""
    is_tempered: bool = False

    @classmethod
    def from_run(
        cls, path: os.PathLike | str = builtin.DEFAULT, step: int | None = None, flip: bool = False
    ) -> "AgeEstimator":
        """Loads a run of stage 2 or 3, a model file, or an export. An export needs only the runtime of its format.

        Args:
          path: Folder of the run or of the export, a model file, or the name of a model of the package.
          step: Step of the run's checkpoint (default: the best one).
          flip: Average each estimate with that of the mirror image.

        Raises:
          InputError: `path` is none of them, or `step` or `flip` are given for an export, or `step` for a file.
        """
        if not model_file.is_named(path) and layout.is_export(path):
            return cls._from_export(path, step, flip)
        from lae_jax.runs import build, forward, precision
        from lae_jax.runtime import parallel

        checkpoint, config, stage = build.load_ages(path, step)
        config, par = precision.for_inference(config), parallel.Parallel(form=config.parallel)
        module = build.model(config, stage, checkpoint.meta["num_outputs"])
        gathered = dataclasses.replace(stage, output=forward.age_and_distribution)
        mapped, variables = build.forward(config, gathered, module, par, flip=flip), par.place(checkpoint.variables)
        return cls(
            forward=lambda batch: _Collected(mapped(variables, batch), par),
            sizes=tuple(size * len(par.devices) for size in _PER_DEVICE),
            input=Input(config.data.image_size, config.data.resize),
            crop=checkpoint.meta["crop"],
            temperature=calibration.temperature_of(checkpoint),
            conformal=calibration.conformal_of(checkpoint, flip),
            source=f"{checkpoint.workdir} step {checkpoint.step}",
        )

    @classmethod
    def _from_export(cls, path: os.PathLike | str, step: int | None, flip: bool) -> "AgeEstimator":
        if step is not None or flip:
            raise InputError(f"{path} is an export, whose step and flip are fixed: omit --step and --flip")
        export = folder.open_export(path)
        return cls(
            forward=export.forward,
            sizes=_PER_DEVICE,
            input=Input(export.image_size, export.resize),
            crop=export.crop,
            temperature=export.temperature,
            conformal=export.conformal,
            source=export.source,
            is_tempered=True,
        )

    def predict(
        self, images: Sequence[Image.Image | np.ndarray], distribution: bool = False
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Estimates the ages of face crops.

        Args:
          images: Crops that were cut by the contract: RGB pictures, or uint8 (H, W, 3) arrays.
          distribution: Return the distributions too.

        Returns:
          The ages (N,) float32; with `distribution` also the calibrated distributions (N, 101) float32 over the ages 0
          to 100.

        Raises:
          InputError: An image has another type or shape, or `images` is not a list.
        """
        if isinstance(images, (str, os.PathLike, Image.Image)):
            raise InputError("predict takes a list of pictures or arrays: pass [picture]")
        outputs = [*self.outputs(self._inputs(images))]
        if not outputs:
            return (
                (np.zeros(0, np.float32), np.zeros((0, 101), np.float32)) if distribution else np.zeros(0, np.float32)
            )
        raw = np.stack(outputs)
        ages = self.ages(raw).astype(np.float32)
        return (ages, self.calibrated(raw).astype(np.float32)) if distribution else ages

    def _inputs(self, images: Sequence[Image.Image | np.ndarray]) -> Iterator[np.ndarray]:
        for number, image in enumerate(images):
            try:
                yield self.input.pixels(image)
            except InputError as reason:
                raise InputError(f"image {number} of {len(images)}: {reason}") from reason

    def outputs(self, inputs: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields the output of `forward` for each input (S, S, 3), in order, for `ages` and `calibrated`.

        The device works on a batch while the next one is collected.

        Raises:
          InputError: The model gives something else than ages and probabilities.
        """
        pending, count, batch = None, 0, []
        for image in inputs:
            batch.append(image)
            if len(batch) == self.sizes[-1]:
                dispatched = self.forward(np.stack(batch))
                if pending is not None:
                    yield from self._checked(pending)[:count]
                pending, count, batch = dispatched, len(batch), []
        if pending is not None:
            yield from self._checked(pending)[:count]
        if batch:
            yield from self._checked(self.forward(self._filled(batch)))[: len(batch)]

    def _checked(self, outputs: object) -> np.ndarray:
        """Returns the outputs as an array. Weights that are damaged or hostile give others than ages and probabilities.

        Raises:
          InputError: They are not an age from 0 to 100 and 101 probabilities.
        """
        rows = np.asarray(outputs)
        # All comparisons with NaN are false.
        if not (
            rows.ndim == 2
            and rows.shape[1] == 102
            and ((rows[:, 0] >= -_TOLERANCE) & (rows[:, 0] <= 100 + _TOLERANCE)).all()
            and (rows[:, 1:] >= 0).all()
            and (np.abs(rows[:, 1:].sum(axis=1) - 1) <= _TOLERANCE).all()
        ):
            raise InputError(
                f"{self.source} is damaged: its outputs are not an age and the probabilities of the ages 0 to 100:"
                " restore it, or name another run"
            )
        return rows

    def _filled(self, batch: list[np.ndarray]) -> np.ndarray:
        size = next(size for size in self.sizes if size >= len(batch))
        return np.stack(batch + batch[-1:] * (size - len(batch)))

    def ages(self, outputs: np.ndarray) -> np.ndarray:
        """Returns the ages (N,) float64 in years of outputs (N, ...), computed without the temperature."""
        return np.asarray(outputs[:, 0], np.float64)

    @property
    def is_calibrated(self) -> bool:
        """Whether the temperature was fitted to the validation split (`lae_jax.evaluate --calibrate`)."""
        return self.temperature != 1.0

    def calibrated(self, outputs: np.ndarray) -> np.ndarray:
        """Returns the distributions (N, 101) float64 of outputs (N, ...), at the temperature."""
        if self.is_tempered:
            return np.asarray(outputs[:, 1:], np.float64)
        return distributions.tempered(outputs[:, 1:], self.temperature)


@dataclasses.dataclass(frozen=True)
class _Collected:
    """Outputs that the devices still compute; np.asarray waits for them."""

    outputs: object
    par: object

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self.par.collect(self.outputs)

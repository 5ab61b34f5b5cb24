"""Rows of predictions for uploaded images: requests share the batches that cut faces and estimate ages."""

import asyncio
import functools
import io
import logging
from collections.abc import Sequence

import numpy as np
from PIL import Image

from lae_jax.faces import crops
from lae_jax.predict import answers, photographs
from lae_jax.predict.estimator import AgeEstimator
from lae_jax.runtime import cpu
from lae_jax.serve.batching import Batcher
from lae_jax.serve.limits import Limits, Uploaded, checked

logger = logging.getLogger("lae_jax")

# Batch size of the detector, which fills smaller batches up to it.
_PHOTOGRAPHS = 4


class Ages:
    """Estimates the ages of the faces in the images of all requests.

    Args:
      estimator: The model.
      recipe: How faces are cut; None: the images are crops.
      limits: Limits of requests (default: `Limits()`).
      batch: Most photographs, and most faces, in a batch.
      wait: Most seconds that a photograph or a face waits for others.
      interval: Share of a predicted distribution that its interval holds.
    """

    def __init__(
        self,
        estimator: AgeEstimator,
        recipe: crops.Recipe | None,
        *,
        limits: Limits | None = None,
        batch: int = 32,
        wait: float = 0.005,
        interval: float = 0.9,
    ):
        self.estimator, self.recipe, self.limits = estimator, recipe, limits or Limits()
        self.fields = answers.Fields(interval, distribution=True)
        self.batch, self.ready = min(batch, estimator.sizes[-1]), False
        self._cut = functools.partial(photographs.of_chunk, recipe=recipe, to_input=estimator.input.pixels)
        self._faces = Batcher(self._cut, size=min(batch, _PHOTOGRAPHS), wait=wait, threads=cpu.cores())
        self._outputs = Batcher(self._forward, size=self.batch, wait=wait)

    @property
    def calibrated(self) -> bool:
        """Whether the model is calibrated. If not, the answers have no intervals."""
        return self.estimator.is_calibrated

    async def start(self) -> None:
        """Compiles all that a request may need, then starts with the requests that wait."""
        await asyncio.to_thread(self._warm_up)
        self._faces.start()
        self._outputs.start()
        self.ready = True
        logger.info("the model is warm")

    async def close(self) -> None:
        """Finishes the batches in progress and ends the threads."""
        self.ready = False
        await self._faces.close()
        await self._outputs.close()

    async def __call__(self, images: Sequence[Uploaded]) -> list[tuple[photographs.Found, list[answers.Row]]]:
        """Returns the faces that were found in each image and its rows, as `answers.predicted` does."""
        reasons = await asyncio.to_thread(lambda: [checked(image, self.limits) for image in images])
        cut = iter(await self._faces([image for image, reason in zip(images, reasons, strict=True) if not reason]))
        found = [
            photographs.Found(image, [], [], reason) if reason else next(cut)
            for image, reason in zip(images, reasons, strict=True)
        ]
        outputs = iter(await self._outputs([face for one in found for face in one.inputs]))
        return [(one, self._rows(one, [next(outputs) for _ in one.inputs])) for one in found]

    def _rows(self, one: photographs.Found, outputs: list[np.ndarray]) -> list[answers.Row]:
        return answers.rows_of(one, np.array(outputs), self.estimator, self.fields)

    def _forward(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        return [*self.estimator.outputs(inputs)]

    def _warm_up(self) -> None:
        side = self.estimator.input.image_size
        for size in self.estimator.sizes:
            np.asarray(self.estimator.forward(np.zeros((size, side, side, 3), np.uint8)))
            if size >= self.batch:
                break
        blank = io.BytesIO()
        Image.new("RGB", (64, 64)).save(blank, "PNG")
        self._cut([Uploaded("blank", blank.getvalue())])

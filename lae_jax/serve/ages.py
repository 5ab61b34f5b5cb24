"""Rows of predictions for uploaded images: requests share the batches that cut faces and estimate ages."""

import asyncio
import contextlib
import functools
import threading
from collections.abc import Sequence

import numpy as np
from PIL import Image

from lae_jax.faces import crops
from lae_jax.faces.decoders import Slow, Stopped
from lae_jax.faces.images import BadImage, Decoded
from lae_jax.predict import answers, photographs
from lae_jax.predict.estimator import AgeEstimator
from lae_jax.runs import conformal
from lae_jax.runtime import cpu
from lae_jax.runtime.errors import InputError
from lae_jax.serve import schema
from lae_jax.serve.batching import Batcher
from lae_jax.serve.lanes import Lane, Lanes
from lae_jax.serve.limits import Limits, Refused, Uploaded
from lae_jax.serve.operating.counts import Counts

# Batch size of the detector, which fills smaller batches up to it.
_PHOTOGRAPHS = 4


class Ages:
    """Estimates the ages of the faces in the images of all requests by a model.

    Args:
      estimator: The model.
      recipe: How faces are cut; None: the images are crops.
      limits: Limits of requests (default: `Limits()`).
      batch: Most photographs, and most faces, in a batch.
      wait: Most seconds that a photograph or a face waits for others.
      interval: Share of a predicted distribution that its interval holds.
      lanes: Where photographs are decoded (default: lanes of its own).
      counts: Counts the batches (default: counts that nobody reads).
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
        lanes: Lanes | None = None,
        counts: Counts | None = None,
    ):
        self.estimator, self.recipe, self.limits = estimator, recipe, limits or Limits()
        self.fields = answers.Fields.of(estimator, interval, distribution=True)
        self.batch, self.ready, self.counts = min(batch, estimator.sizes[-1]), False, counts or Counts()
        self.lanes = lanes or Lanes()
        self._cut = functools.partial(photographs.of_decoded, recipe=recipe, to_input=estimator.input.pixels)
        self._faces = Batcher(
            self._cut,
            size=min(batch, _PHOTOGRAPHS),
            wait=wait,
            threads=cpu.cores(),
            done=functools.partial(self.counts.batch, "photographs"),
        )
        self._outputs = Batcher(
            self._forward, size=self.batch, wait=wait, done=functools.partial(self.counts.batch, "faces")
        )

    @property
    def levels(self) -> schema.Levels:
        """Levels of the intervals of the answers."""
        level = self.fields.interval
        sure = conformal.percent_of(level) / 100 if self.fields.conformal else None
        return schema.Levels(level if self.estimator.is_calibrated else None, sure)

    @property
    def waiting(self) -> dict[str, int]:
        """Number of photographs, and of faces, that wait for a batch."""
        return {"photographs": self._faces.waiting, "faces": self._outputs.waiting}

    async def start(self) -> None:
        """Compiles all that a request may need, checks the model, then starts with the requests that wait.

        Raises:
          InputError: The model gives something other than ages.
        """
        await asyncio.to_thread(self._warm_up)
        self._faces.start()
        self._outputs.start()
        self.ready = True

    async def close(self) -> None:
        """Finishes the batches in progress and ends the threads. The lanes stay."""
        self.ready = False
        await self._faces.close()
        await self._outputs.close()

    async def __call__(self, images: Sequence[Uploaded]) -> list[tuple[photographs.Found, list[answers.Row]]]:
        """Returns the faces that were found in each image and its rows, as `answers.predicted` does.

        A caller that is cancelled ends the work on its images.

        Raises:
          Refused: The server was stopped.
        """
        turn = asyncio.Semaphore(cpu.cores())  # a request of many photographs holds up no other
        tasks = [asyncio.ensure_future(self._found(image, turn)) for image in images]
        try:
            found = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        faces, outputs = [face for one in found for face in one.inputs], []
        # A batch at a time: a photograph may have hundreds of faces, and other requests have their turn between.
        for start in range(0, len(faces), self.batch):
            outputs += await self._outputs(faces[start : start + self.batch])
        outputs = iter(outputs)
        return [(one, self._rows(one, [next(outputs) for _ in one.inputs])) for one in found]

    async def _found(self, image: Uploaded, turn: asyncio.Semaphore) -> photographs.Found:
        async with turn:
            with contextlib.suppress(Slow):
                # Not ended when its client leaves: it takes no longer than to start another process.
                return await self._on(self.lanes.quick, image, None)
            gone = threading.Event()
            try:
                return await self._on(self.lanes.slow, image, gone)
            finally:
                gone.set()

    async def _on(self, lane: Lane, image: Uploaded, gone: threading.Event | None) -> photographs.Found:
        async with lane.places:
            try:
                decoded = await lane.decoded(image.content, self.limits.pixels, gone)
            except Stopped:
                raise Refused(503, "the server was stopped before the request was answered: send it again", 5) from None
            if isinstance(decoded, BadImage):
                return photographs.Found(image, [], [], str(decoded))
            return (await self._faces([(image, decoded)]))[0]

    def _rows(self, one: photographs.Found, outputs: list[np.ndarray]) -> list[answers.Row]:
        return answers.rows_of(one, np.array(outputs), self.estimator, self.fields)

    def _forward(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        return [*self.estimator.outputs(inputs)]

    def _warm_up(self) -> None:
        side = self.estimator.input.image_size
        for size in self.estimator.sizes:
            outputs = np.asarray(self.estimator.forward(np.zeros((size, side, side, 3), np.uint8)))
            if not np.isfinite(outputs).all():
                raise InputError("the model gives ages that are not numbers: train it again, or use another one")
            if size >= self.batch:
                break
        self.lanes.start()
        blank = Decoded(Image.new("RGB", (64, 64)), 1, (64, 64), 1)
        self._cut([(Uploaded("blank", b""), blank)])

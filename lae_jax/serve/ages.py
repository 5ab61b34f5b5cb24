"""Rows of predictions for uploaded images: requests share the batches that cut faces and estimate ages.

A photograph is decoded on one of two lanes. All begin on the quick one, which has a tenth of the time that a photograph
may take. What takes longer moves to the slow lane, whose processes stand back behind all others, so that slow pictures
do not hold up quick ones.
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import functools
import logging
import threading
from collections.abc import Sequence

import numpy as np
from PIL import Image

from lae_jax.faces import crops
from lae_jax.faces.decoders import Decoders, Slow, Stopped
from lae_jax.faces.images import BadImage, Decoded
from lae_jax.predict import answers, photographs
from lae_jax.predict.estimator import AgeEstimator
from lae_jax.runtime import cpu
from lae_jax.serve.batching import Batcher
from lae_jax.serve.limits import Limits, Refused, Uploaded

logger = logging.getLogger("lae_jax")

# Batch size of the detector, which fills smaller batches up to it.
_PHOTOGRAPHS = 4
_QUICK = 0.1  # share of its time that a photograph has on the quick lane
_BEHIND = 10  # niceness of the slow lane


@dataclasses.dataclass(frozen=True)
class _Lane:
    """A number of decoders, with a thread for each, and the photographs that may be decoded until their faces are cut.

    A photograph leaves the lane when its faces are cut, which bounds the memory.
    """

    decoders: Decoders
    threads: concurrent.futures.ThreadPoolExecutor
    places: asyncio.Semaphore

    @classmethod
    def of(cls, places: int, share: float = 1.0, nice: int = 0) -> "_Lane":
        count = cpu.cores()
        threads = concurrent.futures.ThreadPoolExecutor(count)
        return cls(Decoders(count, share=share, nice=nice), threads, asyncio.Semaphore(places))

    async def decoded(self, content: bytes, pixels: int, gone: threading.Event | None) -> Decoded | BadImage:
        work = functools.partial(self.decoders.decode, [content], pixels, gone)
        return (await asyncio.get_running_loop().run_in_executor(self.threads, work))[0]

    def close(self) -> None:
        self.decoders.close()
        self.threads.shutdown(cancel_futures=True)


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
        self._quick, self._slow = _Lane.of(_PHOTOGRAPHS * cpu.cores(), _QUICK), _Lane.of(cpu.cores(), nice=_BEHIND)
        self._cut = functools.partial(photographs.of_decoded, recipe=recipe, to_input=estimator.input.pixels)
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
        """Ends the decoders at once, finishes the batches in progress and ends the threads."""
        self.ready = False
        for lane in (self._quick, self._slow):
            lane.close()
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
                return await self._on(self._quick, image, None)
            gone = threading.Event()
            try:
                return await self._on(self._slow, image, gone)
            finally:
                gone.set()

    async def _on(self, lane: _Lane, image: Uploaded, gone: threading.Event | None) -> photographs.Found:
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
            np.asarray(self.estimator.forward(np.zeros((size, side, side, 3), np.uint8)))
            if size >= self.batch:
                break
        self._quick.decoders.start(2 * cpu.cores())  # twice as many as work, so that nothing waits for a new one
        self._slow.decoders.start(cpu.cores())
        blank = Decoded(Image.new("RGB", (64, 64)), 1, (64, 64), 1)
        self._cut([(Uploaded("blank", b""), blank)])

"""The model of the server, and how another one takes its place while requests are answered."""

import asyncio
import contextlib
import dataclasses
import gc
import logging
from collections.abc import AsyncIterator, Callable

from lae_jax.runtime import foreign, start
from lae_jax.runtime.errors import Ended
from lae_jax.serve import schema
from lae_jax.serve.ages import Ages

logger = logging.getLogger("lae_jax")

_LONGEST = 500  # characters of an error in the log


@dataclasses.dataclass
class Model:
    """A model that answers.

    Attributes:
      ages: Estimates the ages.
      about: What /v1/model says of it.
      users: Number of requests that it is answering.
    """

    ages: Ages
    about: schema.About
    users: int = 0


class Models:
    """The model that answers requests. A request is answered by one model, also if another takes its place meanwhile.

    Args:
      first: The model to begin with.
      load: Loads the model that the run has now, beside the one that it gets; None: the first one stays.
      failed: Called when the warm-up of the first model fails.

    Attributes:
      current: The model that answers.
      failure: The error of the first model's warm-up, after which no request gets an age; None: it has not failed.
    """

    def __init__(
        self,
        first: Model,
        load: Callable[[Model], Model] | None = None,
        failed: Callable[[], None] = lambda: None,
    ):
        self.current, self._load, self._failed = first, load, failed
        self.failure: Exception | None = None
        self._asked, self._left = asyncio.Event(), asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Starts to warm the first model up, and then to wait for `reload`. Requests wait meanwhile."""
        self._loop = asyncio.get_running_loop()
        self._warming = asyncio.create_task(self._warm())
        self._following = asyncio.create_task(self._follow())

    def reload(self) -> None:
        """Asks for the model that the run has now. Any thread, and the handler of a signal, may call it."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._asked.set)

    async def close(self) -> None:
        """Ends the decoders at once, finishes the batches in progress and ends the threads."""
        await self._warming
        self._following.cancel()
        self.current.ages.lanes.close()
        await self.current.ages.close()

    @contextlib.asynccontextmanager
    async def using(self) -> AsyncIterator[Model]:
        """Yields the model for a request, and keeps it until the request ends."""
        model = self.current
        model.users += 1
        try:
            yield model
        finally:
            model.users -= 1
            self._left.set()

    async def _warm(self) -> None:
        try:
            await self.current.ages.start()
        except Exception as error:
            self.failure = error
            told = "the warm-up of the model failed, so no request gets an age: %s"
            logger.error(told, _reason(error), exc_info=None if isinstance(error, Ended) else error)
            self._failed()
        else:
            self._tell()
            logger.info("the model is warm")

    async def _follow(self) -> None:
        await self._warming
        while self._load is not None and self.failure is None:
            await self._asked.wait()
            self._asked.clear()
            await self._replace()

    async def _replace(self) -> None:
        old = self.current
        logger.info("loading the run again, because of a signal")
        try:
            new = await asyncio.to_thread(self._load, old)
            await new.ages.start()
        except Exception as error:
            told = "the run was not loaded again, and %s still answers: %s"
            logger.error(told, old.about.model, _reason(error))
            old.ages.counts.reloaded("failed")
            return
        self.current = new
        self._tell()
        new.ages.counts.reloaded("done")
        logger.info("%s answers in place of %s", new.about.model, old.about.model)
        while old.users:
            self._left.clear()
            await self._left.wait()
        await old.ages.close()
        del old
        if gc.get_freeze_count():  # a program: the old model is among what `start.stay` set aside
            await asyncio.to_thread(start.stay)

    def _tell(self) -> None:
        told = self.current.about
        self.current.ages.counts.model(told.model, told.versions["lae-jax"])


def _reason(error: Exception) -> str:
    return foreign.shown(str(error) or type(error).__name__, _LONGEST)

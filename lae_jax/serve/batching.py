"""Work that costs less together: what many callers ask for is done in batches, in the order in which they asked."""

import asyncio
import concurrent.futures
import contextlib
from collections.abc import Callable, Sequence


class Batcher:
    """Collects items of all callers into lists of at most `size`, and gives each its own result.

    Args: work: list of items -> list of as many results, called in a thread; wait: seconds that an item waits for
    others to come; threads: batches at once. While all threads are busy more items come, so that the next batch is
    fuller. An item whose caller has left before its turn is not worked on.
    """

    def __init__(self, work: Callable[[list], Sequence], *, size: int, wait: float, threads: int = 1):
        self._work, self._size, self._wait = work, size, wait
        self._queue: asyncio.Queue = asyncio.Queue()
        self._pool = concurrent.futures.ThreadPoolExecutor(threads)
        self._free = asyncio.Semaphore(threads)
        self._running: set[asyncio.Task] = set()
        self._collector: asyncio.Task | None = None

    def start(self) -> None:
        """From now on items are worked on; those that came before have waited."""
        self._collector = asyncio.create_task(self._collect())

    async def close(self) -> None:
        """Ends the threads once the batches that were begun are done."""
        if self._collector is not None:
            self._collector.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._collector
        await asyncio.gather(*self._running)
        self._pool.shutdown()

    async def __call__(self, items: Sequence) -> list:
        """The result of each item. Raises what `work` raised for the batch of one of them."""
        futures = [asyncio.get_running_loop().create_future() for _ in items]
        for pair in zip(items, futures, strict=True):
            self._queue.put_nowait(pair)
        return await asyncio.gather(*futures)

    async def _collect(self) -> None:
        while True:
            await self._free.acquire()
            batch = await self._next()
            task = asyncio.create_task(self._do(batch))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _next(self) -> list[tuple]:
        batch = [await self._wanted()]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._wait):
                while len(batch) < self._size:
                    batch.append(await self._wanted())
        return batch

    async def _wanted(self) -> tuple:
        while True:
            item, future = await self._queue.get()
            if not future.done():
                return item, future

    async def _do(self, batch: list[tuple]) -> None:
        items, futures = zip(*batch, strict=True)
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._pool, self._work, list(items))
        except Exception as error:
            for future in futures:
                if not future.done():
                    future.set_exception(error)
        else:
            for future, result in zip(futures, results, strict=True):
                if not future.done():
                    future.set_result(result)
        finally:
            self._free.release()

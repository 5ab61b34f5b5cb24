"""Shared batches: the items of many callers are processed together, in the order in which they came."""

import asyncio
import concurrent.futures
import contextlib
import time
from collections.abc import Callable, Sequence


class Batcher:
    """Collects the items of all callers into batches and gives each caller the results of its items.

    While all threads are busy more items arrive, so that the next batch is fuller. An item whose caller has left before
    its turn is skipped.

    Args:
      work: Takes a list of items and returns a list with the result of each. It runs in a thread.
      size: Most items in a batch.
      wait: Most seconds that an item waits for others.
      threads: Number of batches at once.
      done: Called after each batch with its size, its seconds, and whether it failed.
    """

    def __init__(
        self,
        work: Callable[[list], Sequence],
        *,
        size: int,
        wait: float,
        threads: int = 1,
        done: Callable[[int, float, bool], None] = lambda *_: None,
    ):
        self._work, self._size, self._wait, self._done = work, size, wait, done
        self._queue: asyncio.Queue = asyncio.Queue()
        self._pool = concurrent.futures.ThreadPoolExecutor(threads)
        self._free = asyncio.Semaphore(threads)
        self._running: set[asyncio.Task] = set()
        self._collector: asyncio.Task | None = None

    @property
    def waiting(self) -> int:
        """Number of items that wait for a batch."""
        return self._queue.qsize()

    def start(self) -> None:
        """Starts the processing; items that came before have waited for it."""
        self._collector = asyncio.create_task(self._collect())

    async def close(self) -> None:
        """Finishes the batches in progress and ends the threads."""
        if self._collector is not None:
            self._collector.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._collector
        await asyncio.gather(*self._running)
        self._pool.shutdown()

    async def __call__(self, items: Sequence) -> list:
        """Returns the result of each item, or raises the error of `work` for a batch with one of them."""
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
        started, failed = time.perf_counter(), False
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._pool, self._work, list(items))
        except Exception as error:
            failed = True
            for future in futures:
                if not future.done():
                    future.set_exception(error)
        else:
            for future, result in zip(futures, results, strict=True):
                if not future.done():
                    future.set_result(result)
        finally:
            self._free.release()
            self._done(len(items), time.perf_counter() - started, failed)

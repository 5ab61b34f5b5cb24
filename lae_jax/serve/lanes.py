"""Two lanes on which the photographs of all requests are decoded.

All photographs begin on the quick one, which has a tenth of the time that a photograph may take. What takes longer
moves to the slow lane, whose processes stand back behind all others, so that slow pictures do not hold up quick ones.
"""

import asyncio
import concurrent.futures
import dataclasses
import functools
import threading

from lae_jax.faces.decoders import Decoders
from lae_jax.faces.images import BadImage, Decoded
from lae_jax.runtime import cpu

PHOTOGRAPHS = 4  # that a core of the quick lane may hold until their faces are cut
_QUICK = 0.1  # share of its time that a photograph has on the quick lane
_BEHIND = 10  # niceness of the slow lane


@dataclasses.dataclass(frozen=True)
class Lane:
    """A number of decoders, with a thread for each, and the photographs that may be decoded until their faces are cut.

    A photograph leaves the lane when its faces are cut, which bounds the memory.
    """

    decoders: Decoders
    threads: concurrent.futures.ThreadPoolExecutor
    places: asyncio.Semaphore

    @classmethod
    def of(cls, places: int, share: float = 1.0, nice: int = 0) -> "Lane":
        """Returns a lane with a decoder for each core.

        Args:
          places: Most photographs on it.
          share: Share of its time that a photograph has.
          nice: Niceness of its processes.
        """
        count = cpu.cores()
        threads = concurrent.futures.ThreadPoolExecutor(count)
        return cls(Decoders(count, share=share, nice=nice), threads, asyncio.Semaphore(places))

    async def decoded(self, content: bytes, pixels: int, gone: threading.Event | None) -> Decoded | BadImage:
        """Decodes a photograph of at most `pixels` pixels, unless `gone` is set; raises as `Decoders.decode` does."""
        work = functools.partial(self.decoders.decode, [content], pixels, gone)
        return (await asyncio.get_running_loop().run_in_executor(self.threads, work))[0]

    def close(self) -> None:
        """Ends the decoders at once."""
        self.decoders.close()
        self.threads.shutdown(cancel_futures=True)


class Lanes:
    """The quick lane and the slow one. A model that takes the place of another one uses the same lanes."""

    def __init__(self):
        self.quick = Lane.of(PHOTOGRAPHS * cpu.cores(), _QUICK)
        self.slow = Lane.of(cpu.cores(), nice=_BEHIND)

    def start(self) -> None:
        """Starts the processes."""
        self.quick.decoders.start(2 * cpu.cores())  # twice as many as work, so that nothing waits for a new one
        self.slow.decoders.start(cpu.cores())

    def close(self) -> None:
        """Ends the processes at once."""
        self.quick.close()
        self.slow.close()

"""Slow photographs in the server: they hold up no quick ones, and end with their clients and with the server."""

import asyncio
import concurrent.futures
import time

import hostile
import httpx2
import numpy as np
import pytest
import served

from lae_jax.predict import photographs
from lae_jax.serve import ages, lanes, limits


@pytest.fixture(autouse=True)
def a_short_quick_lane(monkeypatch):
    monkeypatch.setattr(lanes, "_QUICK", 0.01)


@pytest.fixture(scope="module")
def slow() -> bytes:
    """A JPEG that takes a quarter of a second of a core: more than the quick lane gives here, and less than it may."""
    return hostile.slow(1600, 90)


def ask(address: str, content: bytes) -> httpx2.Response:
    body, kind = served.multipart({"a.jpg": content})
    return httpx2.post(f"{address}/v1/predict", content=body, headers={"content-type": kind}, timeout=120)


def decoding(given: ages.Ages):
    """The process of the slow lane that decodes, as soon as there is one."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        decoders = given.lanes.slow.decoders
        for process in [*decoders._all]:
            if process._is_ready and process not in decoders._idle:
                return process._child
        time.sleep(0.01)
    raise AssertionError("nothing came to the slow lane")


def test_slow_photographs_hold_up_no_quick_ones(slow):
    given = served.aligned(served.stand_in([]))
    with served.serving(given) as address, concurrent.futures.ThreadPoolExecutor(6) as pool:
        assert ask(address, served.crop(0)).status_code == 200  # warm
        running = [pool.submit(ask, address, slow) for _ in range(6)]
        decoding(given)
        for k in range(5):
            assert ask(address, served.crop(k)).status_code == 200
        assert not all(one.done() for one in running)
        answers = [one.result() for one in running]
        assert [answer.status_code for answer in answers] == [200] * 6
        assert len({str(answer.json()["images"][0]["faces"]) for answer in answers}) == 1


def test_a_client_that_leaves_ends_its_work(slow):
    given = served.aligned(served.stand_in([]))
    with served.serving(given) as address:
        body, kind = served.multipart({"a.jpg": slow})
        client = served.begun(address, served.post(body, kind, len(body)))
        child = decoding(given)
        client.close()
        assert child.wait(30) == -9
        assert ask(address, served.crop(0)).status_code == 200


def test_a_server_that_closes_ends_its_decoders_at_once(slow):
    given = served.aligned(served.stand_in([]))
    with served.serving(given) as address, concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, address, slow)
        child = decoding(given)
        given.lanes.close()
        assert child.returncode == -9 and waiting.result().status_code == 503


def test_a_photograph_of_hundreds_of_faces_holds_up_no_other(monkeypatch):
    ended = []

    async def found(_, image, turn):
        return photographs.Found(image, [np.zeros((24, 24, 3), np.uint8)] * (400 if image.name == "crowd" else 1), [])

    monkeypatch.setattr(ages.Ages, "_found", found)
    monkeypatch.setattr(ages.Ages, "_rows", lambda *_: [])

    async def asked(given, name):
        await given([limits.Uploaded(name, b"")])
        ended.append(name)

    async def both():
        given = ages.Ages(served.stand_in([]), None, batch=8)
        given._outputs.start()
        await asyncio.gather(asked(given, "crowd"), asked(given, "one"))
        await given.close()

    asyncio.run(both())
    assert ended == ["one", "crowd"]

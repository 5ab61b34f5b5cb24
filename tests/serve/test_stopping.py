"""A stop takes at most the stated seconds, whatever clients do, and the log says what became of their requests."""

import contextlib
import re
import signal
import subprocess
import sys
import threading
import time

import httpx2
import pytest
import served
from conftest import ROOT

from lae_jax.runtime.errors import InputError
from lae_jax.serve import STOP_SECONDS, connection
from lae_jax.serve import __main__ as door

BODY, KIND = served.multipart({"a.png": served.crop(0)})
LARGE = "/swagger/swagger-ui-bundle.js"  # 1.5 MB, of which the system buffers only a part
HALF = served.post(BODY, KIND)[:-20]


def blocked():
    """An event, and ages that wait for it."""
    free, estimator = threading.Event(), served.stand_in([])
    forward = estimator.forward
    object.__setattr__(estimator, "forward", lambda batch: free.wait(30) and forward(batch))
    return free, served.aligned(estimator)


def got(path: str, more: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n".encode()


def test_every_kind_of_client_is_gone_in_time_and_the_log_is_true():
    free, given = blocked()
    told, made = [], []
    with contextlib.ExitStack() as clients:
        with served.serving(given, seconds=2.0, told=told, buffer=65_536, applications=made) as address:

            def client(sent: bytes):
                return clients.enter_context(served.begun(address, sent))

            for _ in range(5):
                client(got(LARGE))
            slow, silent = client(HALF), client(got("/")[:-5])
            working = client(served.post(BODY, KIND))
            pipelined = client(served.post(BODY, KIND) + got("/healthz") * 3)
            idle = client(got("/healthz"))
            left = client(served.post(BODY, KIND))
            assert idle.recv(20).startswith(b"HTTP/1.1 200")
            served.until(lambda: made[0].open == 9)
            left.close()
            served.until(lambda: made[0].open == 8)
            # The work goes on until the requests have been refused.
            threading.Timer(1.9, free.set).start()
            started = time.monotonic()
        took = time.monotonic() - started
        assert took < 2.5
        for one in (slow, working, pipelined):
            assert b" 503 " in (answer := one.recv(1 << 16)) and b"the server was stopped before" in answer
        assert silent.recv(10) == b""
    assert told == ["of 8 requests in progress 0 were answered, 3 refused with status 503, 5 cut off"]


def test_what_is_ready_in_time_is_answered():
    free, given = blocked()
    told = []
    with contextlib.ExitStack() as clients:
        with served.serving(given, told=told) as address:
            working = clients.enter_context(served.begun(address, served.post(BODY, KIND)))
            half = clients.enter_context(served.begun(address, HALF))
            assert httpx2.get(f"{address}/healthz").status_code == 200
            threading.Timer(0.5, free.set).start()
            threading.Timer(0.5, half.sendall, [BODY[-20:]]).start()
        assert b" 200 " in working.recv(1 << 16) and b" 200 " in half.recv(1 << 16)
    assert told == ["of 2 requests in progress 2 were answered"]


def test_a_client_that_does_not_read_is_dropped_while_the_server_runs(monkeypatch):
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 0.5)
    with served.serving(served.aligned(served.stand_in([])), buffer=65_536) as address:
        whole = int(httpx2.head(address + LARGE).headers["content-length"])
        with served.begun(address, got(LARGE)) as unread:
            time.sleep(1.5)
            taken = 0
            with contextlib.suppress(ConnectionError):
                while piece := unread.recv(1 << 20):
                    taken += len(piece)
            assert taken < whole
        assert len(served.reply(served.begun(address, got(LARGE, "Connection: close\r\n")))) > whole


STUB = """
import logging, sys, threading, time
from lae_jax.runtime import start
from lae_jax.serve import listen

class Stub:
    def stop(self, seconds): pass
    def reload(self): pass
    def failure(self): return self.failed
    failed = None
    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            for kind in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{kind}.complete"})
            return
        if scope["path"] == "/hang":  # the loop itself
            time.sleep(100)
        if scope["path"].startswith("/fail"):
            from lae_jax.runtime.errors import InputError
            self.failed = InputError("not a model") if scope["path"] == "/fail" else RuntimeError("no memory")
        if scope["path"] in ("/thread", "/fail-and-hang"):
            import asyncio
            await asyncio.to_thread(time.sleep, 100)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

def main():
    with listen.bind("127.0.0.1", 0) as listening:
        print(listen.address(listening), flush=True)
        listen.serve(Stub(), listening, 1.5)

start.program(main)
"""


@pytest.fixture
def stub():
    command = [sys.executable, "-c", STUB]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.stdout.close()
        process.stderr.close()
        process.wait()


@pytest.mark.parametrize("path", ["/hang", "/thread"])
def test_work_that_hangs_ends_with_the_process(stub, path):
    process, address = stub
    with served.begun(address, got(path)):
        time.sleep(0.3)
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0 and time.monotonic() - started < 2.5
    assert re.search(r"stopped after 1.5 seconds with work that did not end; of 1 .* 1 cut off", process.stderr.read())


@pytest.mark.parametrize(
    ("path", "status", "told"),
    [("/fail", 2, "error: not a model"), ("/fail-as-a-bug", 1, "RuntimeError: no memory"),
     ("/fail-and-hang", 1, "stopped after 1.5 seconds with work that did not end")],
)  # fmt: skip
def test_a_failed_application_ends_the_process_with_the_status_of_its_error(stub, path, status, told):
    process, address = stub
    with served.begun(address, got(path)):
        assert process.wait(20) == status
    assert told in process.stderr.read()


def test_a_model_that_does_not_get_warm_ends_the_server_and_its_requests():
    estimator = served.stand_in([])
    free, forward = threading.Event(), estimator.forward
    object.__setattr__(estimator, "forward", lambda batch: free.wait(30) and forward(batch) * float("nan"))
    made, answers = [], []
    with served.serving(served.aligned(estimator), applications=made, seconds=3) as address:

        def ask():
            files = {"images": ("a.png", served.crop(0))}
            answers.append(httpx2.post(f"{address}/v1/predict", files=files, timeout=30))

        client = threading.Thread(target=ask)
        client.start()
        served.until(lambda: made[0].open)
        assert httpx2.get(f"{address}/readyz").status_code == 503
        free.set()
        client.join(20)
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{address}/healthz")
    assert [one.status_code for one in answers] == [503]
    assert isinstance(made[0].failure(), InputError) and "not numbers" in str(made[0].failure())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_leaves_at_once(stub, number):
    process, address = stub
    assert httpx2.get(address).status_code == 200
    with served.begun(address, got("/thread")):
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        process.send_signal(number)
        assert process.wait(1) == 128 + number
    assert f"a second signal ({number.name}): left at once; of 1" in process.stderr.read()


def test_the_time_of_a_stop_is_less_than_a_container_has():
    assert door.parse_args(["--run", "r"]).stop_seconds == STOP_SECONDS < 10
    for wrong in ("0", "-1", "nan", "inf"):
        with pytest.raises(InputError, match="--stop-seconds is .*: it must lie between 1 and 3600"):
            door.parse_args(["--run", "r", "--stop-seconds", wrong])

"""A stop takes at most the stated seconds, whatever clients do, and the log says what became of their requests."""

import contextlib
import logging
import re
import signal
import subprocess
import sys
import threading
import time

import httpx2
import numpy as np
import pytest
import served
import uvicorn
from conftest import ROOT

from lae_jax.runtime.errors import InputError
from lae_jax.serve import STOP_SECONDS, app, connection, listen
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
            assert idle.recv(20).startswith(b"HTTP/1.1 200")
            served.until(lambda: made[0].open == 8)
            left = client(served.post(BODY, KIND))
            served.until(lambda: made[0].open == 9)
            left.close()
            served.until(lambda: made[0].open == 8)
            # The work goes on until the requests have been refused.
            threading.Timer(1.9, free.set).start()
            started = time.monotonic()
        took = time.monotonic() - started
        assert took < 2.5
        for one in (slow, working, pipelined):
            assert b" 503 " in (answer := served.reply(one)) and b"the server was stopped before" in answer
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
    def stop(self, seconds):
        if self.fails_late:
            self.failed = RuntimeError("no memory")
    def reload(self): pass
    def failure(self): return self.failed
    failed, fails_late = None, False
    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            for kind in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{kind}.complete"})
            return
        if scope["path"] == "/hang":  # the loop itself
            time.sleep(100)
        if scope["path"] in ("/not-a-model", "/not-a-model-and-hang"):
            from lae_jax.runtime.errors import InputError
            self.failed = InputError("not a model")
        if scope["path"] == "/no-memory":
            self.failed = RuntimeError("no memory")
        self.fails_late = scope["path"] == "/fails-late"
        if scope["path"] == "/nobody-reads":
            import os
            os.set_blocking(2, False)
            try:
                while True:
                    os.write(2, b"x" * 4096)
            except BlockingIOError:
                os.set_blocking(2, True)
        if scope["path"] in ("/thread", "/not-a-model-and-hang"):
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
    ("path", "status"), [("/not-a-model", 2), ("/no-memory", 1), ("/not-a-model-and-hang", 2)]
)  # fmt: skip
def test_a_failed_application_ends_the_process_with_the_status_of_its_error(stub, path, status):
    process, address = stub
    with served.begun(address, got(path)):
        assert process.wait(20) == status
    assert ("with work that did not end" in process.stderr.read()) == path.endswith("hang")


@pytest.mark.parametrize("path", ["/fails-late", "/nobody-reads"])
def test_a_signal_ends_with_0_even_if_the_application_fails_afterwards_or_nobody_reads_the_log(stub, path):
    process, address = stub
    with served.begun(address, got(path)) as client:
        assert b" 200 " in client.recv(1000)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_a_failed_warm_up_refuses_requests_at_once_and_stops_the_server(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lae_jax"), "propagate", True)
    estimator = served.stand_in([])
    free, forward = threading.Event(), estimator.forward
    object.__setattr__(estimator, "forward", lambda batch: free.wait(30) and forward(batch) * float("nan"))
    made = []
    with served.serving(served.aligned(estimator), applications=made, seconds=60) as address:
        with served.begun(address, served.post(BODY, KIND)) as waiting, served.begun(address, HALF) as half:
            served.until(lambda: made[0].open == 2)
            assert httpx2.get(f"{address}/readyz").json() == {"status": "warming up", "ready": False}
            free.set()
            for client in (waiting, half):
                assert b" 503 " in (answer := served.reply(client)) and b"the server was stopped before" in answer
        served.until(lambda: served.refuses(address))
    assert isinstance(made[0].failure(), InputError)
    assert "so no request gets an age: the model gives ages that are not numbers" in caplog.text


def test_in_another_server_readyz_says_that_the_model_failed():
    estimator = served.stand_in([])
    object.__setattr__(estimator, "forward", lambda batch: np.full((len(batch), 101), np.nan))
    listening = listen.bind("127.0.0.1", 0)
    address = listen.address(listening).rstrip("/")
    other = uvicorn.Server(uvicorn.Config(app.create(served.aligned(estimator), served.ABOUT), log_config=None))
    thread = threading.Thread(target=other.run, kwargs={"sockets": [listening]})
    thread.start()
    served.until(lambda: httpx2.get(f"{address}/readyz").json()["status"] == "failed")
    answer = httpx2.post(f"{address}/v1/predict", files={"images": ("a.png", served.crop(0))})
    assert answer.status_code == 503 and "the server was stopped" in answer.json()["error"]
    other.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


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

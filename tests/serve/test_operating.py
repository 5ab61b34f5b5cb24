"""What those who run the server need: numbers, keys, a log for programs, another model without a stop."""

import json
import logging
import os
import pty
import signal
import subprocess
import sys
import threading

import httpx2
import pytest
import served
from conftest import ROOT
from prometheus_client.parser import text_string_to_metric_families

from lae_jax.runtime.errors import InputError
from lae_jax.serve import app, guard, swap
from lae_jax.serve.ages import Ages
from lae_jax.serve.operating import api_key, log_lines

KEY, OTHER = "a-key-of-many-letters", "another-key-of-letters"
NAME = "Erika Mustermann 1964.png"


def ask(address: str, contents=None, **headers) -> httpx2.Response:
    body, kind = served.multipart(contents or {"a.png": served.crop(0)})
    return httpx2.post(f"{address}/v1/predict", content=body, headers={"content-type": kind, **headers}, timeout=60)


def numbers(address: str) -> dict:
    """{(name, values of its labels by their names): value} of /metrics."""
    text = httpx2.get(f"{address}/metrics").text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(one.name, *one.labels.values()): one.value for one in samples}


def test_what_the_server_did_is_counted_and_no_label_holds_what_a_client_sent():
    with served.serving(served.aligned(served.stand_in([])), metrics=True) as address:
        assert ask(address, {NAME: served.crop(0), "b.png": served.crop(1), "c.txt": b"text"}).status_code == 200
        assert ask(address, {NAME: b"text"}).status_code == 422
        for path in (f"/{NAME}", "/v1/predict/x", "/static/none", "/static/page.js"):
            httpx2.get(address + path)
        httpx2.request("BREW", f"{address}/healthz")
        assert b" 400 " in served.reply(served.begun(address, b"\x16\x03\x01\x02\x00\x01\r\n\r\n"))
        found = served.until(
            lambda: (all_ := numbers(address)).get(("lae_jax_requests_total", "other", "/healthz", "405")) and all_
        )
        text = httpx2.get(f"{address}/metrics").text
    assert found["lae_jax_requests_total", "POST", "/v1/predict", "200"] == 1
    assert found["lae_jax_requests_total", "POST", "/v1/predict", "422"] == 1
    assert found["lae_jax_requests_total", "GET", "other", "404"] == 2
    assert (
        found["lae_jax_requests_total", "GET", "/static", "404"]
        == found["lae_jax_requests_total", "GET", "/static", "200"]
        == 1
    )
    assert found["lae_jax_images_total", "age"] == 2 and found["lae_jax_images_total", "no age"] == 2
    assert found["lae_jax_faces_total",] == 2 and found["lae_jax_malformed_requests_total",] == 1
    assert found["lae_jax_batch_size_sum", "faces"] == found["lae_jax_batch_size_sum", "photographs"] == 2
    assert found["lae_jax_request_seconds_count", "/v1/predict"] == found["lae_jax_estimate_seconds_count",] == 2
    assert found["lae_jax_ready",] == 1 and found["lae_jax_open_requests",] == 1
    assert found["lae_jax_waiting", "faces"] == found["lae_jax_held_bytes",] == found["lae_jax_working_requests",] == 0
    assert found["lae_jax_model_info", "stand-in", "0"] == 1
    assert "Mustermann" not in text and "127.0.0.1" not in text and "BREW" not in text


def test_a_batch_that_fails_and_a_client_that_leaves_are_counted():
    free, estimator = threading.Event(), served.stand_in([])
    forward = estimator.forward
    object.__setattr__(estimator, "forward", lambda batch: free.wait(30) and forward(batch))
    given = served.aligned(estimator)
    with served.serving(given, metrics=True) as address:
        body, kind = served.multipart({"a.png": served.crop(0)})
        served.begun(address, served.post(body, kind)).close()
        served.until(lambda: numbers(address).get(("lae_jax_requests_total", "POST", "/v1/predict", str(app.LEFT))))
        free.set()
        served.until(lambda: given.ready)
        object.__setattr__(estimator, "forward", lambda batch: 1 / 0)
        assert ask(address).status_code == 500
        found = served.until(lambda: numbers(address))
    assert found["lae_jax_batch_failures_total", "faces"] == 1
    assert found["lae_jax_requests_total", "POST", "/v1/predict", "500"] == 1


def test_the_numbers_are_there_only_if_asked_for_and_also_when_the_server_is_full(monkeypatch):
    with served.serving(served.aligned(served.stand_in([]))) as address:
        assert httpx2.get(f"{address}/metrics").status_code == 404
    monkeypatch.setattr(guard, "MOST_OPEN", 0)
    with served.serving(served.aligned(served.stand_in([])), metrics=True) as address:
        assert httpx2.get(f"{address}/v1/model").status_code == 503
        assert numbers(address)["lae_jax_requests_total", "GET", "/v1/model", "503"] == 1
        kind = httpx2.get(f"{address}/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
        assert kind.headers["content-type"].startswith("application/openmetrics-text") and kind.text.endswith("# EOF\n")


def test_without_a_good_key_there_is_no_answer_but_whether_the_server_runs_and_its_page():
    given = served.aligned(served.stand_in([]))
    with served.serving(given, metrics=True, keys=(KEY, OTHER)) as address:
        refused = ask(address)
        assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
        assert "Authorization: Bearer KEY" in refused.json()["error"]
        assert guard.HEADERS.items() <= refused.headers.items()
        for value in (
            KEY,
            f"Basic {KEY}",
            f"Bearer {KEY}x",
            f"Bearer {KEY[:-1]}",
            "Bearer",
            f"Bearer {OTHER} {KEY}",
        ):
            assert ask(address, authorization=value).status_code == 401, value
        two = [("authorization", f"Bearer {KEY}"), ("authorization", "Bearer x")]
        assert httpx2.get(f"{address}/v1/model", headers=two).status_code == 401
        for good in (f"Bearer {KEY}", f"bearer  {OTHER}"):
            assert ask(address, authorization=good).status_code == 200
        for path in ("/v1/model", "/card", "/metrics", "/v1/none", "//v1/model", "/static/../v1/model"):
            assert served.reply(
                served.begun(address, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            ).split()[1] in (b"401", b"404"), path
        for path in ("/v1/model", "/card", "/metrics"):
            assert httpx2.get(address + path).status_code == 401
        for path in ("/", "/docs", "/healthz", "/static/page.js", "/swagger/swagger-ui.css"):
            assert httpx2.get(address + path).status_code == 200
        described = httpx2.get(f"{address}/openapi.json").json()
        needing = {path for path, one in described["paths"].items() if "security" in next(iter(one.values()))}
        assert needing == {"/v1/predict", "/v1/model"}
        assert all("401" in next(iter(described["paths"][path].values()))["responses"] for path in needing)


def test_keys_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    path = tmp_path / "keys"
    path.write_text(f"{KEY}\n\n {OTHER} \n")
    assert api_key.given(path) == (KEY, OTHER) and api_key.given(None) == ()
    monkeypatch.setenv(api_key.VARIABLE, KEY)
    assert api_key.given(None) == (KEY,)
    with pytest.raises(InputError, match="both give keys"):
        api_key.given(path)
    monkeypatch.setenv(api_key.VARIABLE, "")  # not a server without a key
    with pytest.raises(InputError, match="LAE_JAX_API_KEY: key 1 must have at least 16"):
        api_key.given(None)
    monkeypatch.delenv(api_key.VARIABLE)
    for content, words in (
        ("\n", "has no key"),
        ("short-secret\n", "key 1 must have"),
        (f"{KEY}\nb\u00f6se schl\u00fcssel 123", "key 2 must"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=words) as told:
            api_key.given(path)
        assert "short-secret" not in str(told.value) and "schl" not in str(told.value)
    with pytest.raises(InputError, match="none"):
        api_key.given(tmp_path / "none")


@pytest.fixture
def logged(monkeypatch):
    """The lines that a log for programs gets."""
    lines = []

    class Kept(logging.Handler):
        def emit(self, record):
            lines.append(self.format(record))

    handler, requests = Kept(), logging.getLogger("lae_jax.requests")
    handler.setFormatter(log_lines.JsonLines())
    uvicorn = logging.getLogger("uvicorn")
    for one in (log_lines.logger, uvicorn):
        monkeypatch.setattr(one, "handlers", [handler])
    monkeypatch.setattr(log_lines.logger, "level", logging.INFO)
    monkeypatch.setattr(uvicorn, "propagate", False)
    logging.getLogger("lae_jax")._cache.clear()
    level = requests.level
    requests.setLevel(logging.INFO)
    yield lines
    requests.setLevel(level)


def test_the_log_for_programs_has_a_line_for_each_request_and_nothing_of_a_person(logged):
    estimator = served.stand_in([])
    given = served.aligned(estimator)
    with served.serving(given) as address:
        assert ask(address, {NAME: served.crop(0), "b.txt": b"text"}).status_code == 200
        age = ask(address, {NAME: served.crop(0)}).json()["images"][0]["faces"][0]["age"]
        httpx2.get(f"{address}/{NAME}")
        httpx2.get(f"{address}/healthz")

        def fail(*_):
            raise RuntimeError(f"cannot name {NAME}")

        given._rows = fail
        assert ask(address, {NAME: served.crop(0)}).status_code == 500
        served.until(lambda: any('"error"' in line for line in logged))
    told = [json.loads(line) for line in logged]
    assert {"time", "level", "message"} <= set(told[0]) and told[0]["time"].endswith("+00:00")
    first, *_ = requests = [one for one in told if one["message"] == "request"]
    assert (first["route"], first["method"], first["status"], first["images"], first["faces"]) == (
        "/v1/predict",
        "POST",
        200,
        2,
        1,
    )
    assert [one["status"] for one in requests] == [200, 200, 404, 500] and all(one["seconds"] >= 0 for one in requests)
    (failed,) = (one for one in told if "error" in one)
    assert failed["error"] == "RuntimeError" and failed["trace"][-1].endswith(" fail") and failed["level"] == "error"
    everything = "\n".join(logged)
    assert "Mustermann" not in everything and "127.0.0.1" not in everything and f"{age:.3f}"[:6] not in everything


def test_a_text_log_has_no_line_for_a_request(caplog):
    assert not log_lines.is_used()


def told_of(number: int):
    return served.ABOUT.model_copy(update={"model": f"model {number}"})


def test_another_model_takes_over_between_two_requests_and_a_bad_one_does_not(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lae_jax"), "propagate", True)
    caplog.set_level(logging.INFO, "lae_jax")
    free, slow = threading.Event(), served.stand_in([])
    forward = slow.forward
    blocked = threading.Event()
    object.__setattr__(slow, "forward", lambda batch: (not blocked.is_set() or free.wait(30)) and forward(batch))
    given, loads = served.aligned(slow), []

    def load(old: swap.Model) -> swap.Model:
        loads.append(old.about.model)
        if len(loads) == 1:
            raise InputError("runs/new is not a run: train it first")
        estimator = served.stand_in([])
        if len(loads) == 2:  # one whose weights are not numbers
            object.__setattr__(estimator, "forward", lambda batch: forward(batch) * float("nan"))
        return swap.Model(
            Ages(estimator, None, limits=old.ages.limits, lanes=old.ages.lanes, counts=old.ages.counts),
            told_of(len(loads)),
        )

    made = []
    with served.serving(given, metrics=True, load=load, applications=made) as address:
        first = ask(address).json()
        assert first["model"] == "stand-in"
        for reason in ("runs/new is not a run: train it first", "not numbers"):
            made[0].reload()
            served.until(lambda reason=reason: reason in caplog.text)
            assert ask(address).json()["model"] == "stand-in"
        assert numbers(address)["lae_jax_reloads_total", "failed"] == 2
        blocked.set()
        waiting = []
        thread = threading.Thread(target=lambda: waiting.append(ask(address).json()))
        thread.start()
        served.until(lambda: numbers(address)["lae_jax_working_requests",] == 1)
        made[0].reload()
        served.until(lambda: numbers(address).get(("lae_jax_reloads_total", "done")))
        assert ask(address).json()["model"] == "model 3" == httpx2.get(f"{address}/v1/model").json()["model"]
        assert not waiting
        free.set()
        thread.join(30)
        assert waiting[0]["model"] == "stand-in" and waiting[0]["images"] == first["images"]
        served.until(lambda: not given.ready)  # the old one is closed
        assert ask(address).json()["images"] == first["images"]  # the lanes are still there
        assert ("lae_jax_model_info", "model 3", "0") in numbers(address)
    assert "the run was not loaded again, and stand-in still answers: runs/new is not a run" in caplog.text
    assert "model 3 answers in place of stand-in" in caplog.text


HANGUP = """
import signal, sys, time
from lae_jax.serve.operating import hangup
hangup.handle(lambda: print("reloaded", flush=True))
print("ready", flush=True)
for _ in range(600):
    time.sleep(0.1)
"""


@pytest.mark.filterwarnings("ignore:os.fork")  # the child becomes another program at once
def test_a_hangup_reloads_and_the_end_of_the_terminal_ends_the_server():
    process = subprocess.Popen(
        [sys.executable, "-c", HANGUP], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    with process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        assert process.stdout.readline() == "reloaded\n" and process.poll() is None
        process.kill()
    read, write = os.pipe()
    child, terminal = pty.fork()
    if child == 0:
        os.dup2(write, 1)
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-c", HANGUP])
    os.close(write)
    with os.fdopen(read) as told:
        assert told.readline() == "ready\n"
        os.kill(child, signal.SIGHUP)
        assert told.readline() == "reloaded\n"
        os.close(terminal)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGTERM and told.read() == ""

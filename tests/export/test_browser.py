"""The page of an ONNX export: what it needs, what it holds, and its arithmetic, run by Node."""

import base64
import gzip
import hashlib
import html
import json
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from programs import needs_onnx, npm_package

from lae_jax import export
from lae_jax.export import __main__ as door
from lae_jax.export import browser
from lae_jax.runs import conformal, distributions, preprocessing
from lae_jax.runtime.errors import InputError

pytestmark = needs_onnx
needs_node = pytest.mark.skipif(not shutil.which("node"), reason="no node")
PAGE = pathlib.Path(browser.__file__).parent / "page"


@pytest.fixture
def software(tmp_path, monkeypatch):
    return npm_package(tmp_path / "node_modules" / "onnxruntime-web", monkeypatch)


def content(**fields):
    source = {"model": "resnet18", "run": "/home/anna/runs/<b>x", "step": 7}
    return {
        "source": source,
        "input": {"image_size": 24, "resize": 28},
        "crop": {"align": "none", "detector": "unknown"},
        "temperature": 1.3,
        "conformal": None,
        "versions": {"lae-jax": "0.1"},
    } | fields


def written(folder, software, card="# Card of `/home/anna/runs/<b>x`", **fields):
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"model" * 99)
    told = browser.write(folder, content(**fields), card, software)
    return told, (folder / "index.html").read_text()


def embedded(page, name):
    parts = re.findall(rf'<script type="text/plain" data-file="{name}">(.*?)</script>', page)
    return gzip.decompress(b"".join(base64.b64decode(part) for part in parts))


def test_a_page_holds_the_model_the_software_and_its_licences(software, tmp_path, monkeypatch):
    monkeypatch.setattr(browser, "_PART", 16)  # so that there are several
    told, page = written(tmp_path / "page", software)
    assert embedded(page, "onnx") == b"model" * 99 and page.count('data-file="onnx"') > 1
    for name, file in zip(("script", "glue", "wasm"), browser.SHA256, strict=True):
        assert embedded(page, name) == (software / "dist" / file).read_bytes()
        assert browser.SHA256[file] in page
    assert told == {"file": "index.html", "software": "onnxruntime-web", "version": "1.30.0", "sha256": browser.SHA256}
    assert "MIT License" in (tmp_path / "page" / "onnxruntime-web" / "LICENSE").read_text()
    links = {*re.findall(r'href="([^":]+)"', page)}
    assert links == {"model_card.md", "export.json", "onnxruntime-web/LICENSE", "onnxruntime-web/ThirdPartyNotices.txt"}


def test_a_page_runs_its_own_script_alone_and_names_no_host_and_no_folder(software, tmp_path):
    _, page = written(tmp_path / "page", software)
    stated = html.unescape(re.search(r'Policy" content="(.*?)"', page)[1])
    policy = dict(words.partition(" ")[::2] for words in stated.split("; "))
    for directive, tag in (("script-src", '<script type="module">'), ("style-src", "<style>")):
        (text,) = re.findall(rf"{tag}(.*?)</{tag[1:6].strip()}", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[directive].split()[0] == f"'sha256-{digest}'"
    assert policy["default-src"] == "'none'" and "connect-src" not in policy and "unsafe-inline" not in str(policy)
    assert {*re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]+", page)} <= {"http://www.w3.org"}
    assert "import" not in re.search(r'<script type="module">(.*?)</script>', page, re.DOTALL)[1]
    assert "anna" not in page and "<b>" not in page
    facts = json.loads(re.search(r'id="facts">(.*?)</script>', page)[1])
    assert facts["model"] == "resnet18 of <b>x step 7"
    assert facts["contract"] == {"size": 24, "resize": 28, "most": 25_000_000, "level": 0.9, "conformal": None}


def test_a_page_says_which_pictures_it_takes_and_whether_there_are_intervals(software, tmp_path):
    cut = {"align": "least-squares similarity of five landmarks", "template": "112x112", "size": 256, "margin": 0.125}
    _, crops = written(tmp_path / "crops", software)
    _, faces = written(tmp_path / "faces", software, crop=cut, temperature=1.0)
    for page in (crops, faces):
        assert "This page does not search for faces." in page
    assert "were cut is not recorded" in crops and "256 x 256" in faces and "112x112 template" in faces
    assert "gives no intervals" in faces and '"level": null' in faces and "gives no intervals" not in crops


@pytest.mark.parametrize(("damage", "message"), [
    (lambda path: shutil.rmtree(path), "there is no folder"),
    (lambda path: (path / "package.json").unlink(), "is not the package onnxruntime-web of npm"),
    (lambda path: (path / "package.json").write_text('{"version": "1.29.0"}'), "has version '1.29.0', and"),
    (lambda path: (path / "package.json").write_text("{"), "package.json is damaged"),
    (lambda path: (path / "dist" / "ort.wasm.min.js").write_text("x"), "ort.wasm.min.js is missing or was changed"),
    (lambda path: (path / "dist" / "ort.wasm.min.js").unlink(), "ort.wasm.min.js is missing or was changed"),
])  # fmt: skip
def test_without_the_software_the_command_that_installs_it_is_told(software, tmp_path, damage, message, trained):
    damage(software)
    with pytest.raises(InputError, match=message) as end:
        export.export(trained("represent"), "onnx", tmp_path / "out", page=True, onnxruntime_web=software)
    assert end.value.status == 2
    assert "npm install --prefix . --no-save --ignore-scripts onnxruntime-web@1.30.0" in str(end.value)
    assert not (tmp_path / "out").exists()


def test_the_version_is_the_one_that_make_installs():
    (version,) = re.findall(r"^ONNXRUNTIME_NPM := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert version == browser.VERSION and browser.INSTALL.endswith(f"onnxruntime-web@{version}")


def test_the_software_is_looked_for_in_the_current_folder(software, tmp_path, monkeypatch, trained):
    monkeypatch.chdir(tmp_path)
    export.check(trained("represent"), "onnx", tmp_path / "out", None, page=True)
    monkeypatch.chdir(software)
    with pytest.raises(InputError, match="^there is no folder node_modules/onnxruntime-web, npm's package"):
        export.check(trained("represent"), "onnx", tmp_path / "out", None, page=True)


def test_a_page_is_of_an_onnx_model(software, tmp_path, trained):
    words = ["--run", str(trained("represent")), "--out", str(tmp_path / "out")]
    with pytest.raises(InputError, match="--page runs an ONNX model: use --format onnx in place of stablehlo"):
        door.main([*words, "--format", "stablehlo", "--page"])
    with pytest.raises(InputError, match="--onnxruntime-web is for the page: add --page"):
        door.main([*words, "--format", "onnx", "--onnxruntime-web", str(software)])


def by_node(module, code, given):
    """What `code` prints, a JSON, with the exports of a module of the page as `page` and `given`."""
    code = f"""
const page = await import(process.argv[1]);
const given = JSON.parse(await new Response(process.stdin).text());
console.log(JSON.stringify({code}));
"""
    words = ["node", "--input-type=module", "-e", code, str(PAGE / module)]
    done = subprocess.run(words, input=json.dumps(given), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_node
@pytest.mark.parametrize(("width", "height", "size", "resize"), [
    (300, 240, 24, 0),  # smaller
    (17, 21, 24, 28),  # larger, of which the centre
    (40, 9, 25, 28),  # one axis smaller, the other one larger, an odd rest
    (28, 28, 24, 28),  # only the centre
    (24, 24, 24, 0),  # as it is
    (1, 500, 32, 0),
])  # fmt: skip
def test_the_input_of_the_page_is_pillows_bit_for_bit(width, height, size, resize):
    rng = np.random.default_rng(width)
    # Steps between black and white, where the filter overshoots, and noise.
    steps = np.kron(rng.integers(0, 2, (-(-height // 3), -(-width // 3), 3)) * 255, np.ones((3, 3, 1)))[:height, :width]
    noise = rng.integers(0, 256, (height, width, 3))
    pixels = np.where(rng.random((height, width, 1)) < 0.7, steps, noise).astype(np.uint8)
    data = np.concatenate([pixels, np.full((height, width, 1), 255, np.uint8)], axis=2)
    contract = {"size": size, "resize": resize, "most": 25_000_000}
    given = {"picture": {"width": width, "height": height, "data": data.ravel().tolist()}, "contract": contract}
    code = "[...page.inputOf({ ...given.picture, data: Uint8ClampedArray.from(given.picture.data) }, given.contract)]"
    found = np.array(by_node("pixels.js", code, given)).reshape(size, size, 3)
    np.testing.assert_array_equal(found, preprocessing.Input(size, resize).pixels(Image.fromarray(pixels)))


@needs_node
def test_the_intervals_of_the_page_are_those_of_predict():
    rng = np.random.default_rng(0)
    rows = rng.dirichlet(np.full(101, 0.1), 20).astype(np.float32)
    rows[0] = np.eye(101)[0]
    rows[1] = np.eye(101)[100]
    code = "given.map((row) => page.intervalOf(row, 0.9)).map((one) => [one.lower, one.upper])"
    found = by_node("intervals.js", code, rows.tolist())
    np.testing.assert_allclose(found, distributions.intervals(rows, 0.9), atol=1e-9)


@needs_node
def test_the_conformal_intervals_of_the_page_are_those_of_predict(software, tmp_path):
    rng = np.random.default_rng(0)
    thresholds = rng.uniform(0, 9, (10, 99))
    thresholds[1], thresholds[8] = conformal.HELD, np.inf
    fitted = conformal.Conformal(thresholds, np.full(10, 100))
    _, page = written(tmp_path / "page", software, conformal={**fitted.to_json(), "flip": False})
    contract = json.loads(re.search(r'id="facts">(.*?)</script>', page)[1])["contract"]["conformal"]
    levels = [contract, *({"level": level, "groups": fitted.groups(level)} for level in (0.1, 0.5, 0.99))]
    rows = rng.dirichlet(np.full(101, 0.1), 200).astype(np.float32)
    rows[:2] = np.eye(101)[[0, 100]]
    ages = np.float32([0, 100, *rng.uniform(0, 100, 198)])
    code = (
        "given.levels.map((one) => given.rows.map((row, i) => page.conformalOf(given.ages[i], row, one)))"
        ".flat().map((one) => [one.level, one.lower, one.upper])"
    )
    given = {"levels": levels, "rows": rows.tolist(), "ages": ages.tolist()}
    found = np.array(by_node("intervals.js", code, given)).reshape(4, 200, 3)
    for level, of_level in zip((0.9, 0.1, 0.5, 0.99), found, strict=True):
        assert (of_level[:, 0] == level).all()
        np.testing.assert_allclose(of_level[:, 1:], fitted.intervals(ages, rows, level), atol=1e-9)

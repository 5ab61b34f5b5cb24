"""The page of an export, opened as a file: it gives the ages of `AgeEstimator` without a network."""

import contextlib
import dataclasses
import json
import re
import shutil
import struct
from unittest import mock

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image, PngImagePlugin
from programs import random_variables

from browser.conftest import barriers, fits, shoot
from lae_jax import export, predict
from lae_jax.export import browser, convert
from lae_jax.runs import conformal

pytestmark = pytest.mark.skipif(
    not (ROOT / browser.PLACE).is_dir(), reason=f"no {browser.SOFTWARE} of npm: {browser.INSTALL}"
)


@pytest.fixture(scope="module")
def exported(folder, tmp_path_factory):
    """The page of a run with conformal intervals. A grey level more in each pixel changes an age by 0.3 years."""

    def sensitive(*args):
        made = program_of(*args)
        variables = random_variables(made.name, made.image_size)
        kernel = 6 * variables["params"]["head"]["fc"]["kernel"]
        head = {"fc": {**variables["params"]["head"]["fc"], "kernel": kernel}}
        return dataclasses.replace(
            made, variables={**variables, "params": {**variables["params"], "head": head}}, temperature=2.0
        )

    out, program_of = tmp_path_factory.mktemp("page") / "page", convert.program_of
    rng = np.random.default_rng(0)
    fitted = conformal.fit(rng.uniform(20, 60, 90), rng.dirichlet(np.ones(101), 90), rng.integers(1, 80, 90))
    stored = {**fitted.to_json(), "flip": False}
    with (
        mock.patch.object(convert, "program_of", sensitive),
        mock.patch.object(convert.calibration, "stored_conformal", lambda *_: stored),
    ):
        export.export(folder / "run", "onnx", out, page=True, onnxruntime_web=ROOT / browser.PLACE)
    return out


@pytest.fixture(scope="module")
def pictures(folder, tmp_path_factory):
    """Files that browsers and Pillow could read differently."""
    path = tmp_path_factory.mktemp("pictures")
    with Image.open(folder / "photographs" / "1.png") as face:
        face = face.convert("RGB")
    face.save(path / "large.png")
    face.resize((17, 21)).save(path / "small.png")
    face.convert("L").save(path / "grey.png")
    clear = face.convert("RGBA")
    clear.putalpha(Image.fromarray(np.indices((face.height, face.width)).sum(0).astype(np.uint8)))
    clear.save(path / "clear.png")
    linear = PngImagePlugin.PngInfo()
    linear.add(b"gAMA", struct.pack(">I", 100_000))
    face.save(path / "linear.png", pnginfo=linear)
    turned = Image.Exif()
    turned[0x0112] = 6
    face.save(path / "turned.jpg", quality=95, exif=turned)
    return [path / name for name in ("large.png", "small.png", "grey.png", "clear.png", "linear.png", "turned.jpg")]


def choose(page, paths):
    page.set_input_files("#files", paths)
    page.locator("#status").get_by_text(re.compile(rf"\d+ of {len(paths)} photographs? done")).wait_for()
    page.locator("#status").get_by_text(f"{len(paths)} of {len(paths)}").wait_for()


def ready(opened, exported, *look):
    page = opened((exported / "index.html").as_uri(), *look)
    page.locator("#state").get_by_text("The model is ready.").wait_for()
    return page


def answers(page):
    with page.expect_download() as begun:
        page.get_by_text("Download JSON").click()
    return json.loads(begun.value.path().read_text())


def test_a_page_without_a_network_gives_the_ages_of_the_estimator(opened, exported, pictures):
    page = ready(opened, exported)
    asked = []
    page.context.set_offline(True)
    page.on("request", lambda request: asked.append(request.url))
    choose(page, pictures)
    whole = answers(page)
    assert whole["model"].startswith("efficientnet_v2_pico of run step ")
    assert whole["versions"]["onnxruntime-web"] == browser.VERSION
    with contextlib.ExitStack() as files:
        images = [files.enter_context(Image.open(path)) for path in pictures]
        estimator = predict.AgeEstimator.from_run(exported)
        ages, distributions = estimator.predict(images, distribution=True)
    assert np.ptp(ages) > 5, "the pictures must be told apart"
    found = [image["faces"][0] for image in whole["images"]]
    np.testing.assert_allclose([face["age"] for face in found], ages, atol=0.05)
    np.testing.assert_allclose([face["distribution"] for face in found], distributions, atol=0.005)
    own = [np.array([face[name] for face in found]) for name in ("age", "distribution")]
    sure = [[face["conformal"]["lower"], face["conformal"]["upper"]] for face in found]
    np.testing.assert_allclose(sure, estimator.conformal.intervals(*own, 0.9), atol=1e-6)
    assert [image["name"] for image in whole["images"]] == [path.name for path in pictures]
    assert whole["images"][-1]["size"] == [240, 300]  # upright
    assert all(url.startswith("blob:") for url in asked)


def test_crops_that_are_cut_as_the_docs_say_get_the_ages_of_predict(opened, exported, folder, tmp_path, monkeypatch):
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports" / "page").symlink_to(exported)
    shutil.copy(folder / "photographs" / "5.png", tmp_path / "photo.jpg")  # of two people; the name says nothing
    monkeypatch.chdir(tmp_path)
    section = (
        (ROOT / "docs" / "serving.md").read_text().partition("## A page without a server")[2].partition("\n## ")[0]
    )
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    exec(compile(code, "docs/serving.md", "exec"), {})
    crops = sorted(tmp_path.glob("crop-*.jpg"))
    page = ready(opened, exported)
    choose(page, crops)
    found = [image["faces"][0]["age"] for image in answers(page)["images"]]
    expected = [row.age for row in predict.predict(exported, "photo.jpg", faces="largest")]
    assert len(expected) == 1
    # Another decoder of JPEGs: a grey level here and there.
    np.testing.assert_allclose(found, expected, atol=0.5)


def test_a_file_that_is_no_picture_gets_a_sentence_and_the_rest_goes_on(opened, exported, pictures, folder):
    opened.allowed.append("blob:")
    page = ready(opened, exported)
    choose(page, [folder / "photographs" / "broken.jpg", pictures[0]])
    first, second = page.locator("article").all()
    assert "No age: not an image that this browser can read: save it as JPEG or PNG." in first.inner_text()
    assert " years" in second.inner_text() and "90 % interval" in second.inner_text()
    assert "90 % conformal interval" in second.inner_text()


def test_a_browser_that_changes_pixels_is_told_and_gets_no_ages(opened, exported, pictures, tmp_path):
    """As privacy modes do, a few pixels are one grey level off."""
    changed = """<script type="text/plain" id="worker">
const read = OffscreenCanvasRenderingContext2D.prototype.getImageData;
OffscreenCanvasRenderingContext2D.prototype.getImageData = function (...given) {
  const found = read.apply(this, given);
  for (let place = 400; place < found.data.length; place += 16000) found.data[place] ^= 1;
  return found;
};
"""
    text = (exported / "index.html").read_text()
    (tmp_path / "index.html").write_text(text.replace('<script type="text/plain" id="worker">', changed))
    page = opened((tmp_path / "index.html").as_uri())
    told = "his browser changes the pixels that a page reads, as some privacy modes do, and the ages would be wrong"
    page.locator("#state.problem").get_by_text(f"T{told}: allow this page to read canvases, or").wait_for()
    choose(page, pictures[:1])
    assert f"No age: t{told}" in page.locator("article").inner_text()
    assert answers(page)["images"][0]["faces"] == []


def test_the_policy_of_the_page_forbids_requests_and_other_scripts(opened, exported):
    opened.allowed += ["Content Security Policy"]  # a request that was made would be told as "asks"
    page = opened((exported / "index.html").as_uri())
    forbidden = page.evaluate("""async () => {
      const found = [];
      document.addEventListener("securitypolicyviolation", (event) => found.push(event.effectiveDirective));
      const place = "http://127.0.0.1:9/";
      await fetch(place).catch(() => {});
      await fetch(document.URL).catch(() => {});
      new Image().src = `${place}picture.png`;
      document.body.append(Object.assign(document.createElement("script"), { textContent: "window.ran = 1" }));
      await new Promise((resume) => setTimeout(resume, 200));
      return found;
    }""")
    assert sorted(forbidden) == ["connect-src", "connect-src", "img-src", "script-src-elem"]
    assert page.evaluate("window.ran") is None


@pytest.mark.parametrize("width", ["phone", "desktop"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_shuts_people_out_and_nothing_overflows(opened, exported, pictures, width, dark):
    page = ready(opened, exported, width, dark)
    choose(page, pictures[:2])
    for title in ("Model card", "Software in this page"):
        page.locator("summary").get_by_text(title).click()
    page.locator("#card h3").get_by_text("Model card").wait_for()
    assert not barriers(page) and fits(page)
    shoot(page, f"offline-page-{width}-{'dark' if dark else 'light'}")

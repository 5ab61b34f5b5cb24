"""A real browser, a real run, and the server on it. `make test-browser` fails where `make test` skips."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
from urllib.parse import urlsplit

import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent.parent
SHOTS = ROOT / "build" / "screenshots"
WIDTHS = {"phone": 390, "desktop": 1280}


def pytest_collection_modifyitems(items):
    missing = _missing()
    here = [item for item in items if pathlib.Path(__file__).parent in item.path.parents]
    if missing and here:
        if os.environ.get("BROWSER") == "required":
            pytest.exit(missing, returncode=2)
        for item in here:
            item.add_marker(pytest.mark.skip(reason=f"{missing} (make test-browser tells how)"))


def _missing() -> str:
    try:
        import axe_playwright_python  # noqa: F401
        import playwright  # noqa: F401
    except ImportError as error:
        return f"no {error.name}: pip install -r requirements-browser.txt"
    return "" if shutil.which("chromium") else "no chromium: apt-get install --no-install-recommends chromium"


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> pathlib.Path:
    """photographs/ of drawn people; run/, trained on their crops, calibrated and evaluated."""
    from lae_jax import evaluate, prepare
    from lae_jax.configs import represent
    from lae_jax.data.sources import synthetic
    from lae_jax.train import loop

    folder = tmp_path_factory.mktemp("browser")
    (folder / "photographs").mkdir()
    rows = []
    for k in range(12):
        face = Image.fromarray(synthetic.draw_face(k, 6.0 * k + 5, 1, 160, k)[0])
        # Several widths and heights; the sixth has two people.
        scene = Image.new("RGB", (240 + 60 * (k % 3) + 260 * (k == 5), 240), (118, 132, 140))
        scene.paste(face, (20, 40))
        if k == 5:
            scene.paste(Image.fromarray(synthetic.draw_face(30, 12.0, 1, 160, 30)[0]), (330, 60))
        scene.save(folder / "photographs" / f"{k}.png")
        rows.append(f"photographs/{k}.png,{6 * k + 5}")
    Image.new("RGB", (300, 200), (118, 132, 140)).save(folder / "photographs" / "nobody.png")
    (folder / "photographs" / "broken.jpg").write_bytes(b"no picture")
    (folder / "faces.csv").write_text("\n".join(["path,age", *rows]) + "\n")
    prepare.prepare(folder / "faces.csv", folder / "data", size=64, workers=1, ratio="1:1")
    c = represent.get_config()
    c.workdir, c.init_from, c.data.path = str(folder / "run"), "scratch", str(folder / "data")
    c.data.image_size, c.data.threads = 24, 2
    c.model.name, c.batch_size, c.eval_batch_size, c.epochs = "efficientnet_v2_pico", 8, 8, 1.0
    loop.train(c)
    evaluate.evaluate(c.workdir, calibrate=True)
    return folder


@pytest.fixture(scope="session")
def address(folder):
    """Of `python -m lae_jax.serve` on the run; at the end it is stopped, and must have ended by itself."""
    words = [sys.executable, "-m", "lae_jax.serve", "--run", str(folder / "run"), "--port", "0", "--max-batch", "4"]
    with open(folder / "serve.log", "w+") as log:
        process = subprocess.Popen(words, cwd=ROOT, stderr=log)
        try:
            while not (found := re.search(r"http://[0-9.:]+/", (folder / "serve.log").read_text())):
                assert process.poll() is None, (folder / "serve.log").read_text()
            yield found[0]
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert "Traceback" not in (folder / "serve.log").read_text()


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # The sandbox of Chromium does not start for root, who CI is.
        root = ["--no-sandbox"] * (os.geteuid() == 0)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=root)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Opens an address in a new window: opened(url, width='phone', dark=False). What a page logs as an error, or asks
    of another host, fails the test at its end; `allowed`: what it may say."""
    contexts, problems, allowed = [], [], []

    def open_page(url: str, width: str = "desktop", dark: bool = False):
        scheme = "dark" if dark else "light"
        context = browser.new_context(viewport={"width": WIDTHS[width], "height": 844}, color_scheme=scheme)
        contexts.append(context)
        here = urlsplit(url).netloc

        def only_here(route):
            asked = urlsplit(route.request.url)
            if asked.netloc == here or asked.scheme in ("blob", "data"):
                route.continue_()
            else:
                problems.append(f"asks {route.request.url}")
                route.abort()

        context.route("**/*", only_here)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: message.type == "error" and problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(url)
        return page

    open_page.allowed = allowed
    yield open_page
    for context in contexts:
        context.close()
    assert not [problem for problem in problems if not any(words in problem for words in allowed)]


def barriers(page) -> list[str]:
    """What axe calls serious or critical, with the elements."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{violation['id']}: {violation['help']}: {[node['html'][:120] for node in violation['nodes'][:3]]}"
        for violation in found
        if violation["impact"] in ("serious", "critical")
    ]


def shoot(page, name: str) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def fits(page) -> bool:
    """Whether nothing is wider than the window."""
    return page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")

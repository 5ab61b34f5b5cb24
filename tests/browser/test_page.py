"""The page of `python -m lae_jax.serve`, as a person meets it: with a mouse, with keys alone, on a phone."""

import csv
import io
import json

import pytest
import served
from PIL import Image

from browser.conftest import barriers, fits, shoot


def choose(page, folder, *names: str) -> None:
    page.set_input_files("#files", [folder / "photographs" / name for name in names])


def wait_for(page, text: str) -> None:
    page.get_by_role("status").get_by_text(text).wait_for()


def download(page, action) -> str:
    with page.expect_download() as begun:
        action()
    return begun.value.path().read_text()


def test_photographs_get_boxes_ages_and_plots_and_can_be_taken_home(opened, address, folder):
    page = opened(address)
    choose(page, folder, "1.png", "5.png", "nobody.png")
    wait_for(page, "3 of 3 photographs done, 1 without an age.")
    titles = page.locator("article h3").all_inner_texts()
    assert titles == ["1.png", "5.png", "nobody.png"]
    one, two, nobody = page.locator("article").all()
    assert (one.locator("rect.outline.under").count(), two.locator("rect.outline.under").count()) == (1, 2)
    assert two.locator("figure text").all_text_contents() == ["1", "2"]
    assert " years" in one.locator("strong").inner_text() and "90 % interval" in one.inner_text()
    told = one.get_by_role("img", name="Distribution over the ages 0 to 100").get_attribute("aria-label")
    assert "most likely" in told and "in the interval" in told
    assert "No age: no face found." in nobody.inner_text()
    # The box stands on the face: in the middle of where it was drawn.
    box, picture = one.locator("rect.outline.under").bounding_box(), one.locator("img").bounding_box()
    centre = (box["x"] + box["width"] / 2 - picture["x"]) / picture["width"]
    assert centre == pytest.approx(100 / 300, abs=0.06)
    rows = list(csv.DictReader(io.StringIO(download(page, page.get_by_text("Download CSV").click))))
    assert [row["name"] for row in rows] == ["1.png", "5.png", "5.png", "nobody.png"]
    whole = json.loads(download(page, page.get_by_text("Download JSON").click))
    images = whole["images"]
    assert " step " in whole["model"] and whole["versions"]["jax"]
    assert float(rows[0]["age"]) == images[0]["faces"][0]["age"] and len(images[0]["faces"][0]["distribution"]) == 101
    assert rows[3]["reason"] == "no face found" and float(rows[1]["right"]) > float(rows[1]["left"])


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.avif", "a.webp"])
def test_the_box_is_on_the_face_of_a_photograph_that_is_stored_turned(opened, address, folder, tmp_path, name):
    turned = Image.Exif()
    turned[0x0112] = 6
    with Image.open(folder / "photographs" / "1.png") as upright:
        upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / name, exif=turned)
    page = opened(address)
    page.set_input_files("#files", [tmp_path / name])
    wait_for(page, "1 of 1 photograph done.")
    boxes = page.locator("rect.outline.under")
    if name == "a.webp":  # which browsers do not turn
        assert boxes.count() == 0 and "No boxes, because browsers do not" in page.locator("figure").inner_text()
        return
    box, picture = boxes.bounding_box(), page.locator("figure img").bounding_box()
    assert (box["x"] + box["width"] / 2 - picture["x"]) / picture["width"] == pytest.approx(100 / 300, abs=0.06)
    assert picture["width"] > picture["height"] and box["height"] < picture["height"]


def test_errors_are_told_beside_the_photograph_and_the_rest_goes_on(opened, address, folder):
    opened.allowed += ["ERR_INTERNET_DISCONNECTED", "blob:"]
    page = opened(address)
    choose(page, folder, "broken.jpg", "2.png")
    wait_for(page, "2 of 2 photographs done, 1 without an age.")
    assert "No age: not an image that can be read." in page.locator("article").first.inner_text()
    page.context.set_offline(True)
    choose(page, folder, "3.png")
    wait_for(page, "3 of 3 photographs done, 2 without an age.")
    assert "the server did not answer: is it still running?" in page.locator("article").last.inner_text()


def test_keys_alone_do_everything(opened, address, folder):
    page = opened(address)
    # Choosers are caught from now on: asked for at the key press, that can come too late.
    page.on("filechooser", lambda _: None)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    assert chooser.value.is_multiple()
    chooser.value.set_files([folder / "photographs" / "4.png"])
    wait_for(page, "1 of 1 photograph done.")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "csv"
    assert "4.png" in download(page, lambda: page.keyboard.press("Enter"))
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.locator("article").count() == 0 and page.evaluate("document.activeElement.id") == "files"


def test_photographs_can_be_dropped(opened, address, folder):
    page = opened(address)
    content = list((folder / "photographs" / "6.png").read_bytes())
    page.evaluate(
        """content => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(content)], "dropped.png", { type: "image/png" }));
            const event = new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
            document.getElementById("drop").dispatchEvent(event);
        }""",
        content,
    )
    wait_for(page, "1 of 1 photograph done.")
    assert page.locator("article h3").inner_text() == "dropped.png"


@pytest.mark.parametrize("width", ["phone", "desktop"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_shuts_people_out_and_nothing_overflows(opened, address, folder, width, dark):
    opened.allowed.append("blob:")
    page = opened(address, width, dark)
    page.locator("#model").get_by_text("for photographs").wait_for()
    shade = "dark" if dark else "light"
    shoot(page, f"page-empty-{width}-{shade}")
    assert not barriers(page)
    choose(page, folder, "1.png", "5.png", "broken.jpg")
    wait_for(page, "3 of 3 photographs done, 1 without an age.")
    page.get_by_text("Model card", exact=True).click()
    page.locator("#card h3").get_by_text("Model card").wait_for()
    assert not barriers(page) and fits(page)
    shoot(page, f"page-card-{width}-{shade}")
    page.get_by_text("Model card", exact=True).click()
    shoot(page, f"page-{width}-{shade}")


def test_the_api_is_described_without_another_host(opened, address):
    page = opened(f"{address}docs")
    page.get_by_text("/v1/predict").first.wait_for()
    assert page.get_by_text("Ages of the faces in one or many images").first.is_visible()
    shoot(page, "docs-desktop-light")


@pytest.mark.parametrize("width", ["phone", "desktop"])
def test_a_server_with_a_key_asks_for_it_and_then_gives_ages(opened, width, monkeypatch):
    key = "a-key-of-many-letters"
    limits = {"bytes": 1_000_000, "files": 4, "pixels": 10_000}
    monkeypatch.setattr(served, "ABOUT", served.ABOUT.model_copy(update={"limits": limits}))
    opened.allowed.append("401")
    with served.serving(served.aligned(served.stand_in([])), keys=(key,)) as own:
        page = opened(f"{own}/", width)
        page.get_by_text("This server needs a key.").wait_for()
        assert barriers(page) == [] and fits(page)
        shoot(page, f"key-{width}")
        page.get_by_label("Key", exact=True).fill("wrong")
        page.keyboard.press("Enter")
        page.get_by_text("The key is wrong.").wait_for()
        page.get_by_label("Key", exact=True).fill(key)
        page.keyboard.press("Enter")
        page.get_by_text("Model stand-in").wait_for()
        assert page.locator("#key-form").is_hidden()
        page.set_input_files("#files", [{"name": "a.png", "mimeType": "image/png", "buffer": served.crop(0)}])
        wait_for(page, "1 of 1 photograph done.")
        page.get_by_text("years").first.wait_for()

"""Boxes and ages in photographs: readable, and not over the faces."""

import io
import os
import unicodedata
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from lae_jax.faces import images, pixels
from lae_jax.predict import annotate
from lae_jax.predict.answers import Row


class Photograph(NamedTuple):
    name: str
    content: bytes

    def read(self):
        return self.content


BOXES = [(20, 20, 60, 70), (70, 22, 110, 70), (120, 20, 160, 70), (840, 300, 890, 360), (30, 540, 70, 595)]


def test_a_label_covers_no_face_where_there_is_room_beside_it():
    blank = Image.new("RGB", (900, 600), (200, 200, 200))
    texts = [f"{30 + k} ({20 + k}-{40 + k})" for k in range(len(BOXES))]
    drawn = np.asarray(annotate.draw(blank, BOXES, texts), int)
    changed = (drawn != 200).any(axis=-1)
    for left, top, right, bottom in BOXES:
        assert not changed[top + 3 : bottom - 2, left + 3 : right - 2].any()
        assert changed.sum() > len(BOXES) * 1000
    # A face that fills the photograph leaves no room.
    annotate.draw(blank, [None], ["30 (20-40)"])


ROWS = [Row("name", 1, 30.0, 20.0, 40.0, box=[5, 5, 20, 20])]


def drawn_names(folder, names):
    """The names of the drawings of one photograph that is called by each of `names`."""
    encoded = io.BytesIO()
    Image.new("RGB", (40, 40)).save(encoded, "PNG")
    drawings = annotate.Drawings(folder)
    return [drawings.save(Photograph(name, encoded.getvalue()), ROWS).name for name in names]


@pytest.mark.parametrize(("name", "file"), [
    ("a/x.jpg", "a_x.jpg"), ("x.JPEG", "x.JPEG"), ("a/x.png", "a_x.png.jpg"), ("x", "x.jpg"),
    ("a b\\c:d?.jpg", "a_b_c_d.jpg"), ("张三.jpg", "张三.jpg"), ("कि.jpg", "कि.jpg"),
    ("../.jpg", "photograph.jpg"), ("\udcff.jpg", "photograph.jpg"),
])  # fmt: skip
def test_a_drawing_has_the_photographs_name_and_is_a_jpeg(tmp_path, name, file):
    assert drawn_names(tmp_path, [name]) == [file]
    with Image.open(tmp_path / file) as drawn:
        assert drawn.format == "JPEG"


@pytest.mark.parametrize("names", [
    ["张三.jpg", "李四.jpg", "Иван.jpg", "d_.jpg", "?.jpg", "*.jpg"],
    ["a_b.jpg", "a/b.jpg", "a\\b.jpg", "a/b", "a_b-2.jpg"],
    ["Anna.jpg", "anna.jpg", "ANNA.JPG", "Zoë.jpg", "Zoe\u0308.jpg", "straße.jpg", "strasse.jpg"],
    [letter * 300 + ".jpg" for letter in "ab张"] + ["a" * 301 + ".jpg"],
    ["same.jpg", "same.jpg"],
])  # fmt: skip
def test_every_photograph_has_a_drawing_of_its_own_on_any_disk(tmp_path, names):
    found = drawn_names(tmp_path, names)
    assert len({*tmp_path.iterdir()}) == len(names)
    assert len({unicodedata.normalize("NFD", name.casefold()) for name in found}) == len(names)
    assert max(len(name.encode()) for name in found) <= 143


def test_a_drawing_replaces_an_earlier_one_and_no_other_file(tmp_path):
    photograph = tmp_path / "a.jpg"
    Image.new("RGB", (40, 40)).save(photograph)
    (tmp_path / "b.jpg").write_text("notes")
    (tmp_path / "c.jpg").mkdir()
    before = photograph.read_bytes()
    for _ in range(2):
        assert drawn_names(tmp_path, ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]) == ["a-2.jpg", "b-2.jpg", "c-2.jpg", "d.jpg"]
    assert photograph.read_bytes() == before and (tmp_path / "b.jpg").read_text() == "notes"


def test_a_drawing_replaces_no_pipe_and_does_not_wait_for_one(tmp_path):
    os.mkfifo(tmp_path / "x.jpg")
    assert drawn_names(tmp_path, ["x.jpg"]) == ["x-2.jpg"]


def test_boxes_are_in_pixels_of_the_photograph_also_where_it_is_used_smaller(tmp_path, monkeypatch):
    encoded = io.BytesIO()
    Image.new("RGB", (400, 400), "white").save(encoded, "PNG")
    monkeypatch.setattr(pixels, "MAX_KEPT_PIXELS", 200 * 200)
    monkeypatch.setattr(images, "decode", pixels.decode)  # in this process
    row = Row("x", 1, 30.0, 20.0, 40.0, box=[100, 200, 299, 399])
    path = annotate.Drawings(tmp_path).save(Photograph("x.jpg", encoded.getvalue()), [row])
    blue = np.asarray(Image.open(path).convert("RGB"), int)[100:, :, 0] < 140
    columns = np.flatnonzero(blue[20:80].any(axis=0))
    assert blue.shape == (100, 200) and abs(columns[0] - 50) <= 1 and abs(columns[-1] - 149) <= 1

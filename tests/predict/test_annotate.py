"""Boxes and ages in photographs: readable, and not over the faces."""

import numpy as np
import pytest
from PIL import Image

from lae_jax.predict import annotate
from lae_jax.predict.answers import Row
from lae_jax.predict.photographs import Named

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


@pytest.mark.parametrize(("name", "file"), [("a/x.jpg", "a_x.jpg"), ("x.JPEG", "x.JPEG"), ("a/x.png", "a_x.png.jpg")])
def test_a_drawing_has_the_photographs_name_and_is_a_jpeg(tmp_path, monkeypatch, name, file):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    Image.new("RGB", (40, 40)).save(name)
    path = annotate.save(tmp_path, Named(name), [Row(name, 1, 30.0, 20.0, 40.0, box=[5, 5, 20, 20])])
    with Image.open(path) as drawn:
        assert path.name == file and drawn.format == "JPEG"

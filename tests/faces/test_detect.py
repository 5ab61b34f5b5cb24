"""Landmarks by mtcnn: near marks made by hand and true ones, and the same for a photograph alone and in any batch."""

import dataclasses
import pickle

import numpy as np
import pytest
import skimage.data
from PIL import Image

from lae_jax.data.sources import synthetic
from lae_jax.faces import canvases, cascade, detect, networks
from lae_jax.runtime.errors import InputError

# What is found there, on any CPU (`make test-portable`).
FOUND = np.array([[203.788, 100.115], [246.196, 102.457], [224.449, 128.105], [201.262, 138.437], [244.557, 140.962]])
FOUND_BOX = np.array([181.206, 59.147, 267.629, 173.019])
# Marked by hand on skimage's portrait (NASA, public domain): eyes, nose tip, mouth corners.
BY_HAND = np.array([[203.3, 101], [246.5, 103], [223.5, 127], [203, 140], [244.5, 141]])


@pytest.fixture(scope="module")
def portrait():
    return Image.fromarray(skimage.data.astronaut())


@pytest.fixture(scope="module")
def drawn_faces():
    """(pictures, true landmarks (N, 5, 2))."""
    faces = synthetic.plan(0, 0, 60, seed=3)
    made = [synthetic.draw_face(int(faces.identity[i]), float(faces.age[i]), 3, 200, i) for i in range(len(faces.age))]
    return [Image.fromarray(image) for image, _ in made], np.stack([marks.reshape(5, 2) for _, marks in made])


@pytest.fixture(scope="module")
def found(drawn_faces):
    return detect.detect(drawn_faces[0])


def error(landmarks, truth):
    """Mean distance as a share of the distance between the eyes."""
    return np.linalg.norm(landmarks - truth, axis=1).mean() / np.linalg.norm(truth[1] - truth[0])


def assert_same(one, two):
    """To the tolerances of docs/results.md: on some CPUs the position in a batch changes the order of summation."""
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a.landmarks, b.landmarks, atol=0.01)
        np.testing.assert_allclose(a.box, b.box, atol=0.01)
        assert a.confidence == pytest.approx(b.confidence, abs=1e-4)


def test_the_landmarks_of_a_portrait_are_those_marked_by_hand(portrait):
    (face,) = detect.detect([portrait])[0]
    assert error(face.landmarks, BY_HAND) < 0.08
    np.testing.assert_allclose(face.landmarks, FOUND, atol=0.01)
    np.testing.assert_allclose(face.box, FOUND_BOX, atol=0.01)
    left, top, right, bottom = face.box
    assert np.all((face.landmarks > [left, top]) & (face.landmarks < [right, bottom]))


@pytest.mark.parametrize(("width", "place"), [(120, (30, 40)), (200, (250, 10)), (330, (60, 120))])
def test_a_face_is_found_where_it_was_pasted(portrait, width, place):
    corner, side = np.array([155, 35]), 140
    face = portrait.crop((*corner, *(corner + side))).resize((width, width), Image.Resampling.BICUBIC)
    scene = Image.fromarray(np.full((500, 600, 3), (70, 90, 80), np.uint8))
    scene.paste(face, place)
    truth = (BY_HAND + 0.5 - corner) * (width / side) - 0.5 + place
    assert error(detect.detect([scene])[0][0].landmarks, truth) < 0.08


def test_drawn_faces_are_found(drawn_faces, found):
    errors = [error(faces[0].landmarks, truth) for faces, truth in zip(found, drawn_faces[1], strict=True) if faces]
    assert len(errors) >= 0.9 * len(found) and np.mean(errors) < 0.08


def test_a_photograph_gives_the_same_alone_and_in_any_batch(drawn_faces, found, portrait):
    pictures = drawn_faces[0][:10]
    backwards = detect.detect([portrait, *pictures[::-1]])[1:]
    for number in range(10):
        assert_same(found[number], backwards[::-1][number])
    assert_same(found[0], detect.detect(pictures[:1])[0])


def test_it_is_what_the_package_finds_alone(drawn_faces, found):
    from mtcnn import MTCNN

    package = MTCNN()
    for picture, faces in list(zip(drawn_faces[0], found, strict=True))[:6]:
        canvas = canvases.Canvas.of(picture)
        rows = package.detect_faces([canvas.pixels], output_type="numpy", box_format="xyxy", fit_to_image=False)
        points = [canvas.back(np.stack([row[6:11], row[11:16]], axis=1)) for row in rows if len(row) == 16]
        assert len(points) == len(faces)
        for face in faces:
            assert min(np.abs(face.landmarks - p).max() for p in points) < 0.05


def test_the_black_part_of_a_canvas_has_no_candidates(drawn_faces):
    """It is not searched: what is found elsewhere is the same."""
    canvas = canvases.Canvas.of(drawn_faces[0][0].resize((200, 120)))
    assert canvas.region == cascade.Region(512, 48, 100, 464, 412)
    everywhere = dataclasses.replace(canvas, region=cascade.Region(512, 0, 0, 512, 512))
    (one, _), (two, _) = (detect._find([which], detect.CAPS[0])[0] for which in (canvas, everywhere))
    assert one
    assert_same(one, two)


def test_a_photograph_with_more_candidates_than_room_is_searched_again(drawn_faces, found, monkeypatch, caplog):
    few, enough = cascade.Caps(8, 4, 2), detect.CAPS[0]
    monkeypatch.setattr(detect, "CAPS", (few, enough))
    assert_same(detect.detect(drawn_faces[0][:1])[0], found[0])
    assert not caplog.records
    monkeypatch.setattr(detect, "CAPS", (few, few))
    detect.detect(drawn_faces[0][:1])
    assert "more places that look like a face than there is room for (8, 4 and 2" in caplog.text


def test_canvases_of_a_batch_do_not_change_each_other(drawn_faces, found):
    """The form of accelerators: several canvases in a run, batches of candidates of all of them."""
    some = [canvases.Canvas.of(picture) for picture in drawn_faces[0][:3]]
    pixels = np.stack([canvas.pixels for canvas in some])
    result = cascade.find(
        pixels, detect._weights(), region=some[0].region, caps=cascade.Caps(256, 64, 32), batches=(64, 8)
    )
    parts = zip(some, *map(np.asarray, result[:3]), strict=True)
    for number, (canvas, boxes, landmarks, confidences) in enumerate(parts):
        assert_same(detect._faces(canvas, boxes, landmarks, confidences), found[number])


@pytest.fixture(scope="module")
def crowd(portrait):
    """A large face and many small ones, also across the edges of tiles, and the landmarks of all."""
    scene = Image.fromarray(np.full((1200, 1200, 3), (70, 90, 80), np.uint8))
    corner, side, truth = np.array([155, 35]), 140, []
    small = range(10, 1150, 181)
    places = [(x, y, 30 + (x + 3 * y) % 16) for y in small for x in small if max(x, y) > 520]
    places += [(30, 30, 460)]
    for x, y, width in places:
        face = portrait.crop((*corner, *(corner + side))).resize((width, width), Image.Resampling.BICUBIC)
        scene.paste(face, (x, y))
        truth.append((BY_HAND + 0.5 - corner) * (width / side) - 0.5 + [x, y])
    return scene, np.array(truth)


def test_small_faces_are_found_once_and_the_others_stay_the_same(crowd):
    scene, truth = crowd
    (few,), (many,) = detect.detect([scene]), detect.detect([scene], [24])
    assert_same(few, [face for face in many if any(np.array_equal(face.box, one.box) for one in few)])
    assert len(few) < len(many) - 10
    near = [[error(face.landmarks, one) < 0.45 for face in many] for one in truth]
    assert {sum(row) for row in near} <= {0, 1}, "a face was found twice"
    assert np.sum(near) >= 0.95 * len(truth) and len(many) - np.sum(near) <= 2
    # Where 24 pixels are a twentieth of the photograph, there is nothing more to search for.
    assert len([*canvases.views(scene.resize((480, 480)), 24)]) == 1


@pytest.mark.parametrize(("side", "scale"), [(500, 1), (6000, 5 / 6), (4000, 0.31), (700, 0.6), (416, 1)])
def test_a_face_of_the_size_of_a_scale_is_whole_on_a_tile(side, scale):
    tiles, size = canvases._along(side, scale), 40 / scale
    assert tiles[0][0] == 0 and tiles[-1][1] == side and all(end - start <= 416 / scale + 1e-6 for start, end in tiles)
    for begin in np.linspace(0, side - size, 997):
        low, high = (max(0, begin - size / 4), min(side, begin + size + size / 4))
        assert any(start <= low + 1e-6 and high <= end + 1e-6 for start, end in tiles)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_face_that_lies_on_its_side_is_found_where_it_is(portrait, quarters):
    lying = portrait.crop((60, 0, 460, 300)).rotate(90 * quarters, expand=True)
    truth, width, height = BY_HAND - [60, 0], 400, 300
    for _ in range(quarters):  # counterclockwise
        truth, width, height = np.stack([truth[:, 1], width - 1 - truth[:, 0]], axis=1), height, width
    assert all(error(wrong.landmarks, truth) > 0.3 for wrong in detect.detect([lying])[0])
    (face,) = detect.detect([lying], rotate=True)[0]
    assert lying.size == (width, height) and error(face.landmarks, truth) < 0.08
    left, top, right, bottom = face.box
    assert np.all((face.landmarks > [left, top]) & (face.landmarks < [right, bottom]))
    # The photograph that is not turned is searched first.
    assert_same(detect.detect([portrait], rotate=True)[0], detect.detect([portrait])[0])


def test_a_doubtful_face_is_compared_with_those_of_the_other_turns():
    image, marks = synthetic.draw_face(2, 32.0, 0, 200, 2)
    lying, marks = Image.fromarray(image).rotate(90, expand=True), marks.reshape(5, 2)
    truth = np.stack([marks[:, 1], 199 - marks[:, 0]], axis=1)
    (wrong,), (right,) = detect.detect([lying])[0], detect.detect([lying], rotate=True)[0]
    assert error(wrong.landmarks, truth) > 0.3 and error(right.landmarks, truth) < 0.15
    assert wrong.confidence < min(detect._SURE, right.confidence)


def test_without_a_face_there_is_none():
    noise = np.random.default_rng(0).integers(0, 255, (80, 300, 3)).astype(np.uint8)
    assert detect.detect([Image.new("RGB", (1, 1)), Image.fromarray(noise), Image.new("RGB", (3000, 40))]) == [[]] * 3


class _Opened:
    def __reduce__(self):
        return (pytest.fail, ("a pickle of the working folder was opened",))


def test_only_the_pinned_weights_are_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pnet.lz4").write_bytes(pickle.dumps(_Opened()))
    assert len(networks._read("pnet.lz4")) > 0
    monkeypatch.setitem(networks._WEIGHTS, "pnet.lz4", "0" * 64)
    with pytest.raises(InputError, match="pnet.lz4 of the mtcnn package are not those"):
        networks._read("pnet.lz4")

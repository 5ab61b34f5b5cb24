"""Landmarks -> crop: the transform against closed forms, the pixels against marks whose places are known."""

import numpy as np
import pytest
from PIL import Image

from lae_jax.faces import align
from lae_jax.faces.images import BadImage


def turned(points, degrees, scale, shift):
    a = np.deg2rad(degrees)
    turn = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    return scale * points @ turn.T + shift


@pytest.mark.parametrize(("degrees", "scale", "shift"), [(0, 1, (0, 0)), (30, 0.4, (5, -7)), (-170, 3.0, (100, 20))])
def test_a_similarity_is_found_exactly(degrees, scale, shift):
    found = align.similarity(align.TEMPLATE, turned(align.TEMPLATE, degrees, scale, shift))
    a = np.deg2rad(degrees)
    expected = scale * np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    np.testing.assert_allclose(found[:, :2], expected, atol=1e-9)
    np.testing.assert_allclose(found[:, 2], shift, atol=1e-9)


def test_it_is_the_least_squares_solution():
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(5, 2)) * 40, rng.normal(size=(5, 2)) * 30
    (x, y), ones, zeros = source.T, np.ones(5), np.zeros(5)
    # x' = a x - b y + c, y' = b x + a y + d, as a plain linear system.
    system = np.concatenate([np.stack([x, -y, ones, zeros], 1), np.stack([y, x, zeros, ones], 1)])
    a, b, c, d = np.linalg.lstsq(system, target.T.ravel(), rcond=None)[0]
    np.testing.assert_allclose(align.similarity(source, target), [[a, -b, c], [b, a, d]], atol=1e-9)


def test_it_never_mirrors():
    mirrored = align.TEMPLATE * [-1, 1]
    assert np.linalg.det(align.similarity(mirrored, align.TEMPLATE)[:, :2]) > 0


def test_the_template_scales_about_pixel_centres():
    np.testing.assert_allclose(align.template(112, 0), align.TEMPLATE)
    # At twice the size the pixel whose centre was 0 has become the pixels 0 and 1.
    np.testing.assert_allclose(align.template(224, 0), (align.TEMPLATE + 0.5) * 2 - 0.5)
    # A margin of a quarter on each side: the template takes the middle two thirds.
    np.testing.assert_allclose(align.template(168, 0.25), align.TEMPLATE + 28)


def photograph_with_marks(size, points, radius):
    """Grey, with a bright soft spot at each point."""
    y, x = np.mgrid[: size[1], : size[0]]
    picture = np.full((size[1], size[0]), 40.0)
    for px, py in points:
        picture += 200 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * radius**2))
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).convert("RGB")


def centroid(crop, point, window):
    """Centre of what is bright near a point."""
    grey = np.asarray(crop.convert("L"), np.float64)
    y, x = np.mgrid[: grey.shape[0], : grey.shape[1]]
    near = (np.abs(x - point[0]) <= window) & (np.abs(y - point[1]) <= window)
    weight = np.where(near, np.maximum(grey - 60, 0), 0)
    return np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


@pytest.mark.parametrize("scale", [0.3, 0.9, 1.0, 1.7, 2.5, 6.3])
@pytest.mark.parametrize("degrees", [0, 20, -65])
def test_marks_land_where_the_transform_says(scale, degrees):
    margin = 0.125
    perfect = align.template(256, margin) - 127.5
    # Not quite the template, as faces are not.
    wobble = np.random.default_rng(1).normal(size=(5, 2)) * 3
    points = turned(perfect + wobble, degrees, scale, 0)
    size = np.ceil(np.ptp(points, axis=0) + 60 * scale + 40).astype(int)
    points += (size - 1) / 2 - (points.max(0) + points.min(0)) / 2
    crop, spans = align.align(photograph_with_marks(size.tolist(), points, 4 * scale), points, 256, margin)
    matrix = align.similarity(points, align.template(256, margin))
    assert spans == pytest.approx(scale, rel=0.1) and crop.size == (256, 256)
    for point in points:
        expected = matrix @ [*point, 1]
        assert np.linalg.norm(centroid(crop, expected, 12) - expected) < 0.35


@pytest.mark.parametrize("scale", [1.3, 2.0, 3.7, 8.0])
def test_what_is_finer_than_the_crop_becomes_even(scale):
    points = align.template(64, 0.125) * scale + 20
    side = int(64 * scale + 40)
    board = ((np.add.outer(np.arange(side), np.arange(side)) % 2) * 255).astype(np.uint8)
    crop, _ = align.align(Image.fromarray(board).convert("RGB"), points, 64, 0.125)
    inside = np.asarray(crop, np.float64)[8:-8, 8:-8]
    # Nearest or plain bicubic sampling leaves the whole swing of 255.
    assert inside.std() < 40 * (scale < 2) + 12 and abs(inside.mean() - 127.5) < 6


def test_outside_the_photograph_is_black():
    points = align.template(64, 0) - [40, 0]
    crop, _ = align.align(Image.new("RGB", (64, 64), "white"), points, 64, 0)
    assert np.all(np.asarray(crop)[:, :36] == 0) and np.all(np.asarray(crop)[8:-8, 45:60] == 255)


@pytest.mark.parametrize(("landmarks", "reason"), [
    (np.full((5, 2), 10.0), "eyes closer than"),
    (align.TEMPLATE * [1, np.nan], "closer than|coincide"),
    (align.TEMPLATE + 5000, "outside the image"),
])  # fmt: skip
def test_landmarks_that_are_no_face_are_refused(landmarks, reason):
    with pytest.raises(BadImage, match=reason):
        align.align(Image.new("RGB", (100, 100)), landmarks, 64, 0.1)


FACE = turned(align.TEMPLATE, 12, 0.5, (20, 10)) + np.random.default_rng(5).normal(size=(5, 2))
# A head turned by 70 degrees: eyes, nose and mouth of a simple solid one.
SOLID = np.array([[-17.6, -20.2, 0], [17.6, -20.2, 0], [0, 0, 16], [-14.6, 20.5, 4], [14.6, 20.5, 4]])
PROFILE = SOLID @ [[np.cos(1.22), 0], [0, 1], [np.sin(1.22), 0]] + 50


@pytest.mark.parametrize(
    "face", [align.TEMPLATE, FACE, PROFILE, PROFILE[[1, 0, 2, 4, 3]] * [-1, 1] + [100, 0], turned(FACE, 90, 1, (99, 0))]
)
def test_landmarks_of_a_face_are_accepted(face):
    align.check(face, (128, 128))
    assert align.residual(face) == pytest.approx(align.residual(turned(face, 33, 7.0, (5, 900))), abs=1e-6)


@pytest.mark.parametrize("face", [FACE, turned(FACE, -40, 1, (20, 60))])
@pytest.mark.parametrize(("given", "told"), [
    (lambda p: p[[1, 0, 2, 4, 3]], "looks as if each pair begins with the point at the image's right"),
    (lambda p: p * [-1, 1] + [127, 0], "or the picture was mirrored"),
    (lambda p: p[[1, 0, 2, 3, 4]], "the eye at the image's right comes first"),
    (lambda p: p[[0, 1, 2, 4, 3]], "the mouth corner at the image's right comes first"),
    (lambda p: p[:, ::-1], "y comes before x"),
    (lambda p: p.T.reshape(5, 2), "all x come before all y"),
    (lambda p: p[[2, 0, 1, 3, 4]], "left and right mouth corner, as seen in the image\\)$"),
    (lambda p: p + [90, 0], "outside the image, which has 128 x 128 pixels when it is upright"),
    (lambda p: p * [1, np.inf], "coincide"),
])  # fmt: skip
def test_landmarks_in_another_order_or_frame_are_refused_with_a_hint(face, given, told):
    with pytest.raises(BadImage, match=told):
        align.check(given(face), (128, 128))


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_landmarks_measured_before_exif_turned_the_photograph_are_refused(degrees):
    centre = np.array([63.5, 63.5])
    stored = turned(FACE - centre, -degrees, 1, centre)
    align.check(FACE, (128, 128), degrees)
    with pytest.raises(BadImage, match=f"before the EXIF orientation turned the photograph by {degrees} degrees"):
        align.check(stored, (128, 128), degrees)
    align.check(stored, (128, 128))  # without EXIF, a face that lies is one

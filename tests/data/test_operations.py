"""The 14 operations of RandAugment against Pillow's own."""

import numpy as np
import pytest
import tensorflow as tf
from conftest import SHARED_DATA
from pictures import PILLOW, SIZES, photograph, plain_images
from PIL import Image

from lae_jax.data.augment import OPS

FACES = SHARED_DATA / "utkface_lt" / "images"
GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


def values_of(name: str, side: int, rng: np.random.Generator) -> np.ndarray:
    """Values over the full range of 31 levels and beyond it, both signs."""
    reach = int(150 / 331 * side)
    fixed, low, high = {
        "rotate": ([0, 30, -30, 90, 180], -30, 30),
        "solarize": ([0, 178.5, 255, 256], 0, 256),
        "posterize": ([1, 4, 7, 8], 1, 8),
        "shear_x": ([0, 0.3, -0.3], -0.3, 0.3),
        "shear_y": ([0, 0.3, -0.3], -0.3, 0.3),
        "translate_x": ([0, reach, -reach, 2 * side], -reach, reach),
        "translate_y": ([0, reach, -reach, -2 * side], -reach, reach),
        "color": ([0, 1, 0.1, 1.9], 0.1, 1.9),
        "contrast": ([0, 1, 0.1, 1.9], 0.1, 1.9),
        "brightness": ([0, 1, 0.1, 1.9], 0.1, 1.9),
        "sharpness": ([0, 1, 0.1, 1.9], 0.1, 1.9),
    }.get(name, ([0], 0, 0))
    drawn = rng.uniform(low, high, 6)
    if name.startswith("translate") or name == "posterize":
        drawn = np.trunc(drawn)
    return np.concatenate([fixed, drawn]).astype(np.float32)


def compiled(name: str, height: int | None, width: int | None):
    signature = (tf.TensorSpec([height, width, 3], tf.uint8), tf.TensorSpec([], tf.float32))
    return tf.function(OPS[name], input_signature=signature, autograph=False)


def compare(operation, name: str, image: np.ndarray, value: float) -> tuple[int, float]:
    """The largest difference to Pillow in grey levels, and the share of equal pixels."""
    expected = np.asarray(PILLOW[name](Image.fromarray(image), float(value)), int)
    difference = np.abs(np.asarray(operation(image, value), int) - expected).max(-1)
    return difference.max(), (difference == 0).mean()


def test_the_14_operations_of_the_paper():
    assert list(OPS) == list(PILLOW)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("name", OPS)
def test_an_operation_equals_pillow(name, size):
    rng = np.random.default_rng(len(name))
    operation = compiled(name, *size)
    for seed in range(2):
        image = photograph(*size, seed)
        for value in values_of(name, size[0], rng):
            worst, equal = compare(operation, name, image, value)
            assert equal == 1.0 or (name == "contrast" and worst <= 1), (name, size, value, worst, equal)


@pytest.mark.parametrize("name", OPS)
def test_an_operation_equals_pillow_on_plain_images_of_unknown_size(name):
    rng = np.random.default_rng(1)
    operation = compiled(name, None, None)
    for image in [*plain_images(40, 33), photograph(40, 33, 5)]:
        for value in values_of(name, 33, rng)[::2]:
            worst, equal = compare(operation, name, image, value)
            assert worst <= 1 and (equal == 1.0 or name == "contrast"), (name, value, worst, equal)


@pytest.mark.parametrize("name", OPS)
def test_an_operation_equals_pillow_on_faces(name):
    if not FACES.is_dir():
        pytest.skip(f"{FACES} is not there")
    rng = np.random.default_rng(2)
    operation = compiled(name, 200, 200)
    for path in sorted(FACES.glob("*.jpg"))[::1200]:
        image = np.asarray(Image.open(path).convert("RGB").resize((200, 200)))
        for value in values_of(name, 200, rng)[::2]:
            worst, equal = compare(operation, name, image, value)
            assert worst <= 1 and equal >= (0.995 if name in GEOMETRIC else 0.9), (name, path, value, worst, equal)

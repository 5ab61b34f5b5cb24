"""Large pictures go through compiled functions: the same pixels as step after step, and as Pillow's."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT
from pictures import photograph
from PIL import Image

from lae_jax.data import augment
from lae_jax.data.augment import jitter, packing, resizing, stateless

LARGE = 112


def test_words_hold_an_image():
    for shape in ((5, 7), (LARGE, LARGE)):
        image = photograph(*shape, 1)
        packed = packing.from_image(tf.constant(image))
        assert packed.dtype == tf.int32 and packed[2, 3] == int(image[2, 3] @ np.array([1, 256, 65536]))
        np.testing.assert_array_equal(packing.to_image(packed), image)


@pytest.mark.parametrize("names", [("brightness", "contrast", "saturation", "hue"), ("contrast", "offset"), ("hue",)])
def test_the_compiled_jitter_is_the_steps_one_after_the_other(names):
    rng = np.random.default_rng(0)
    low = {"hue": -0.5, "offset": -40}
    for number, order in enumerate(itertools.permutations(range(len(names)))):
        image = photograph(LARGE, LARGE, number)
        factors = np.array([rng.uniform(low.get(n, 0.4), {"hue": 0.5, "offset": 40}.get(n, 1.6)) for n in names])
        drawn = [tf.constant(factors, tf.float32), tf.constant(order)]
        hue = tf.constant(order.index(names.index("hue")) if "hue" in names else 0)
        expected = jitter._one_by_one(tf.constant(image), names, *drawn)
        got = packing.to_image(jitter._chained(packing.from_image(tf.constant(image)), names, *drawn, hue))
        difference = np.abs(np.asarray(got, int) - np.asarray(expected, int))
        # Half a level may be rounded up here and down there.
        assert difference.max() <= 1 and (difference > 0).mean() < 1e-3, order


def test_draws_are_those_of_tensorflow_in_every_mode():
    rng = np.random.default_rng(0)
    count, draw = jitter.drawing({"brightness": 0.2, "hue": 0.05, "contrast": 0.0, "offset": 9.0})
    assert count == 4

    def ours(seed):
        numbers = [stateless.uniform(shape, seed) for shape in ([], [22], [4])]
        return stateless.split(seed, 4), *numbers, *draw(numbers[-1])

    quick = packing.compiled(ours)
    for seed in rng.integers(-(2**31), 2**31, (20, 2)).astype(np.int32):
        plain = ours(seed)
        np.testing.assert_array_equal(plain[0], tf.random.split(seed, 4))
        for one, shape in zip(plain[1:4], ([], [22], [4]), strict=True):
            np.testing.assert_array_equal(one, tf.random.stateless_uniform(shape, seed))
        for one, two in zip(plain, quick(seed), strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("method", resizing.METHODS)
@pytest.mark.parametrize("size, step", [(48, 1), (49, 1), (72, 3), (112, 8), (224, 16)])
def test_every_side_of_an_image_is_resized_as_pillow_does_it(size, step, method):
    # At some sides the edge of the filter falls on whole pixels; there rounding decides which pixels it takes.
    chosen = getattr(Image.Resampling, method.upper())
    largest = resizing._canvases(size, method)[-1]
    noise = np.random.default_rng(size).integers(0, 256, (largest, largest, 3), np.uint8)
    resize = tf.function(lambda image: packing.to_image(resizing.resized(image, size, method)), autograph=False)
    resize = resize.get_concrete_function(tf.TensorSpec([None, None, 3], tf.uint8))
    wrong = []
    for side in range(step, largest + 1, step):
        image = noise[:side, :side]
        if (resize(tf.constant(image)).numpy() != Image.fromarray(image).resize((size, size), chosen)).any():
            wrong.append(side)
    assert not wrong


@pytest.mark.parametrize("method", resizing.METHODS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 90), (113, 40), (160, 168), (252, 90), (253, 99), (448, 300), (20, 449)])
def test_an_image_is_resized_as_pillow_does_it(shape, method):
    for seed in range(2):
        image = photograph(*shape, seed)
        image[: 20 * seed, ::2] = 255  # edges
        image[10 * seed :, -30:] = 0
        chosen = getattr(Image.Resampling, method.upper())
        expected = Image.fromarray(image).resize((LARGE, shape[0]), chosen).resize((LARGE, LARGE), chosen)
        got = packing.to_image(resizing.resized(tf.constant(image), LARGE, method))
        exact = max(shape) <= {"bilinear": 2.25, "bicubic": 4.0}[method] * LARGE
        assert np.abs(np.asarray(got, int) - expected).max() <= (0 if exact else 1)


ON_ONE_CORE = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before TensorFlow counts the cores
import numpy as np
from lae_jax.data import augment
for side in (100, 200, 300):
    image = np.zeros((side, side, 3), np.uint8)
    for method in ("bilinear", "bicubic"):
        augment.resize(image, 64, method)
    augment.color_jitter(augment.random_patch(image, [0, 1], 64), [0, 1], brightness=0.1, hue=0.1)
    augment.rand_augment(image, [0, 1])
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux's")
def test_every_step_works_eagerly_on_a_single_core():
    """TensorFlow then has one thread for its operations, and what is nested wrongly waits for ever."""
    result = subprocess.run([sys.executable, "-c", ON_ONE_CORE], cwd=ROOT, timeout=300, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_large_images_are_functions_of_their_seed_in_every_mode():
    recipe = augment.Augmentation(image_size=LARGE)
    encoded = [tf.io.encode_jpeg(photograph(100 + 10 * i, 140, i)).numpy() for i in range(12)]
    seeds = np.stack([np.arange(12), np.full(12, 3)], 1).astype(np.int32)
    eager = [recipe.train(tf.constant(e), tf.constant(s)).numpy() for e, s in zip(encoded, seeds, strict=True)]
    for threads in (1, 4):
        data = tf.data.Dataset.from_tensor_slices((encoded, seeds)).map(recipe.train, threads, deterministic=True)
        np.testing.assert_array_equal(list(data.as_numpy_iterator()), eager)
    assert len({image.tobytes() for image in eager}) == 12

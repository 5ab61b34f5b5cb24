"""The augmentation against Pillow, against torchvision's definitions in numpy, and against itself in threads."""

import io

import numpy as np
import pytest
import tensorflow as tf
from pictures import PILLOW, SIZES, photograph, plain_images
from PIL import Image

from lae_jax.data import augment
from lae_jax.data.augment import OPS, Augmentation
from lae_jax.predict.estimator import Input

# Colour jitter: torchvision's functional_tensor, on levels / 255 in float64


def blend(image: np.ndarray, other: np.ndarray, factor: float) -> np.ndarray:
    return np.clip(factor * image + (1 - factor) * other, 0, 1)


def grey(image: np.ndarray) -> np.ndarray:
    return (image @ [0.2989, 0.587, 0.114])[..., None]


def shift_hue(image: np.ndarray, shift: float) -> np.ndarray:
    r, g, b = np.moveaxis(image, -1, 0)
    high, low = image.max(-1), image.min(-1)
    chroma = high - low
    divisor = np.where(chroma == 0, 1, chroma)
    red, green, blue = (high - r) / divisor, (high - g) / divisor, (high - b) / divisor
    hue = np.where(high == r, blue - green, np.where(high == g, 2 + red - blue, 4 + green - red))
    hue = (hue / 6 + 1 + shift) % 1
    saturation = chroma / np.where(high == 0, 1, high)
    sector = np.floor(hue * 6)
    f = hue * 6 - sector
    p, q, t = high * (1 - saturation), high * (1 - saturation * f), high * (1 - saturation * (1 - f))
    v, i = high, sector.astype(int) % 6
    table = np.array([(v, t, p), (q, v, p), (p, v, t), (p, q, v), (t, p, v), (v, p, q)])
    return np.moveaxis(np.take_along_axis(table, i[None, None], 0)[0], 0, -1)


TORCHVISION = {
    "brightness": lambda image, v: blend(image, np.zeros_like(image), v),
    "contrast": lambda image, v: blend(image, grey(image).mean(), v),
    "saturation": lambda image, v: blend(image, grey(image), v),
    "hue": shift_hue,
    "offset": lambda image, v: np.clip(image + v / 255, 0, 1),
}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("name", TORCHVISION)
def test_a_jitter_step_equals_torchvision_on_tensors(name, size):
    low, high = {"hue": (-0.5, 0.5), "offset": (-60, 60)}.get(name, (0.0, 2.0))
    for image in [photograph(*size, 3), photograph(*size, 4), *plain_images(*size)]:
        for value in np.linspace(low, high, 9).astype(np.float32):
            expected = TORCHVISION[name](image / 255, value) * 255
            got = getattr(augment, f"adjust_{name}")(image, value).numpy()
            # Rounding alone is half a level.
            assert np.abs(got - expected).max() <= 0.51, (name, value)


def test_colour_jitter_is_the_steps_in_a_random_order():
    image = photograph(48, 48, 0)
    jitter = tf.function(lambda seed: augment.color_jitter(image, seed, 0.5, 0.5, 0.5, 0.2, 10.0), autograph=False)
    first = jitter(tf.constant([0, 1])).numpy()
    assert (first == jitter(tf.constant([0, 1])).numpy()).all()
    assert len({jitter(tf.constant([i, 1])).numpy().tobytes() for i in range(20)}) == 20
    # One step: what it does is known but for the factor.
    for seed in range(5):
        ratio = augment.color_jitter(np.full((8, 8, 3), 100, np.uint8), [seed, 2], 0.125, 0, 0, 0).numpy() / 100
        assert np.ptp(ratio) == 0 and 0.87 <= ratio[0, 0, 0] <= 1.13
    # On white, brightness and offset give other levels in another order: each draw's level must be one of the two.
    both = tf.function(lambda seed: augment.color_jitter(white, seed, 0.5, 0, 0, 0, 100.0), autograph=False)
    white, orders = np.full((2, 2, 3), 255, np.uint8), {True: 0, False: 0}
    for seed in range(60):
        factor, offset = 0.5 + tf.random.stateless_uniform([3], [seed, 3])[:2].numpy() * [1.0, 200.0] - [0.0, 100.5]
        first = np.clip(np.clip(255 * factor, 0, 255) + offset, 0, 255)
        second = np.clip(np.clip(255 + offset, 0, 255) * factor, 0, 255)
        level = both(tf.constant([seed, 3])).numpy()[0, 0, 0]
        assert min(abs(level - first), abs(level - second)) < 0.51
        if abs(first - second) > 2:
            orders[abs(level - first) < 0.51] += 1
    assert min(orders.values()) > 8


def test_colour_jitter_without_strength_adds_nothing_to_the_graph():
    image = tf.zeros([8, 8, 3], tf.uint8)
    assert augment.color_jitter(image, [0, 0], 0, 0, 0, 0) is image

    def nodes(**strengths) -> set[str]:
        none = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.0)
        function = tf.function(lambda x, s: augment.color_jitter(x, s, **(none | strengths)), autograph=False)
        specs = tf.TensorSpec([8, 8, 3], tf.uint8), tf.TensorSpec([2], tf.int32)
        graph = function.get_concrete_function(*specs).graph.as_graph_def()
        return {n.op for n in graph.node} | {n.op for f in graph.library.function for n in f.node_def}

    assert "AdjustHue" in nodes(hue=0.1, brightness=0.1)
    assert not {"AdjustHue", "MatMul"} & nodes(brightness=0.1, offset=5.0)


@pytest.mark.parametrize(
    "wrong", [{"brightness": -0.1}, {"hue": 0.6}, {"offset": -1.0}, {"contrast": -1}, {"saturation": float("nan")}]
)
def test_a_wrong_strength_is_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        augment.color_jitter(tf.zeros([8, 8, 3], tf.uint8), [0, 0], **wrong)


# From bytes to an image of the right size


def encode(image: np.ndarray, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


ENCODED = {
    "4:4:4": lambda image: encode(image, quality=92, subsampling=0),
    "4:2:0": lambda image: encode(image, quality=75, subsampling=2),
    "4:2:2": lambda image: encode(image, quality=60, subsampling=1),
    "progressive": lambda image: encode(image, quality=85, progressive=True),
    "grey": lambda image: encode(image[..., 0], quality=85),
    "png": lambda image: encode(image, "PNG"),
    "png grey": lambda image: encode(image[..., 1], "PNG"),
    "png alpha": lambda image: encode(np.dstack([image, image[..., :1]]), "PNG"),
}


@pytest.mark.parametrize("kind", ENCODED)
def test_decode_equals_pillow_pixel_for_pixel(kind):
    for size in ((67, 50), (128, 128)):
        encoded = ENCODED[kind](photograph(*size, 6))
        expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
        got = augment.decode(encoded)
        assert got.dtype == tf.uint8
        np.testing.assert_array_equal(got, expected)


def test_what_is_no_image_is_refused():
    with pytest.raises(tf.errors.InvalidArgumentError):
        augment.decode(b"no image")


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("source, size", [((200, 200), 64), ((200, 200), 224), ((97, 150), 112), ((40, 60), 50)])
def test_resize_equals_pillow(source, size, method):
    for seed in range(3):
        image = photograph(*source, seed)
        # Hard edges between black and white, where a bicubic filter overshoots.
        image[: 10 * seed, :30] = 0
        image[-10 * seed :, -30:] = 255
        filtered = Image.fromarray(image).resize((size, size), getattr(Image.Resampling, method.upper()))
        got = augment.resize(image, size, method)
        assert got.shape == (size, size, 3) and got.dtype == tf.uint8
        assert np.abs(np.asarray(got, int) - np.asarray(filtered, int)).max() <= 1


def test_random_patch_is_drawn_as_torchvision_draws_it():
    height, width, n = 180, 210, 1500
    draw = tf.function(lambda seed: augment.draw_patch(height, width, seed), autograph=False)
    boxes = np.array(list(tf.data.Dataset.range(n).map(lambda i: draw([tf.cast(i, tf.int32), 5])).as_numpy_iterator()))
    top, left, high, wide = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (top + high <= height).all() and (left + wide <= width).all()
    area, aspect = high * wide / (height * width), wide / high
    # Sides are whole pixels, hence the margin.
    assert 0.49 < area.min() < 0.52 and 0.95 < area.max() <= 1
    assert 0.74 < aspect.min() < 0.78 and 1.28 < aspect.max() < 1.35
    reference = np.array([torchvision_patch(np.random.default_rng(i), height, width) for i in range(n)])
    for ours, theirs in zip(boxes.T, reference.T, strict=True):
        assert abs(ours.mean() - theirs.mean()) < 4.5 * np.hypot(ours.std(), theirs.std()) / np.sqrt(n)
        assert 0.9 < ours.std() / theirs.std() < 1.1


def torchvision_patch(rng, height, width, area=(0.5, 1.0), aspect=(3 / 4, 4 / 3)) -> tuple[int, int, int, int]:
    """RandomResizedCrop.get_params in numpy."""
    for _ in range(10):
        pixels, ratio = height * width * rng.uniform(*area), np.exp(rng.uniform(*np.log(aspect)))
        w, h = round(np.sqrt(pixels * ratio)), round(np.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            return rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w
    ratio = width / height
    if ratio < aspect[0]:
        w, h = width, round(width / aspect[0])
    elif ratio > aspect[1]:
        w, h = round(height * aspect[1]), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("shape, box", [((40, 400), (0, 173, 40, 53)), ((400, 30), (180, 0, 40, 30))])
def test_a_patch_that_never_fits_is_the_largest_centred_one(shape, box):
    for seed in range(3):
        np.testing.assert_array_equal(augment.draw_patch(*shape, [seed, 0], area=(0.9, 1.0)), box)


def test_random_patch_is_the_resized_box():
    image = photograph(160, 200, 1)
    for size in (64, 224):
        for seed in range(4):
            top, left, high, wide = augment.draw_patch(160, 200, [seed, 1]).numpy()
            patch = Image.fromarray(image[top : top + high, left : left + wide])
            wide = patch.resize((size, patch.height), Image.Resampling.BILINEAR)
            expected = np.asarray(wide.resize((size, size), Image.Resampling.BILINEAR), int)
            got = augment.random_patch(image, [seed, 1], size).numpy()
            assert np.abs(got.astype(int) - expected).max() <= 1
            assert (got == augment.random_patch(image, [seed, 1], size).numpy()).all()


def test_crops_and_flip():
    image = photograph(20, 30, 2)
    np.testing.assert_array_equal(augment.centre_crop(image, 10), image[5:15, 10:20])
    places = set()
    for seed in range(400):
        got = augment.random_crop(image, [seed, 0], 18).numpy()
        places |= {(y, x) for y in range(3) for x in range(13) if (got == image[y : y + 18, x : x + 18]).all()}
    assert len(places) == 39
    flipped = [(augment.random_flip(image, [seed, 0]).numpy() == image[:, ::-1]).all() for seed in range(200)]
    assert 70 < sum(flipped) < 130
    assert (augment.random_flip(image, [0, 0], 1.0).numpy() == image[:, ::-1]).all()
    assert (augment.random_flip(image, [0, 0], 0.0).numpy() == image).all()
    for crop in (lambda: augment.centre_crop(image, 21), lambda: augment.random_crop(image, [0, 0], 21)):
        with pytest.raises(ValueError, match="21 x 21"):
            crop()


# RandAugment


def test_operations_are_drawn_uniformly_and_signs_evenly():
    n = 3000
    draws = tf.data.Dataset.range(n).map(lambda i: augment.draw_ops(tf.stack([tf.cast(i, tf.int32), 3]), 2)).batch(n)
    chosen, signs = next(draws.as_numpy_iterator())
    counts = np.bincount(chosen.ravel(), minlength=14)
    # The 99.9 % quantile of chi-square with 13 degrees of freedom.
    assert counts.size == 14 and ((counts - n / 7) ** 2 / (n / 7)).sum() < 34.5
    pairs = np.bincount(chosen[:, 0] * 14 + chosen[:, 1], minlength=196)
    # 195 degrees of freedom: the two operations are independent.
    assert ((pairs - n / 196) ** 2 / (n / 196)).sum() < 261
    assert set(np.unique(signs)) == {-1, 1} and abs(signs.mean()) < 0.05
    assert abs(np.corrcoef(chosen[:, 0], signs[:, 0])[0, 1]) < 0.06


def test_magnitudes_are_those_of_the_common_implementation():
    strengths = augment.op_strengths(9, 31)
    expected = {"rotate": 9.0, "solarize": 178.5, "posterize": 7.0, "shear_x": 0.09, "shear_y": 0.09}
    expected |= dict.fromkeys(("color", "contrast", "brightness", "sharpness"), 0.27)
    assert {name: strengths[name] for name in expected} == pytest.approx(expected)
    assert all(strengths[name] == 0 for name in ("identity", "auto_contrast", "equalize"))
    for side in (32, 112, 224, 331):
        assert augment.translate_pixels(side, 9, 31) == int(150 / 331 * 0.3 * side + 1e-9)
    bits = [augment.op_strengths(m, 31)["posterize"] for m in range(31)]
    np.testing.assert_array_equal(bits, 8 - np.round(np.arange(31) / (30 / 4)))
    assert augment.op_strengths(9, 10)["rotate"] == 30 and augment.op_strengths(9, 10)["posterize"] == 4


@pytest.mark.parametrize("shape", [(32, 32), (40, 24)])
def test_rand_augment_applies_what_was_drawn(shape):
    image = photograph(*shape, 8)
    strengths = augment.op_strengths(9, 31)
    strengths["translate_x"], strengths["translate_y"] = (int(150 / 331 * 0.3 * side) for side in shape[::-1])
    one = tf.function(lambda seed: augment.rand_augment(image, seed, num_ops=2), autograph=False)
    for seed in range(60):
        chosen, signs = augment.draw_ops([seed, 9], 2)
        expected = Image.fromarray(image)
        for index, sign in zip(chosen.numpy(), signs.numpy(), strict=True):
            name = list(OPS)[index]
            strength = strengths[name] if name in ("solarize", "posterize") else float(sign) * strengths[name]
            enhance = name in ("color", "contrast", "brightness", "sharpness")
            expected = PILLOW[name](expected, float(np.float32(1 + strength if enhance else strength)))
        # Contrast may be a level apart, and an operation after it may widen that.
        difference = np.abs(np.asarray(one(tf.constant([seed, 9])), int) - np.asarray(expected, int))
        assert difference.max() <= (8 if any(list(OPS)[i] == "contrast" for i in chosen.numpy()) else 0)


def test_rand_augment_is_a_function_of_the_seed():
    image = photograph(32, 32, 9)
    function = tf.function(augment.rand_augment, autograph=False)
    results = [function(image, tf.constant([seed, 0])).numpy() for seed in range(40)]
    again = [augment.rand_augment(image, [seed, 0]).numpy() for seed in range(40)]
    np.testing.assert_array_equal(results, again)
    assert len({result.tobytes() for result in results}) > 30
    assert (augment.rand_augment(image, [0, 0], num_ops=0).numpy() == image).all()


@pytest.mark.parametrize(
    "wrong, what",
    [
        ({"magnitude": 31}, "magnitude is 31: it must be in 0..30"),
        ({"magnitude": -1}, "magnitude is -1"),
        ({"magnitude": 10, "num_levels": 10}, "magnitude is 10: it must be in 0..9"),
        ({"num_ops": -2}, "num_ops is -2"),
        ({"num_levels": 1, "magnitude": 0}, "num_levels is 1"),
    ],
)
def test_wrong_arguments_of_rand_augment_are_named(wrong, what):
    with pytest.raises(ValueError, match=what):
        augment.rand_augment(tf.zeros([8, 8, 3], tf.uint8), [0, 0], **wrong)
    with pytest.raises(ValueError, match=what):
        Augmentation(**wrong)


# The whole of it

RECIPES = {
    "full": Augmentation(image_size=48),
    "crop": Augmentation(image_size=48, patch="crop", resize=56, hue=0, contrast=0, saturation=0, offset=20, num_ops=0),
    "flip": Augmentation(image_size=48, patch="none", brightness=0, contrast=0, saturation=0, hue=0, num_ops=0),
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_images_do_not_depend_on_threads_or_on_how_they_are_run(recipe):
    sizes = [(60, 60), (70, 52), (40, 44), (60, 61)]
    n = 12
    encoded = [encode(photograph(*sizes[i % 4], i), quality=90) for i in range(n)]
    seeds = np.stack([np.arange(n), np.full(n, 7)], 1).astype(np.int32)
    pairs = [(tf.constant(e), tf.constant(s)) for e, s in zip(encoded, seeds, strict=True)]
    eager = [recipe.train(*pair).numpy() for pair in pairs]
    function = tf.function(recipe.train, autograph=False)
    results = {"function": [function(*pair).numpy() for pair in pairs]}
    for threads in (1, 4):
        data = tf.data.Dataset.from_tensor_slices((encoded, seeds)).map(recipe.train, threads, deterministic=True)
        assert data.element_spec == tf.TensorSpec([48, 48, 3], tf.uint8)
        results[f"{threads} threads"] = list(data.as_numpy_iterator())
    for name, result in results.items():
        np.testing.assert_array_equal(result, eager, err_msg=name)
    assert len({image.tobytes() for image in eager}) == n


@pytest.mark.parametrize("shape", [(200, 200), (90, 170), (220, 80), (56, 56)])
def test_evaluation_and_estimators_take_the_centre_of_the_resized_image(shape):
    image = photograph(*shape, 4)
    wide = Image.fromarray(image).resize((56, shape[0]), Image.Resampling.BICUBIC)
    expected = np.asarray(wide.resize((56, 56), Image.Resampling.BICUBIC))[4:52, 4:52]
    np.testing.assert_array_equal(Augmentation(image_size=48, resize=56).evaluate(encode(image, "PNG")), expected)
    np.testing.assert_array_equal(Input(48, 56).pixels(image), expected)


@pytest.mark.parametrize("size", [32, 112])
@pytest.mark.parametrize("shape", [(90, 70), (300, 280)])
def test_a_training_image_is_the_four_steps_with_a_seed_of_each(size, shape):
    encoded = encode(photograph(*shape, 0))
    for number in range(6):
        patch, flip, jitter, ops = tf.unstack(tf.random.split(tf.constant([number, -4]), 4))
        image = augment.random_flip(augment.random_patch(augment.decode(encoded), patch, size), flip)
        expected = augment.rand_augment(augment.color_jitter(image, jitter), ops)
        got = Augmentation(image_size=size).train(tf.constant(encoded), tf.constant([number, -4]))
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": 0},
        {"patch": "random"},
        {"resize": 100},
        {"area": (0.0, 1.0)},
        {"area": (0.5, 1.5)},
        {"area": (0.9, 0.5)},
        {"aspect": (1.0,)},
        {"aspect": (-1.0, 1.0)},
        {"flip": 1.5},
        {"brightness": -0.5},
        {"hue": 0.7},
        {"offset": 300.0},
        {"resize_method": "nearest"},
    ],
)
def test_a_wrong_field_is_named(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} is"):
        Augmentation(**wrong)

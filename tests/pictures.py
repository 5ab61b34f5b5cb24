"""What the tests of the augmentation share: images to work on, and the 14 operations as Pillow does them."""

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

NEAREST, AFFINE = Image.Resampling.NEAREST, Image.Transform.AFFINE
SIZES = {"32": (32, 32), "64x48": (64, 48), "112": (112, 112), "225x223": (225, 223)}


def photograph(height: int, width: int, seed: int) -> np.ndarray:
    """uint8 (H, W, 3) with what photographs have: gradients, edges, grain, and a range of levels that is not 0..255."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    image = np.empty((height, width, 3))
    for channel in range(3):
        a, b, c = rng.uniform(-1, 1, 3)
        image[..., channel] = 120 + 50 * (a * x + b * y) + 25 * np.sin(9 * c * x + 7 * a * y)
    for _ in range(6):
        centre, radius = rng.uniform(0, 1, 2), rng.uniform(0.05, 0.25)
        inside = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2
        image[inside] = 0.4 * image[inside] + 0.6 * rng.uniform(0, 255, 3)
    image += rng.normal(0, 6, image.shape)
    return np.clip(image, rng.integers(0, 30), rng.integers(225, 256)).astype(np.uint8)


def plain_images(height: int, width: int) -> list[np.ndarray]:
    """Images at the edge of what the operations are defined for."""
    single = np.full((height, width, 3), 90, np.uint8)
    single[0, 0] = (7, 200, 90)
    levels = [(0, 0, 0), (255, 255, 255), (127, 128, 129), (1, 254, 0)]
    return [np.full((height, width, 3), level, np.uint8) for level in levels] + [single]


def affine(image: Image.Image, matrix: tuple) -> Image.Image:
    return image.transform(image.size, AFFINE, matrix, NEAREST, fillcolor=(0, 0, 0))


PILLOW = {
    "identity": lambda image, v: image,
    "auto_contrast": lambda image, v: ImageOps.autocontrast(image),
    "equalize": lambda image, v: ImageOps.equalize(image),
    "rotate": lambda image, v: image.rotate(v, NEAREST, fillcolor=(0, 0, 0)),
    "solarize": ImageOps.solarize,
    "color": lambda image, v: ImageEnhance.Color(image).enhance(v),
    "posterize": lambda image, v: ImageOps.posterize(image, int(v)),
    "contrast": lambda image, v: ImageEnhance.Contrast(image).enhance(v),
    "brightness": lambda image, v: ImageEnhance.Brightness(image).enhance(v),
    "sharpness": lambda image, v: ImageEnhance.Sharpness(image).enhance(v),
    "shear_x": lambda image, v: affine(image, (1, v, 0, 0, 1, 0)),
    "shear_y": lambda image, v: affine(image, (1, 0, 0, v, 1, 0)),
    "translate_x": lambda image, v: affine(image, (1, 0, v, 0, 1, 0)),
    "translate_y": lambda image, v: affine(image, (1, 0, 0, 0, 1, v)),
}

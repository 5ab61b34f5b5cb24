"""A face's five landmarks -> an upright crop of a fixed size, by a least-squares similarity transform."""

import numpy as np
from PIL import Image

from lae_jax.faces.images import BadImage

# Eye, eye, nose tip, mouth corner, mouth corner in a 112x112 crop: the template of ArcFace (Deng et al., 2019) and of
# the data sets that are published with it.
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
TEMPLATE_SIDE = 112
# Eyes closer than this many pixels hold no age.
_SMALLEST_EYE_DISTANCE = 4.0


def template(size: int, margin: float) -> np.ndarray:
    """The template in a crop: landmarks (5, 2) in pixels, the centre of the first pixel being (0, 0).

    Args: size: side of the crop; margin: what is left around the 112x112 template on each side, a share of its side.
    """
    scale = size / (TEMPLATE_SIDE * (1 + 2 * margin))
    return (TEMPLATE + 0.5 + margin * TEMPLATE_SIDE) * scale - 0.5


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The rotation, scaling and shift that takes points nearest to others, in least squares; it never mirrors.

    Args: source, target: (n, 2), at least two different source points. Returns: (2, 3), target ~ M @ (x, y, 1).
    Raises BadImage if the points coincide or are not finite. Points as complex numbers make it a line through data:
    target = a source + b (Umeyama, 1991, without the reflection).
    """
    z, w = (np.asarray(points, np.float64) @ [1, 1j] for points in (source, target))
    centre, goal = z.mean(), w.mean()
    spread = np.sum(np.abs(z - centre) ** 2)
    if not np.isfinite(spread) or spread < 1e-9:
        raise BadImage("landmarks coincide")
    a = np.sum(np.conj(z - centre) * (w - goal)) / spread
    b = goal - a * centre
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def align(photograph: Image.Image, landmarks: np.ndarray, size: int, margin: float) -> tuple[Image.Image, float]:
    """The crop (size x size, RGB), black outside the photograph; and how many of its pixels a crop's pixel spans.

    Args: photograph: upright RGB; landmarks: (5, 2) in its pixels; size, margin: as in `template`.
    Raises BadImage for landmarks that are no face.
    """
    landmarks = np.asarray(landmarks, np.float64).reshape(5, 2)
    if np.linalg.norm(landmarks[1] - landmarks[0]) < _SMALLEST_EYE_DISTANCE:
        raise BadImage(f"eyes closer than {_SMALLEST_EYE_DISTANCE:g} pixels")
    matrix = similarity(landmarks, template(size, margin))
    scale = 1 / np.hypot(*matrix[:, 0])
    return warp(photograph, matrix, size), float(scale)


def warp(photograph: Image.Image, matrix: np.ndarray, size: int) -> Image.Image:
    """The crop whose pixel (matrix @ (x, y, 1)) shows the photograph's (x, y); bicubic, without aliasing.

    Args: matrix: (2, 3) of a similarity. Where a pixel of the crop spans several of the photograph, these are averaged:
    first over whole blocks of the photograph, then over 2x2 samples.
    """
    linear = np.linalg.inv(matrix[:, :2])
    shift = -linear @ matrix[:, 2]
    spans = np.hypot(*linear[:, 0])
    block, samples = max(1, int(spans)), 2 if spans > 1 else 1
    # Pillow counts from the corner of the first pixel.
    shift = shift + 0.5 - linear @ [0.5, 0.5]
    corners = np.array([[0, 0], [size, 0], [0, size], [size, size]]) @ linear.T + shift
    # What is averaged is the crop's surroundings, in whole blocks, and not all of a large photograph.
    first = np.clip(np.floor(corners.min(0)) - 4 * block, 0, photograph.size).astype(int) // block * block
    last = np.clip(np.ceil(corners.max(0)) + 4 * block, 0, photograph.size).astype(int)
    if np.any(last <= first):
        raise BadImage("landmarks lie outside the image")
    part = photograph.crop((*first.tolist(), *last.tolist())).reduce(block)
    linear, shift = linear / (block * samples), (shift - first) / block
    coefficients = (*linear[0], shift[0], *linear[1], shift[1])
    side = size * samples
    crop = part.transform((side, side), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC)
    return crop.reduce(samples)

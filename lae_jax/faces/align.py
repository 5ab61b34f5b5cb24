"""Upright crops of a fixed size from a face's five landmarks, by a least-squares similarity transform."""

import numpy as np
from PIL import Image

from lae_jax.faces.images import BadImage

# Eye, eye, nose tip, mouth corner, mouth corner in a 112x112 crop: the template of ArcFace (Deng et al., 2019) and of
# the data sets published with it.
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
TEMPLATE_SIDE = 112
INTERPOLATION = "bicubic; 2x2 bilinear samples to shrink"  # of `warp`, for the crop contract
# With eyes closer than this many pixels, a face shows no age.
_SMALLEST_EYE_DISTANCE = 4.0
_TURNED = 45.0  # degrees
# Residuals of the fit (`residual`). Of 1,403 detected faces of UTKFace, ORL and the contest the largest was 0.31, and
# no other order of theirs was below 0.40. A head turned by 75 degrees has about 0.55.
_FACE, _PROFILE = 0.35, 0.55
# Orders that other tools write: the points in ours, given those in theirs.
_ORDERS = {
    "each pair begins with the point at the image's right, or the picture was mirrored": lambda p: p[[1, 0, 2, 4, 3]],
    "the eye at the image's right comes first": lambda p: p[[1, 0, 2, 3, 4]],
    "the mouth corner at the image's right comes first": lambda p: p[[0, 1, 2, 4, 3]],
    "y comes before x": lambda p: p[:, ::-1],
    "all x come before all y": lambda p: p.reshape(2, 5).T,
}


def template(size: int, margin: float) -> np.ndarray:
    """The template in a crop: landmarks (5, 2) in pixels; the centre of the first pixel is (0, 0).

    Args:
      size: Side of the crop in pixels.
      margin: Space around the 112x112 template on each side, a share of the template's side.
    """
    scale = size / (TEMPLATE_SIDE * (1 + 2 * margin))
    return (TEMPLATE + 0.5 + margin * TEMPLATE_SIDE) * scale - 0.5


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The rotation, scaling and shift from `source` to `target` with the least squared error, without reflection.

    With points as complex numbers this is a linear fit, target = a source + b (Umeyama, 1991, without the reflection).

    Args:
      source: Points (n, 2), at least two of them different.
      target: Points (n, 2).

    Returns:
      M (2, 3), with target ~ M @ (x, y, 1).

    Raises:
      BadImage: The source points coincide or are not finite.
    """
    z, w = (np.asarray(points, np.float64) @ [1, 1j] for points in (source, target))
    centre, goal = z.mean(), w.mean()
    spread = np.sum(np.abs(z - centre) ** 2)
    if not np.isfinite(spread) or spread < 1e-9:
        raise BadImage("landmarks coincide")
    a = np.sum(np.conj(z - centre) * (w - goal)) / spread
    b = goal - a * centre
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def residual(landmarks: np.ndarray) -> float:
    """The share of the landmarks' spread that no similarity maps to the template: 0 for the template, at most 1.

    Args:
      landmarks: (5, 2), not all the same.
    """
    z, w = (points @ [1, 1j] for points in (landmarks, TEMPLATE))
    z, w = z - z.mean(), w - w.mean()
    return float(np.sqrt(max(0.0, 1 - abs(np.vdot(z, w)) ** 2 / (np.vdot(z, z) * np.vdot(w, w)).real)))


def roll(landmarks: np.ndarray) -> np.ndarray:
    """Degrees clockwise, -180 to 180, by which faces are turned in their pictures: landmarks (..., 5, 2) -> (...)."""
    z, w = (points @ [1, 1j] for points in (landmarks, TEMPLATE))
    return -np.degrees(np.angle(np.sum(np.conj(z - z.mean(-1, keepdims=True)) * (w - w.mean()), axis=-1)))


def is_turned(landmarks: np.ndarray) -> np.ndarray:
    """Whether faces are turned by more than 45 degrees in their pictures: landmarks (..., 5, 2) -> (...)."""
    return np.abs(roll(landmarks)) > _TURNED


def check(landmarks: np.ndarray, size: tuple[int, int], turned: int = 0) -> None:
    """Checks that landmarks from elsewhere can be those of a face in a photograph, in the order of `TEMPLATE`.

    Args:
      landmarks: (5, 2) in pixels of the upright photograph.
      size: Its width and height.
      turned: Degrees clockwise by which its EXIF orientation turned it.

    Raises:
      BadImage: They cannot; the message says what they look like.
    """
    points = np.asarray(landmarks, np.float64).reshape(5, 2)
    if not np.isfinite(points).all() or np.ptp(points, axis=0).max() < 1e-3:
        raise BadImage("landmarks coincide")
    apart = np.linalg.norm(points[1] - points[0])
    if residual(points) > _FACE:
        fitting = {told: order(points) for told, order in _ORDERS.items()}
        fitting = {told: points for told, points in fitting.items() if residual(points) <= _FACE}
        told = min(fitting, key=lambda told: abs(roll(fitting[told])), default="")
        if told or residual(points) > _PROFILE:
            raise BadImage(
                "landmarks do not form a face (x y of left eye, right eye, nose, left and right mouth corner, as seen"
                f" in the image){f': it looks as if {told}' * bool(told)}"
            )
    outside = np.maximum(-0.5 - points, points - np.array(size) + 0.5).max()
    if outside > apart / 2:
        raise BadImage(f"landmarks lie outside the image, which has {size[0]} x {size[1]} pixels when it is upright")
    # A face that stands upright in the stored pixels lies in the photograph that is turned.
    if turned and abs((roll(points) + turned + 180) % 360 - 180) < 45:
        raise BadImage(
            f"landmarks of a face turned by {roll(points):.0f} degrees: it looks as if they were measured before the"
            f" EXIF orientation turned the photograph by {turned} degrees"
        )


def align(photograph: Image.Image, landmarks: np.ndarray, size: int, margin: float) -> tuple[Image.Image, float]:
    """Cuts the crop of a face, black outside the photograph.

    Args:
      photograph: Upright RGB picture.
      landmarks: (5, 2) in pixels of the photograph.
      size: Side of the crop in pixels, as in `template`.
      margin: As in `template`.

    Returns:
      The crop (size x size, RGB), and the number of the photograph's pixels that one of its pixels spans.

    Raises:
      BadImage: The landmarks are not those of a face.
    """
    landmarks = np.asarray(landmarks, np.float64).reshape(5, 2)
    if np.linalg.norm(landmarks[1] - landmarks[0]) < _SMALLEST_EYE_DISTANCE:
        raise BadImage(f"eyes closer than {_SMALLEST_EYE_DISTANCE:g} pixels")
    matrix = similarity(landmarks, template(size, margin))
    scale = 1 / np.hypot(*matrix[:, 0])
    return warp(photograph, matrix, size), float(scale)


def warp(photograph: Image.Image, matrix: np.ndarray, size: int) -> Image.Image:
    """The crop whose pixel (matrix @ (x, y, 1)) shows the photograph's (x, y), without aliasing.

    It is bicubic. Where a pixel of the crop spans several of the photograph, these are averaged: first over whole
    blocks of the photograph, then over 2x2 bilinear samples (bicubic ones take 2.5 times as long, and change a pixel by
    less than a grey level on average).

    Args:
      photograph: Upright RGB picture.
      matrix: (2, 3) of a similarity.
      size: Side of the crop in pixels.

    Raises:
      BadImage: The crop lies outside the photograph.
    """
    linear = np.linalg.inv(matrix[:, :2])
    shift = -linear @ matrix[:, 2]
    spans = np.hypot(*linear[:, 0])
    block, samples = max(1, int(spans)), 2 if spans > 1 else 1
    # Pillow's origin is the corner of the first pixel.
    shift = shift + 0.5 - linear @ [0.5, 0.5]
    corners = np.array([[0, 0], [size, 0], [0, size], [size, size]]) @ linear.T + shift
    # Only the crop's surroundings are averaged, in whole blocks, and not all of a large photograph.
    first = np.clip(np.floor(corners.min(0)) - 4 * block, 0, photograph.size).astype(int) // block * block
    last = np.clip(np.ceil(corners.max(0)) + 4 * block, 0, photograph.size).astype(int)
    if np.any(last <= first):
        raise BadImage("landmarks lie outside the image")
    part = photograph.crop((*first.tolist(), *last.tolist())).reduce(block)
    linear, shift = linear / (block * samples), (shift - first) / block
    coefficients = (*linear[0], shift[0], *linear[1], shift[1])
    side = size * samples
    method = Image.Resampling.BICUBIC if samples == 1 else Image.Resampling.BILINEAR
    crop = part.transform((side, side), Image.Transform.AFFINE, coefficients, method)
    return crop.reduce(samples)

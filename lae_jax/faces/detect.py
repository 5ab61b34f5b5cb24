"""Five landmarks of each face in a photograph, by the networks and weights of the `mtcnn` package (1.0.0).

Zhang et al., "Joint Face Detection and Alignment Using Multitask Cascaded Convolutional Networks", 2016. In the
package's own loop over the cascade, the photographs of a batch move each other's landmarks by pixels (ties in its
sorting, sums in another order). Here every photograph has its canvas, the networks see batches of fixed sizes, and the
steps between the networks run photograph by photograph. A photograph therefore has the same faces alone and at any
position in any batch. Its landmarks agree within 0.01 pixels: some CPUs sum a row of a matrix product in an order that
depends on its position.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.resources
import io
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from lae_jax.faces.tensorflow import tf
from lae_jax.runtime.errors import InputError

CANVAS = 512  # side in pixels of the square that the networks see
INNER = 416  # longer side of the photograph on it; the border lets MTCNN find faces that fill the photograph
SMALLEST = 20  # side in pixels on the canvas of the smallest face that MTCNN searches for
_PYRAMID = 0.709  # ratio of two neighbouring scales
_THRESHOLDS = (0.6, 0.7, 0.8)  # confidence that a box needs after each network
# Batch sizes of the three networks.
_PHOTOS, _CANDIDATES, _FACES = 4, 64, 16
# The weights are pickles: only files with these checksums are opened.
_WEIGHTS = {
    "pnet.lz4": "ea6b0c3e685ebee3165326ad6484acc95f2ef78f1c94fbf40a55704fa989f7b5",
    "rnet.lz4": "cb00e6460f3c98b0bfafaba3c0a0ded4bdf6e62cee7174d969e8670d7e757fee",
    "onet.lz4": "94f6ea2f4cf985275ee958cdd762d17b6009348a4fb9d8c6be39ba73ffd22ca3",
}


@dataclasses.dataclass(frozen=True)
class Face:
    """A face in pixels of its photograph; the centre of the first pixel is (0, 0)."""

    box: np.ndarray  # (4,) left, top, right, bottom
    landmarks: np.ndarray  # (5, 2) x, y: eye and eye, nose, mouth corner and corner, each pair from left to right
    confidence: float

    @property
    def area(self) -> float:
        """Area of the box in square pixels."""
        left, top, right, bottom = self.box
        return float((right - left) * (bottom - top))


def contract() -> dict:
    """The part of the crop contract that the landmarks depend on."""
    weights = hashlib.sha256("".join(_WEIGHTS.values()).encode()).hexdigest()[:12]
    version = importlib.metadata.version("mtcnn")
    return {"detector": f"mtcnn {version}", "weights": weights, "canvas": CANVAS, "inner": INNER, "smallest": SMALLEST}


def detect(photographs: Sequence[Image.Image]) -> list[list[Face]]:
    """Finds the faces in each upright RGB photograph, largest first.

    Other photographs in the list move the landmarks by less than 0.01 pixels.
    """
    found: list[list[Face]] = []
    for start in range(0, len(photographs), _PHOTOS):
        found += _detect([_Canvas.of(photograph) for photograph in photographs[start : start + _PHOTOS]])
    return found


@dataclasses.dataclass(frozen=True)
class _Canvas:
    """A photograph in the middle of a black square, and the way back to the photograph's coordinates."""

    pixels: np.ndarray  # (CANVAS, CANVAS, 3) uint8
    offset: np.ndarray  # (2,) x, y of the photograph's corner on the canvas
    scale: np.ndarray  # (2,) canvas pixels per pixel of the photograph

    @classmethod
    def of(cls, photograph: Image.Image) -> "_Canvas":
        size = np.array(photograph.size)
        scaled = np.maximum(1, np.rint(size * (INNER / size.max())).astype(int))
        left, top = (CANVAS - scaled) // 2
        pixels = np.zeros((CANVAS, CANVAS, 3), np.uint8)
        resized = photograph.resize(tuple(scaled.tolist()), Image.Resampling.BICUBIC)
        pixels[top : top + scaled[1], left : left + scaled[0]] = np.asarray(resized)
        return cls(pixels, np.array([left, top]), scaled / size)

    def back(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 2) on the canvas -> points in the photograph."""
        return (points + 0.5 - self.offset) / self.scale - 0.5


def _detect(canvases: list[_Canvas]) -> list[list[Face]]:
    from mtcnn.utils import bboxes as boxes_of
    from mtcnn.utils.landmarks import adjust_landmarks

    networks = _networks()
    images = (np.stack([canvas.pixels for canvas in canvases]).astype(np.float32) - 127.5) / 128
    proposed = _proposals(images)
    refined = []
    for candidates, (offsets, scores) in zip(proposed, _look_closer(networks["rnet"], images, proposed), strict=True):
        candidates = boxes_of.adjust_bboxes(boxes_of.replace_confidence(candidates, scores), offsets)
        candidates = boxes_of.pick_matches(candidates, score_threshold=_THRESHOLDS[1])
        refined.append(boxes_of.resize_to_square(boxes_of.smart_nms_from_bboxes(candidates, 0.7)))
    faces = []
    looked = _look_closer(networks["onet"], images, refined)
    for canvas, candidates, (offsets, points, scores) in zip(canvases, refined, looked, strict=True):
        points = adjust_landmarks(tf.constant(points), candidates)
        candidates = boxes_of.adjust_bboxes(boxes_of.replace_confidence(candidates, scores), offsets)
        rows = np.concatenate([candidates, points], axis=1)
        rows = boxes_of.pick_matches(rows, scores_column=5, score_threshold=_THRESHOLDS[2])
        rows = boxes_of.smart_nms_from_bboxes(rows, 0.7, method="min").reshape(-1, 16)
        found = [
            Face(
                box=canvas.back(row[1:5].reshape(2, 2)).ravel(),
                landmarks=canvas.back(np.stack([row[6:11], row[11:16]], axis=1)),
                confidence=float(row[5]),
            )
            for row in rows
        ]
        faces.append(sorted(found, key=lambda face: -face.area))
    return faces


def _proposals(images: np.ndarray) -> list[np.ndarray]:
    """Proposals of the first network for each image: (n, 6) of 0, left, top, right, bottom, confidence."""
    from mtcnn.utils import bboxes as boxes_of
    from mtcnn.utils.images import build_scale_pyramid, scale_images

    scales = build_scale_pyramid(CANVAS, CANVAS, min_face_size=SMALLEST, scale_factor=_PYRAMID)
    proposed: list[list[np.ndarray]] = [[] for _ in images]
    for scale in scales:
        offsets, scores = _in_batches(_networks()["pnet"], scale_images(images, scale).numpy(), _PHOTOS)
        for number in range(len(images)):
            one = tf.constant(offsets[number : number + 1]), tf.constant(scores[number : number + 1])
            candidates = boxes_of.generate_bounding_box(*one, _THRESHOLDS[0])
            candidates = boxes_of.upscale_bboxes(candidates, np.array([scale]))
            candidates = boxes_of.smart_nms_from_bboxes(candidates, 0.5, initial_sort=False)
            proposed[number].append(candidates)
    return [boxes_of.resize_to_square(boxes_of.smart_nms_from_bboxes(np.concatenate(parts), 0.7)) for parts in proposed]


def _look_closer(network: "_Network", images: np.ndarray, candidates: list[np.ndarray]) -> list[list[np.ndarray]]:
    """Outputs of a later network for the candidates of each image: one list of outputs per image."""
    from mtcnn.utils.images import extract_patches

    numbered = np.concatenate(candidates)
    numbered[:, 0] = np.repeat(np.arange(len(images)), [len(rows) for rows in candidates])
    patches = extract_patches(images, numbered, expected_size=(network.side, network.side)).numpy()
    ends = np.cumsum([len(rows) for rows in candidates])[:-1]
    outputs = [np.split(output, ends) for output in _in_batches(network, patches, network.batch)]
    return [list(of_image) for of_image in zip(*outputs, strict=True)]


@dataclasses.dataclass(frozen=True)
class _Network:
    model: Callable
    side: int = 0  # of its input patches, in pixels
    batch: int = 0
    compiled: dict[tuple, Callable] = dataclasses.field(default_factory=dict)

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """Outputs for images (N, H, W, 3); one graph is kept per shape."""
        if images.shape not in self.compiled:
            spec = tf.TensorSpec(images.shape, tf.float32)
            self.compiled[images.shape] = tf.function(self.model).get_concrete_function(spec)
        return [output.numpy() for output in self.compiled[images.shape](tf.constant(images))]


def _in_batches(network: _Network, images: np.ndarray, size: int) -> list[np.ndarray]:
    """The outputs for images (N, H, W, 3), computed in batches of the same size, the last one padded with zeros."""
    outputs = []
    for start in range(0, max(len(images), 1), size):
        batch = images[start : start + size]
        missing = size - len(batch)
        if missing:
            batch = np.concatenate([batch, np.zeros((missing, *batch.shape[1:]), batch.dtype)])
        outputs.append([output[: size - missing] for output in network(batch)])
    return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]


@functools.cache
def _networks() -> dict[str, _Network]:
    from mtcnn.network.onet import ONet
    from mtcnn.network.pnet import PNet
    from mtcnn.network.rnet import RNet

    networks = {}
    for name, kind, side, batch in (("pnet", PNet, 0, 0), ("rnet", RNet, 24, _CANDIDATES), ("onet", ONet, 48, _FACES)):
        model = kind()
        model.build()
        model.set_weights(_weights(f"{name}.lz4"))
        networks[name] = _Network(model, side, batch)
    return networks


def _weights(name: str) -> list[np.ndarray]:
    """Reads a file of weights of the package. The bytes that are unpickled are those whose checksum is checked."""
    import joblib

    content = (importlib.resources.files("mtcnn.assets.weights") / name).read_bytes()
    if hashlib.sha256(content).hexdigest() != _WEIGHTS[name]:
        raise InputError(
            f"the weights {name} of the mtcnn package are not those of version 1.0.0 and are not opened: install it"
            " again (pip install --force-reinstall mtcnn==1.0.0)"
        )
    return joblib.load(io.BytesIO(content))

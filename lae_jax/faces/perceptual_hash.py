"""A perceptual hash of pictures, and the search for pictures that are nearly the same.

The hash holds the signs of 256 DCT coefficients of a 32 x 32 grey thumbnail (after Zauner, Implementation and
Benchmarking of Perceptual Image Hash Functions, 2010). Brightness, size and compression hardly change them. The lowest
frequencies are omitted, because aligned faces share them. The hash is computed in integers, so it is the same on every
machine.

The search is multi-index hashing (Norouzi, Punjani, Fleet, Fast Search in Hamming Space, CVPR 2012): similar hashes
share a band of bits.
"""

import logging
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

logger = logging.getLogger("lae_jax")

BYTES = 32  # of a hash
BITS = 8 * BYTES
# Largest distance of nearly equal pictures, measured on aligned faces. Stored again, smaller or brighter, 99 of 100
# pictures are at most 15 bits from the original. Of 8,350 faces no two photographs were nearer than 45 bits, and no two
# photographs of people photographed in a row nearer than 20.
NEAR = 18

_SIDE = 32  # of the thumbnail
_SKIPPED = 24  # coefficients of the lowest frequencies
_FLAT = 2  # standard deviation in grey levels below which the signs are noise
_BAND_BITS = 16
_MAX_BUCKET = 2048  # largest number of later hashes in its bucket that a hash is compared with; bounds the time
MAX_PAIRS = 10_000_000
_MOST_COUNTED = 5  # times MAX_PAIRS; then a band is the last one, which bounds the time


def _frequencies() -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the 256 coefficients, by rising frequency."""
    v, u = (grid.ravel() for grid in np.mgrid[:_SIDE, :_SIDE])
    order = np.lexsort((v, u, u**2 + v**2))[_SKIPPED : _SKIPPED + BITS]
    return v[order], u[order]


_V, _U = _frequencies()
_FIRST = max(_V.max(), _U.max()) + 1
# The DCT-II's rows in units of 1/4096; signs need no norm. Products and sums of these integers stay far below 2^53,
# so float64 is as exact as integers and takes a third of the time.
_COSINES = np.round(4096 * np.cos(np.pi / _SIDE * np.arange(_FIRST)[:, None] * (np.arange(_SIDE) + 0.5)[None]))


def of(encoded: bytes) -> bytes:
    """Returns the hash of JPEG bytes: 32 bytes, all zero for a picture without structure, which no other is near.

    The picture is decoded at 1/2, 1/4 or 1/8 of its size, if it is then at least twice as large as the thumbnail. The
    decoder still reads all of the data.

    Raises:
      ValueError: The decoder fails, or warns of damage.
    """
    height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
    by = next(by for by in (8, 4, 2, 1) if min(height, width) >= 2 * _SIDE * by or by == 1)
    least = {} if by == 1 else {"min_height": -(-height // by), "min_width": -(-width // by)}
    small = Image.fromarray(simplejpeg.decode_jpeg(encoded, "GRAY", **least).squeeze(2))
    grey = np.asarray(small.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC), np.float64)
    if grey.size * np.vdot(grey, grey) - grey.sum() ** 2 < (_FLAT * grey.size) ** 2:
        return bytes(BYTES)
    coefficients = _COSINES @ grey @ _COSINES.T
    return np.packbits(coefficients[_V, _U] > 0).tobytes()


def distance(a: bytes, b: bytes) -> int:
    """Number of bits in which two hashes differ, 0 to 256."""
    return int(np.bitwise_count(np.frombuffer(a, np.uint8) ^ np.frombuffer(b, np.uint8)).sum())


class Alike(NamedTuple):
    """Pictures that are equal or nearly equal.

    Attributes:
      code: (N,) int64, one number for equal hashes, -1 for pictures without structure.
      pairs: (M, 2) int64, two codes, the lower first, of hashes that differ in 1 to NEAR bits; at most MAX_PAIRS.
      count: Number of such pairs; if it is above M, there may be more.
    """

    code: np.ndarray
    pairs: np.ndarray
    count: int


def search(hashes: np.ndarray) -> Alike:
    """Finds hashes that are equal or nearly equal.

    Pairs that differ in at most 15 bits agree in one of the 16 bands, so all are found. Of pairs that differ in 18
    bits, 1 in 400 is missed. Memory grows with N and M. Pairs beyond MAX_PAIRS are only counted, with a warning.

    Args:
      hashes: (N, 32) uint8.
    """
    hashes = np.ascontiguousarray(hashes, np.uint8).reshape(-1, BYTES)
    structured = hashes.any(axis=1)
    code = np.full(len(hashes), -1, np.int64)
    distinct, code[structured] = np.unique(hashes[structured].view(f"V{BYTES}").ravel(), return_inverse=True)
    distinct = distinct.view(np.uint8).reshape(-1, BYTES)
    words, found, count = _permuted(distinct).view(np.uint64), np.zeros(0, np.int64), 0
    for band in range(BITS // _BAND_BITS):
        of_band, new = _near_in_band(words, band, MAX_PAIRS + 1 - len(found))
        found = np.union1d(found, of_band)
        count += new
        if count > _MOST_COUNTED * MAX_PAIRS:
            break
    count = max(count, len(found))
    if count > MAX_PAIRS:
        logger.warning("at least %d pairs of pictures are nearly the same: %d of them are kept", count, MAX_PAIRS)
        found = found[:MAX_PAIRS]
    return Alike(code, np.stack(np.divmod(found, max(len(distinct), 1)), axis=1), count)


def clusters(hashes: np.ndarray) -> np.ndarray:
    """Groups pictures that are nearly the same, directly or through other pictures.

    Args:
      hashes: (N, 32) uint8.

    Returns:
      (N,) int64, the number of each picture's group; -1 for a picture without a similar one.
    """
    # The process that decodes needs hashes alone, and SciPy would take longer to load than the rest of it.
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    code, near, _ = search(hashes)
    count = int(code.max(initial=-1)) + 1
    if not count:
        return np.full(len(hashes), -1)
    graph = coo_matrix((np.ones(len(near), np.int8), tuple(near.T)), shape=(count, count))
    together = connected_components(graph, directed=False)[1]
    number = np.where(code >= 0, together[code], -1)
    several = np.bincount(number[number >= 0], minlength=count) > 1
    return np.where((number >= 0) & several[number], number, -1)


def _permuted(hashes: np.ndarray) -> np.ndarray:
    """The hashes with their bits permuted: neighbouring frequencies, which are correlated, go to different bands."""
    order = np.random.default_rng(0).permutation(BITS)
    result = np.empty_like(hashes)
    for start in range(0, len(hashes), 1 << 16):
        part = slice(start, start + (1 << 16))
        result[part] = np.packbits(np.unpackbits(hashes[part], axis=1)[:, order], axis=1)
    return result


def _near_in_band(words: np.ndarray, band: int, most: int) -> tuple[np.ndarray, int]:
    """Returns near pairs a < b that share a band, as numbers a * N + b, and how many of all share no earlier band.

    words (N, 4) uint64 -> (M,) int64, int. When `most` are found, further ones are only counted.
    """
    count = len(words)
    keys = words.view(np.uint16)[:, band]
    order = np.argsort(keys, kind="stable")
    keys, words = keys[order], words[order]
    # The word after the band's own is nearly random: it alone rules out most pairs.
    other = (band // 4 + 1) % 4
    places, pieces, held, new = np.arange(count), [np.zeros(0, np.int64)], 0, 0
    for step in range(1, _MAX_BUCKET):
        places = places[: np.searchsorted(places, count - step)]
        places = places[keys[places] == keys[places + step]]
        if not len(places):
            break
        near = places[np.bitwise_count(words[places, other] ^ words[places + step, other]) <= NEAR]
        differing = words[near] ^ words[near + step]
        close = np.bitwise_count(differing).sum(axis=1, dtype=np.int64) <= NEAR
        near, differing = near[close], differing[close]
        new += int(differing.view(np.uint16)[:, :band].all(axis=1).sum())
        if held < most:
            a, b = order[near], order[near + step]
            pieces.append(np.minimum(a, b) * count + np.maximum(a, b))
            held += len(near)
    return np.concatenate(pieces), new

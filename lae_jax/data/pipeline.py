"""The tf.data pipeline: order -> raw records -> decode and augment in parallel -> uint8 batches.

Nothing here has state: the batch of a step is a pure function of (seed, step), up to the rounding of another CPU. So a
run resumes by starting at a step.
"""

import collections
import dataclasses
import io
import itertools
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from lae_jax.data import augment, records, sampling
from lae_jax.faces.tensorflow import tf
from lae_jax.runtime.errors import InputError


@dataclasses.dataclass(frozen=True)
class Places:
    """The places of a global batch that one host reads: `first` up to `first + count` of `batch_size`."""

    batch_size: int
    first: int
    count: int


# Batches that may be on their way through the pipeline when an error comes out of it.
_IN_FLIGHT = 16


def _records(
    dataset: records.Dataset, rows: np.ndarray, order: sampling.Order, places: Places, recent: collections.deque
):
    """step -> (positions in `rows`, encoded images) of this host's places; `recent` gets the rows that are read."""
    rows_of = tf.constant(rows, tf.int64)

    def read(numbers: np.ndarray) -> np.ndarray:
        recent.append(numbers)
        return np.array(dataset.read(numbers), object)

    def load(step):
        position = order(step)[places.first : places.first + places.count]
        raw = tf.numpy_function(read, [tf.gather(rows_of, position)], tf.string, stateful=False)
        raw = tf.ensure_shape(raw, [places.count])
        example = tf.io.parse_example(raw, {"image": tf.io.FixedLenFeature([], tf.string)})
        return position, example["image"]

    return load


def _options(threads: int) -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    return options


def train_batches(
    dataset: records.Dataset,
    rows: np.ndarray,
    targets: np.ndarray,
    order: sampling.Order,
    augmentation: augment.Augmentation,
    *,
    seed: int,
    start: int,
    stop: int,
    places: Places,
    threads: int,
) -> Iterator[dict[str, np.ndarray]]:
    """This host's part of the batches of steps `start` up to `stop`.

    Args: rows: (N,) of the split; targets: (N,) of those rows; order: step -> positions among them.
    Yields: image (count, H, W, 3) uint8, target (count,), row (count,) int64.
    Raises: InputError that names shard and record if one does not decode; else whatever ended the pipeline.
    """
    recent = collections.deque(maxlen=_IN_FLIGHT)
    load = _records(dataset, rows, order, places, recent)
    target_of = tf.constant(targets)
    words = sampling.seed_words(seed, "augment")

    def batch(step):
        position, encoded = load(step)
        # One draw a batch for the seeds of all its places; a host cuts its own out of the global batch's.
        seeds = tf.random.stateless_uniform(
            [places.batch_size, 2], sampling.step_key(words, step), minval=None, maxval=None, dtype=tf.int32
        )
        return position, encoded, seeds[places.first : places.first + places.count]

    def example(position, encoded, key):
        return {
            "image": augmentation.train(encoded, key),
            "target": tf.gather(target_of, position),
            "row": tf.gather(tf.constant(rows, tf.int64), position),
        }

    return _iterate(dataset, tf.data.Dataset.range(start, stop), batch, example, places, threads, recent)


def eval_batches(
    dataset: records.Dataset, rows: np.ndarray, augmentation: augment.Augmentation, *, places: Places, threads: int
) -> Iterator[dict[str, np.ndarray]]:
    """This host's part of all `rows` in their order; the last batch is filled by repeating the last row.

    Yields: image (count, H, W, 3) uint8, position (count,) int64: the place in the padded order, so a position of
    len(rows) or more is padding.
    """
    steps = -(-len(rows) // places.batch_size)
    recent = collections.deque(maxlen=_IN_FLIGHT)
    load = _records(dataset, rows, sampling.sequential(len(rows), places.batch_size), places, recent)

    def batch(step):
        place = step * places.batch_size + places.first + tf.range(places.count, dtype=tf.int64)
        return place, load(step)[1]

    def example(place, encoded):
        return {"image": augmentation.evaluate(encoded), "position": place}

    return _iterate(dataset, tf.data.Dataset.range(steps), batch, example, places, threads, recent)


def _iterate(
    dataset: records.Dataset,
    steps: tf.data.Dataset,
    batch: Callable,
    example: Callable,
    places: Places,
    threads: int,
    recent: collections.deque,
) -> Iterator[dict[str, np.ndarray]]:
    """The batches of `steps`: `batch` reads the records of a step, `example` makes each of them ready in parallel."""
    # AutoGraph has nothing to convert here and would take seconds to find that out.
    batch, example = (tf.autograph.experimental.do_not_convert(function) for function in (batch, example))
    # They leave in order, so that with a call for each thread one waits for the other: 0.95 and 0.91 of the images, on
    # two threads from JPEGs of 200x200 and 500x375.
    data = steps.map(batch, num_parallel_calls=2).unbatch().map(example, num_parallel_calls=4 * threads)
    data = data.batch(places.count, drop_remainder=True).prefetch(2).with_options(_options(threads))
    try:
        # Without this generator around it, an iterator that raised would go on with the next batch.
        yield from data.as_numpy_iterator()
    except tf.errors.OpError as error:
        if damage := _damaged(dataset, recent):
            raise InputError(damage) from error
        raise


def _damaged(dataset: records.Dataset, recent: collections.deque) -> str | None:
    """Names the first of the recent records that is damaged (TensorFlow's message names none); None if none is."""
    # A copy, since other batches are still being read.
    for row in itertools.chain.from_iterable(batch.tolist() for batch in recent.copy()):
        try:
            example = tf.train.Example.FromString(dataset.read(np.array([row]))[0])
            Image.open(io.BytesIO(example.features.feature["image"].bytes_list.value[0])).load()
        except Exception as reason:
            return (
                f"{dataset.path / dataset.shard_of(row)}: row {row} ({dataset.column('name')[row]}) cannot be read or"
                f" does not decode ({reason}). When it was prepared it did, so the file is damaged, or the disk is:"
                " restore it, or prepare it again"
            )
    return None

"""The tf.data pipeline: order -> raw records -> decode and augment in parallel -> uint8 batches.

The pipeline has no state: the batch of a step is a pure function of (seed, step), up to the rounding of another CPU. A
run therefore resumes by starting at a step.
"""

import collections
import dataclasses
import itertools
import types
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from lae_jax.data import augment, records, sampling
from lae_jax.faces import images, scans
from lae_jax.faces.tensorflow import tf
from lae_jax.runtime.errors import InputError


@dataclasses.dataclass(frozen=True)
class Places:
    """The places of a global batch that one host reads: `count` of `batch_size`, from `first` on."""

    batch_size: int
    first: int
    count: int


# Batches that may be in the pipeline when it raises an error.
_IN_FLIGHT = 16


def _encoded(dataset: records.Dataset, rows: np.ndarray) -> list[bytes]:
    """Returns the encoded images as `Dataset.encoded` does, with the proto of TensorFlow, which is loaded here."""
    examples = map(tf.train.Example.FromString, dataset.read(rows))
    return [example.features.feature["image"].bytes_list.value[0] for example in examples]


def _records(
    dataset: records.Dataset, rows: np.ndarray, order: sampling.Order, places: Places, recent: collections.deque
):
    """Returns step -> (positions in `rows`, encoded images) of this host's places; `recent` collects the rows read."""
    rows_of = tf.constant(rows, tf.int64)

    def read(numbers: np.ndarray) -> np.ndarray:
        recent.append(numbers)
        encoded = _encoded(dataset, numbers)
        # TensorFlow would decode whatever a stranger's data set holds; `_damaged` names the record.
        if any(scans.reason_against_stored(image) for image in encoded):
            raise ValueError("a record is not decoded")
        return np.array(encoded, object)

    def load(step):
        position = order(step)[places.first : places.first + places.count]
        encoded = tf.numpy_function(read, [tf.gather(rows_of, position)], tf.string, stateful=False)
        return position, tf.ensure_shape(encoded, [places.count])

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
    further: Mapping[str, np.ndarray] = types.MappingProxyType({}),
) -> Iterator[dict[str, np.ndarray]]:
    """Yields this host's part of the batches of steps `start` up to `stop`.

    Args:
        dataset: The data set.
        rows: (N,), of the split.
        targets: (N,) or (N, 2), of those rows.
        order: Step -> positions among those rows.
        augmentation: Makes the training image of a record.
        seed: Seed of the augmentation.
        start: The first step.
        stop: The step after the last one.
        places: The places that this host reads.
        threads: Number of threads.
        further: Further values of those rows, (N, ...), by name.

    Yields:
        image (count, H, W, 3) uint8, target (count,) or (count, 2), row (count,) int64, and those of `further`.

    Raises:
        InputError: A record does not decode, or would take too much work. The message names its shard and row. Other
            errors pass unchanged.
    """
    recent = collections.deque(maxlen=_IN_FLIGHT)
    load = _records(dataset, rows, order, places, recent)
    values_of = {name: tf.constant(values) for name, values in {"target": targets, "row": rows, **further}.items()}
    words = sampling.seed_words(seed, "augment")

    def batch(step):
        position, encoded = load(step)
        # One draw per step makes the seeds of the global batch. Each host takes those of its places.
        seeds = tf.random.stateless_uniform(
            [places.batch_size, 2], sampling.step_key(words, step), minval=None, maxval=None, dtype=tf.int32
        )
        return position, encoded, seeds[places.first : places.first + places.count]

    def example(position, encoded, key):
        return {
            "image": augmentation.train(encoded, key),
            **{name: tf.gather(values, position) for name, values in values_of.items()},
        }

    return _iterate(dataset, tf.data.Dataset.range(start, stop), batch, example, places, threads, recent)


def eval_batches(
    dataset: records.Dataset, rows: np.ndarray, augmentation: augment.Augmentation, *, places: Places, threads: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yields this host's part of all `rows` in order. The last row is repeated to fill the last batch.

    Args:
        dataset: The data set.
        rows: (N,), of the split.
        augmentation: Makes the evaluation image of a record.
        places: The places that this host reads.
        threads: Number of threads.

    Yields:
        image (count, H, W, 3) uint8, position (count,) int64: the place in the padded order, so a position of
        len(rows) or more is padding.

    Raises:
        InputError: A record does not decode.
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
    """Yields the batches: `batch` reads the records of a step, `example` prepares each record in parallel."""
    # AutoGraph has nothing to convert here and takes seconds to find that out.
    batch, example = (tf.autograph.experimental.do_not_convert(function) for function in (batch, example))
    # Examples leave in order, so with one call per thread the threads wait for each other: on two threads, JPEGs of
    # 200x200 and 500x375 are then prepared at 0.95 and 0.91 of this speed.
    data = steps.map(batch, num_parallel_calls=2).unbatch().map(example, num_parallel_calls=4 * threads)
    data = data.batch(places.count, drop_remainder=True).prefetch(2).with_options(_options(threads))
    try:
        # A generator ends when it raises. The iterator alone would continue with the next batch.
        yield from data.as_numpy_iterator()
    except tf.errors.OpError as error:
        if damage := _damaged(dataset, recent):
            raise InputError(damage) from error
        raise


def _damaged(dataset: records.Dataset, recent: collections.deque) -> str | None:
    """Returns a message that names the first damaged record (TensorFlow's names none), or None if none is damaged."""
    # A copy, because other batches are still being read.
    for row in itertools.chain.from_iterable(batch.tolist() for batch in recent.copy()):
        try:
            (encoded,) = _encoded(dataset, np.array([row]))
            if reason := scans.reason_against_stored(encoded):
                raise images.BadImage(reason)
            images.load(encoded)
        except Exception as reason:
            return (
                f"{dataset.path / dataset.shard_of(row)}: row {row} ({dataset.column('name')[row]}) cannot be read or"
                f" does not decode ({reason}). It did when it was prepared, so the file or the disk is damaged: restore"
                " the file, or prepare the data set again"
            )
    return None

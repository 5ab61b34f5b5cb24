"""The sides of `input_pipeline` that run in the project's own environment: the pipeline, and its limit."""

import pathlib
from collections.abc import Iterator

from benchmarks import input_pipeline_worker as worker

FOREVER = 1 << 40


def ours(args) -> Iterator:
    """As training runs it: a prepared data set, its order, its pipeline."""
    from lae_jax.configs import common
    from lae_jax.data import pipeline, records, sampling
    from lae_jax.data.augment import Augmentation
    from lae_jax.runtime import cpu

    dataset = records.open_dataset(args.data)
    rows = dataset.rows("all")
    full = {name: value for name, value in common.augmentation("full").items()}
    stream = pipeline.train_batches(
        dataset, rows, dataset.column("age")[rows], sampling.shuffled(len(rows), args.batch, 0),
        Augmentation(image_size=args.image_size, **full), seed=0, start=0, stop=FOREVER,
        places=pipeline.Places(args.batch, 0, args.batch), threads=args.cores or cpu.cores(),
    )  # fmt: skip
    return (batch["image"] for batch in stream)


def limit(args) -> Iterator:
    """Decode, random patch, resize in TensorFlow's own operations, files in memory."""
    from lae_jax.faces.tensorflow import tf

    encoded = [path.read_bytes() for path in sorted(pathlib.Path(args.pictures).glob("*.jpg"))]
    size = args.image_size

    def one(encoded, number):
        image = tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")
        start, sides, _ = tf.image.stateless_sample_distorted_bounding_box(
            tf.shape(image), tf.zeros([1, 0, 4]), tf.stack([number, 0]), min_object_covered=0.0,
            aspect_ratio_range=(3 / 4, 4 / 3), area_range=(0.5, 1.0), use_image_if_no_bounding_boxes=True,
        )  # fmt: skip
        patch = tf.slice(image, start, sides)
        # Filtered where the patch is larger than the output, as every side does it.
        larger = tf.reduce_max(sides) > size
        resized = tf.cond(
            larger,
            lambda: tf.image.resize(patch, [size, size], antialias=True),
            lambda: tf.image.resize(patch, [size, size]),
        )
        return tf.cast(resized + 0.5, tf.uint8)

    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.private_threadpool_size = options.threading.max_intra_op_parallelism = 1
    data = tf.data.Dataset.from_tensor_slices(encoded).cache().repeat().enumerate()
    one = tf.autograph.experimental.do_not_convert(one)
    data = data.map(lambda number, file: one(file, number), num_parallel_calls=1)
    return data.batch(args.batch).prefetch(2).with_options(options).as_numpy_iterator()


if __name__ == "__main__":
    worker.serve({"ours": ours, "limit": limit})

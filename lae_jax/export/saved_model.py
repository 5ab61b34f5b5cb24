"""TensorFlow's SavedModel by jax2tf. It needs TensorFlow 2.20 or newer to load, and neither JAX nor this package."""

import pathlib

from lae_jax.export.form import Readable, rows

FILE = "saved_model"
SIGNATURE = "serving_default"


def write(folder: pathlib.Path, program) -> None:
    """Args: program: program.Program. The signature takes `image` and gives `age` and `distribution`."""
    # Before jax2tf, which imports TensorFlow too, and lets it talk.
    from lae_jax.export.program import PLATFORMS  # isort: split
    from jax.experimental import jax2tf

    from lae_jax.faces.tensorflow import tf

    function = jax2tf.convert(
        program.portable(),
        polymorphic_shapes=[None, "(batch, ...)"],
        with_gradient=False,
        native_serialization_platforms=PLATFORMS,
    )
    variables = tf.nest.map_structure(lambda value: tf.Variable(value, trainable=False), program.variables)
    side = program.image_size

    def call(image):
        age, distribution = function(variables, image)
        return {"age": age, "distribution": distribution}

    module = tf.Module()
    module.variables_of_model = tf.nest.flatten(variables)  # what hangs on the module is what is saved
    spec = tf.TensorSpec([None, side, side, 3], tf.uint8, name="image")
    module.call = tf.function(call, input_signature=[spec], autograph=False)
    tf.saved_model.save(module, str(folder / FILE), signatures={SIGNATURE: module.call})


def read(folder: pathlib.Path) -> Readable:
    from lae_jax.faces.tensorflow import tf

    loaded = tf.saved_model.load(str(folder / FILE))
    image = loaded.signatures[SIGNATURE].structured_input_signature[1]["image"]

    def forward(images):
        # Found anew, since it is `loaded` that owns the variables, and a signature alone would not keep them alive.
        outputs = loaded.signatures[SIGNATURE](image=tf.constant(images))
        return rows(outputs["age"], outputs["distribution"])

    return Readable(forward, tuple(image.shape), image.dtype.name)

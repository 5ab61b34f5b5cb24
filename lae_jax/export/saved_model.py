"""SavedModel: write a model with jax2tf, read it with TensorFlow.

Loading it needs TensorFlow 2.20 or newer, and neither JAX nor this package.
"""

import pathlib
from typing import TYPE_CHECKING

from lae_jax.export.form import Readable, rows

if TYPE_CHECKING:
    from lae_jax.export.program import Program

FILE = "saved_model"
SIGNATURE = "serving_default"


def write(folder: pathlib.Path, program: "Program") -> None:
    """Writes a model into a folder. Its signature takes `image` and returns `age` and `distribution`."""
    # Before jax2tf, which imports TensorFlow too, with all its log lines.
    from lae_jax.export.program import PLATFORMS
    from lae_jax.faces.tensorflow import tf  # isort: split
    from jax.experimental import jax2tf

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
    module.variables_of_model = tf.nest.flatten(variables)  # TensorFlow saves the variables that the module holds
    spec = tf.TensorSpec([None, side, side, 3], tf.uint8, name="image")
    module.call = tf.function(call, input_signature=[spec], autograph=False)
    tf.saved_model.save(module, str(folder / FILE), signatures={SIGNATURE: module.call})


def read(folder: pathlib.Path) -> Readable:
    """Reads a model from a folder."""
    from lae_jax.faces.tensorflow import tf

    loaded = tf.saved_model.load(str(folder / FILE))
    image = loaded.signatures[SIGNATURE].structured_input_signature[1]["image"]

    def forward(images):
        # Looked up in each call: `loaded` owns the variables, and a signature alone does not keep them alive.
        outputs = loaded.signatures[SIGNATURE](image=tf.constant(images))
        return rows(outputs["age"], outputs["distribution"])

    return Readable(forward, tuple(image.shape), image.dtype.name)

"""The exported model as a function in JAX: uint8 crops -> age, distribution. It normalises the images itself."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from lae_jax import models
from lae_jax.runs.forward import age_and_distribution, forward_step

PLATFORMS = ("cpu", "cuda", "tpu")
TINY = 1e-30  # stands for a probability that underflows in float32, as in runs.distributions


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A model with its normalisation, temperature and flip.

    Attributes:
      name: Name of the backbone.
      variables: {'params', 'batch_stats'}, float32 arrays.
      image_size: Side of the images in pixels.
      mean: Mean of each channel, of images in [0, 1].
      std: Standard deviation of each channel, of images in [0, 1].
      num_ages: Number of the model's outputs.
      temperature: Temperature of the distributions. The age is computed without it.
      flip: Average the outputs with those of the mirror image.
      precision: Precision of the backbone's products, as in `models.create`.
    """

    name: str
    variables: Mapping
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_ages: int = 101
    temperature: float = 1.0
    flip: bool = False
    precision: str = "default"

    @property
    def hidden(self) -> int:
        """Units of the hidden layer in the head; 0 without one."""
        head = self.variables["params"]["head"]
        return len(head["hidden"]["bias"]) if "hidden" in head else 0

    def function(self, convolutions: str) -> Callable:
        """Returns a function: (variables, uint8 (B, S, S, 3)) -> age (B,) years, distribution (B, K), both float32.

        Args:
          convolutions: 'cpu' or 'xla', as in `models.create`.
        """
        module = models.create(
            self.name, self.num_ages, hidden=self.hidden, convolutions=convolutions, precision=self.precision
        )

        def function(variables, images):
            outputs = forward_step(
                variables,
                images,
                model=module,
                output=age_and_distribution,
                dtype=jnp.float32,
                mean=self.mean,
                std=self.std,
                flip=self.flip,
            )
            ages, raw = outputs[:, 0], outputs[:, 1:]
            if self.temperature == 1:
                return ages, raw
            return ages, jax.nn.softmax(jnp.log(jnp.maximum(raw, TINY)) / self.temperature, axis=-1)

        return function

    def portable(self) -> Callable:
        """Returns the same function for all platforms: convolutions are 'cpu' on the CPU and 'xla' elsewhere."""
        cpu, xla = self.function("cpu"), self.function("xla")

        def function(variables, images):
            # Both branches take the same variables, so the program holds the weights once.
            return jax.lax.platform_dependent(variables, images, cpu=cpu, default=xla)

        return function

    def image_spec(self) -> jax.ShapeDtypeStruct:
        """Shape and type of the images, for batches of any size."""
        (batch,) = jax.export.symbolic_shape("batch")
        return jax.ShapeDtypeStruct((batch, self.image_size, self.image_size, 3), jnp.uint8)

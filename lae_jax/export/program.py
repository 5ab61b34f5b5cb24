"""What is exported, as a function in JAX: uint8 crops to (age, distribution), the normalisation inside."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from lae_jax import models
from lae_jax.runs.forward import forward_step

PLATFORMS = ("cpu", "cuda", "tpu")
TINY = 1e-30  # a probability that float32 lost, as in runs.distributions


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A model of `num_ages` ages and what stands before and after it.

    variables: {'params', 'batch_stats'}, float32 arrays; mean, std: of images in [0, 1]; temperature: of the
    distributions, the age being taken before it; flip: average with the mirror image.
    """

    name: str
    variables: Mapping
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_ages: int = 101
    temperature: float = 1.0
    flip: bool = False

    @property
    def hidden(self) -> int:
        """Units of the head's hidden layer, 0 where it has none."""
        head = self.variables["params"]["head"]
        return len(head["hidden"]["bias"]) if "hidden" in head else 0

    def function(self, convolutions: str) -> Callable:
        """(variables, uint8 (B, S, S, 3)) -> age (B,) years, distribution (B, K), both float32.

        Args: convolutions: as `models.create` has it, but 'auto'.
        """
        module = models.create(self.name, self.num_ages, hidden=self.hidden, convolutions=convolutions)

        def function(variables, images):
            raw = forward_step(
                variables,
                images,
                model=module,
                output=lambda logits: jax.nn.softmax(logits, axis=-1),
                dtype=jnp.float32,
                mean=self.mean,
                std=self.std,
                flip=self.flip,
            )
            ages = raw @ jnp.arange(self.num_ages, dtype=raw.dtype)
            if self.temperature == 1:
                return ages, raw
            return ages, jax.nn.softmax(jnp.log(jnp.maximum(raw, TINY)) / self.temperature, axis=-1)

        return function

    def portable(self) -> Callable:
        """The same, in the form that is fast on a CPU where it runs on one, and in XLA's elsewhere."""
        cpu, xla = self.function("cpu"), self.function("xla")

        def function(variables, images):
            # Equal trees of shapes are all that a branch sees: the weights are in the program once.
            return jax.lax.platform_dependent(variables, images, cpu=cpu, default=xla)

        return function

    def image_spec(self) -> jax.ShapeDtypeStruct:
        """Of images, in a batch of any size."""
        (batch,) = jax.export.symbolic_shape("batch")
        return jax.ShapeDtypeStruct((batch, self.image_size, self.image_size, 3), jnp.uint8)

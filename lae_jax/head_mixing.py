"""Training examples of a head that are mixtures of a batch's: features between the backbone and the head."""

import jax

# Beta(2, 2), as C-Mixup's authors have it for images.
BETA = 2.0


def c_mixup(x: jax.Array, y: jax.Array, key: jax.Array, bandwidth: float | jax.Array) -> tuple[jax.Array, jax.Array]:
    """Each example is mixed with one of its batch whose age is near: (B, F), (B,) years -> the same.

    Partner j of example i is drawn with probability in proportion to exp(-(y_i - y_j)^2 / (2 bandwidth^2)), bandwidth
    in years, itself included; features and ages become share own + (1 - share) partner, share of Beta(2, 2). Yao et
    al., C-Mixup, NeurIPS 2022, equation 6 and algorithm 1, there among the whole training set, and of images.
    """
    of_partner, of_share = jax.random.split(key)
    near = -((y[:, None] - y[None, :]) ** 2) / (2 * bandwidth**2)
    partner = jax.random.categorical(of_partner, near, axis=-1)
    share = jax.random.beta(of_share, BETA, BETA, y.shape, x.dtype)
    return share[:, None] * x + (1 - share)[:, None] * x[partner], share * y + (1 - share) * y[partner]

"""Mixed training examples of a head: partners, shares, and the mixture of features and ages."""

import zlib

import jax

# Beta(2, 2), as C-Mixup's authors use for images.
BETA = 2.0


def key_of(seed: int | jax.Array, step: int | jax.Array, purpose: str = "mix") -> jax.Array:
    """Returns the random key of a step for a purpose, the same on every device."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()) >> 1), step)


def c_mixup(ages: jax.Array, key: jax.Array, bandwidth: float | jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draws partners of near ages and the examples' own shares: (B,) years -> (B,) places in the batch and (B,).

    Partner j of example i, which may be i, is drawn with a probability proportional to
    exp(-(y_i - y_j)^2 / (2 bandwidth^2)), bandwidth in years; the share is drawn from Beta(2, 2). Yao et al., C-Mixup,
    NeurIPS 2022, equation 6 and algorithm 1, which draw from the whole training set and mix images.
    """
    of_partner, of_share = jax.random.split(key)
    near = -((ages[:, None] - ages[None, :]) ** 2) / (2 * bandwidth**2)
    partner = jax.random.categorical(of_partner, near, axis=-1)
    return partner, jax.random.beta(of_share, BETA, BETA, ages.shape, ages.dtype)


def mixed(values: jax.Array, partners: jax.Array, share: jax.Array) -> jax.Array:
    """Returns share * values + (1 - share) * partners, features or ages: (B, ...) twice, (B,) -> (B, ...)."""
    share = share.reshape(-1, *[1] * (values.ndim - 1))
    return share * values + (1 - share) * partners

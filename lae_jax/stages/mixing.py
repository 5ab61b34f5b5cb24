"""Training examples of a head that are mixtures: features between backbone and head, and those of a partner."""

import zlib

import jax

# Beta(2, 2), as C-Mixup's authors have it for images.
BETA = 2.0


def key_of(seed: int | jax.Array, step: int | jax.Array) -> jax.Array:
    """The key of a step's draws, the same on every device."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), zlib.crc32(b"mix") >> 1), step)


def c_mixup(ages: jax.Array, key: jax.Array, bandwidth: float | jax.Array) -> tuple[jax.Array, jax.Array]:
    """Partners whose age is near, and the examples' own shares: (B,) years -> (B,) places in the batch and (B,).

    Partner j of example i is drawn with probability in proportion to exp(-(y_i - y_j)^2 / (2 bandwidth^2)), bandwidth
    in years, itself included; the share is of Beta(2, 2). Yao et al., C-Mixup, NeurIPS 2022, equation 6 and algorithm
    1, there among the whole training set, and of images.
    """
    of_partner, of_share = jax.random.split(key)
    near = -((ages[:, None] - ages[None, :]) ** 2) / (2 * bandwidth**2)
    partner = jax.random.categorical(of_partner, near, axis=-1)
    return partner, jax.random.beta(of_share, BETA, BETA, ages.shape, ages.dtype)


def mixed(values: jax.Array, partners: jax.Array, share: jax.Array) -> jax.Array:
    """share values + (1 - share) partners: (B, ...) twice, (B,) -> (B, ...); of features and of ages alike."""
    share = share.reshape(-1, *[1] * (values.ndim - 1))
    return share * values + (1 - share) * partners

"""The loss of stage 1: its margin, and the form in which the class weights are split over the devices.

B = images of all devices, b = images of this device, D = embedding, R = classes of this device. Every device has the
class weights of R classes: it computes their cosines with all B embeddings, and the devices exchange embeddings (B, D),
three numbers for each image, and the gradients of the embeddings.
"""

import functools
import zlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lae_jax import losses
from lae_jax.runtime.errors import InputError, unknown
from lae_jax.runtime.parallel import AXIS, rows

LEAF = "class_weights"
_HIGHEST = jax.lax.Precision.HIGHEST


def _am(cosines: jax.Array, margin: float, quality: jax.Array | None) -> jax.Array:
    return cosines - margin


def _arc(cosines: jax.Array, margin: float, quality: jax.Array | None) -> jax.Array:
    return losses.arc_margin(cosines, margin)


# (cosines of the true classes (B,), margin, quality of the images (B,) or None) -> (B,)
MARGINS: dict[str, Callable] = {"am_softmax": _am, "arcface": _arc, "adaface": losses.ada_margin}
ADAPTIVE = ("adaface",)  # margins that need the quality of images


def require_form(form: str) -> None:
    """Checks the name of a margin.

    Raises:
      InputError: It is not one of MARGINS.
    """
    if form not in MARGINS:
        raise InputError("config.loss.margin_form: " + unknown("margin", str(form), MARGINS))


def whole_loss(outputs, labels: jax.Array, constants: Mapping) -> jax.Array:
    """Returns the loss (b,) where every device has all class weights.

    Args:
      outputs: `models.IdentityOutputs`.
      labels: (b,).
      constants: scale, margin, margin_form.
    """
    with_margin = functools.partial(_margin_of(constants), quality=outputs.quality)
    return losses.margin_loss(outputs.embeddings, outputs.class_weights, labels, with_margin, constants["scale"])


def split_loss(outputs, labels: jax.Array, constants: Mapping) -> jax.Array:
    """Returns the loss (b,) of this device's images, where each device has R of the class weights.

    It is that of `whole_loss`. The gradient of the class weights is that of the sum over the images of all devices.

    Args:
      outputs: `models.IdentityOutputs`, with class weights (R, D).
      labels: (b,); one of `num_classes` or more, or of a class that no device has, gives NaN.
      constants: scale, margin, margin_form, num_classes; where only some classes count, `places` (R,): the places of
        those class weights among the ones of this device.
    """
    class_weights = outputs.class_weights
    first, held = _held(constants["num_classes"])
    classes = first + constants.get("places", jnp.arange(held))
    quality = jnp.zeros(len(labels)) if outputs.quality is None else jax.lax.stop_gradient(outputs.quality)
    form = _Form(constants["num_classes"], constants["scale"], _margin_of(constants))
    return _split(form, outputs.embeddings, class_weights, _Images(labels, quality, classes))


def choose(num_classes: int, share: float, labels: jax.Array, seed: int, step: jax.Array) -> jax.Array:
    """Returns the places of the class weights of this device that take part in a step, rising (Partial FC).

    All people of the batch take part, and of the others of this device so many that there are `share` of its classes
    or as many as the batch has images, if that is more. Those are drawn uniformly, without replacement. A class has
    its own random number, a function of (seed, step, class); a device takes the classes with the largest. An et al.,
    "Killing Two Birds with One Stone", CVPR 2022.

    The loss is the cross-entropy over the classes that take part. It estimates that of a problem with fewer people,
    and is smaller than the loss over all: its sum over the others, times their number and divided by the number of
    those drawn, is an unbiased estimate of the sum over all others.

    Args:
      num_classes: Number of people.
      share: Share of the classes that take part.
      labels: (b,) of this device's images.
      seed: Seed of the run.
      step: Step.
    """
    labels = jax.lax.all_gather(labels, AXIS, tiled=True)
    first, held = _held(num_classes)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), zlib.crc32(b"classes") >> 1), step)
    classes = first + jnp.arange(held)
    drawn = jax.vmap(lambda one: jax.random.uniform(jax.random.fold_in(key, one)))(classes)
    here = (labels >= first) & (labels < first + held)
    is_in_batch = jnp.zeros(held, bool).at[jnp.where(here, labels - first, held)].set(True, mode="drop")
    order = jnp.where(is_in_batch, 2.0, jnp.where(classes < num_classes, drawn, -1.0))
    _, places = jax.lax.top_k(order, min(held, max(round(share * held), len(labels))))
    return jnp.sort(places)


def _margin_of(constants: Mapping) -> Callable:
    return functools.partial(MARGINS[constants["margin_form"]], margin=constants["margin"])


def _held(num_classes: int) -> tuple[jax.Array, int]:
    """Returns the first class of this device, and the number of its class weights."""
    held = rows.padded(num_classes) // jax.lax.axis_size(AXIS)
    return jax.lax.axis_index(AXIS) * held, held


class _Form(NamedTuple):
    num_classes: int
    scale: float
    with_margin: Callable


class _Images(NamedTuple):
    labels: jax.Array  # (b,)
    quality: jax.Array  # (b,)
    classes: jax.Array  # (R,) of the class weights


# Without the check of varying axes a psum has a psum as its gradient, so the gradient is written here.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _split(form: _Form, embeddings: jax.Array, class_weights: jax.Array, images: _Images) -> jax.Array:
    return _forward(form, embeddings, class_weights, images)[0]


def _forward(form: _Form, embeddings: jax.Array, class_weights: jax.Array, images: _Images):
    every = jax.lax.all_gather(losses.unit(embeddings), AXIS, tiled=True)
    labels, quality = (jax.lax.all_gather(x, AXIS, tiled=True) for x in (images.labels, images.quality))
    cosines = jnp.matmul(every, losses.unit(class_weights).T, precision=_HIGHEST)
    is_true = _is_true(labels, images.classes, form)
    # One device has the class of an image.
    true, found = jax.lax.psum(
        (jnp.sum(jnp.where(is_true, cosines, 0.0), axis=1), is_true.any(axis=1).astype(jnp.int32)), AXIS
    )
    target = form.with_margin(true, quality=quality.astype(true.dtype))
    logits = form.scale * jnp.where(is_true, target[:, None], cosines)
    logits = jnp.where((images.classes < form.num_classes)[None, :], logits, -jnp.inf)
    top = jax.lax.pmax(jnp.max(logits, axis=1), AXIS)
    total = jnp.log(jax.lax.psum(jnp.sum(jnp.exp(logits - top[:, None]), axis=1), AXIS)) + top
    value = jnp.where(found > 0, total - form.scale * target, jnp.nan)
    count = len(images.labels)
    own = jax.lax.dynamic_slice_in_dim(value, jax.lax.axis_index(AXIS) * count, count)
    return own, (embeddings, class_weights, images, every, labels, quality, true, logits, total)


def _backward(form: _Form, kept: tuple, gradient: jax.Array):
    embeddings, class_weights, images, every, labels, quality, true, logits, total = kept
    gradient = jax.lax.all_gather(gradient, AXIS, tiled=True)
    _, with_margin = jax.vjp(lambda x: form.with_margin(x, quality=quality.astype(true.dtype)), true)
    (slope,) = with_margin(jnp.ones_like(true))
    is_true = _is_true(labels, images.classes, form)
    of_logits = jnp.exp(logits - total[:, None]) - is_true
    of_cosines = form.scale * gradient[:, None] * of_logits * jnp.where(is_true, slope[:, None], 1.0)
    unit_weights, of_weights = jax.vjp(losses.unit, class_weights)
    _, of_embeddings = jax.vjp(losses.unit, embeddings)
    shares = jnp.matmul(of_cosines, unit_weights, precision=_HIGHEST)
    (embeddings,) = of_embeddings(jax.lax.psum_scatter(shares, AXIS, scatter_dimension=0, tiled=True))
    (class_weights,) = of_weights(jnp.matmul(of_cosines.T, every, precision=_HIGHEST))
    return embeddings, class_weights, None


def _is_true(labels: jax.Array, classes: jax.Array, form: _Form) -> jax.Array:
    return (labels[:, None] == classes[None, :]) & (classes < form.num_classes)[None, :]


_split.defvjp(_forward, _backward)

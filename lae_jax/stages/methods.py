"""Methods for a long tail that change only the head: one frozen record for each, in the dict `METHODS`.

A head is {'fc': {'kernel': (F, K), 'bias': (K,)}}; a head of two layers also has the key 'hidden'.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from lae_jax import losses
from lae_jax.runtime.errors import InputError, unknown
from lae_jax.stages import method_losses, mixing

HIDDEN = 256  # units of the hidden layer of a method with two layers, unless config.model.hidden sets another number

# (logits (B, K), ages (B,), constants, setting) -> (B,); constants: mae and label_sigma (years), er_weight, in_range,
# counts and smoothed (K,). Ages may be ranges, (B, 2), unless the method says otherwise (`takes_ranges`).
Loss = Callable[[jax.Array, jax.Array, Mapping, float | jax.Array | None], jax.Array]
# (ages (B,), key, setting) -> each example's partner in the batch and its own share.
Mix = Callable[[jax.Array, jax.Array, float | jax.Array], tuple[jax.Array, jax.Array]]
# (stage 2's logits (B, K), the trained head's, constants, setting) -> (B,) years.
FinishOutputs = Callable[[jax.Array, jax.Array, Mapping, float | jax.Array], jax.Array]
# (stage 2's head, the trained head, setting) -> a head.
FinishHead = Callable[[Mapping, Mapping, float | jax.Array], Mapping]


@dataclasses.dataclass(frozen=True)
class Method:
    """A method: what it trains, on what, and how the trained head is finished."""

    name: str
    paper: str
    what: str  # what it does, in a few words
    loss: Loss | None = None  # None: nothing trains, the method works on stage 2's head
    order: str = "class_balanced"  # | 'shuffled'
    power: float = 0.0  # of the class-balanced order
    start: str = "kept"  # 'kept': from stage 2's head | 'new'
    trains: str = "head"  # | 'scales': a factor for each age | 'two_layers': a hidden layer and a new head
    smooth_features: bool = False  # trains on features whose statistics are smoothed over the ages
    mix: Mix | None = None  # chooses the partners whose features are mixed in; None: nothing is mixed
    finish_head: FinishHead | None = None
    finish_outputs: FinishOutputs | None = None
    settings: tuple[float, ...] = (0.0,)  # values that a sweep tries; (0.0,) if there is no setting
    setting: str = ""  # name of the setting; '': there is none
    below: float = math.inf  # the setting lies below this
    least: float | None = None  # the smallest setting; None: any above 0
    sets: str = "loss"  # | 'power' | 'finish': what the setting changes
    takes_ranges: bool = True  # it can be used where ages are ranges

    @property
    def training(self) -> tuple:
        """All that determines the trained head: methods with equal values share one."""
        how = (self.loss, self.order, self.power, self.start, self.trains, self.smooth_features, self.mix)
        return (*how, self.sets == "power")

    def takes_setting(self, value: float) -> bool:
        """Whether a value is a setting that the method can use."""
        return (0 < value if self.least is None else self.least <= value) and value < self.below

    @property
    def on_images(self) -> bool:
        """Whether a run of stage 3 can use it: it only trains layers of the head, on plain features."""
        finishes = self.finish_head is not None or self.finish_outputs is not None
        trains_layers = self.loss is not None and self.trains != "scales"
        return trains_layers and not self.smooth_features and not finishes


def representation(
    logits: jax.Array, ages: jax.Array, constants: Mapping, setting: float | jax.Array | None = None
) -> jax.Array:
    """Returns stage 2's loss (equation 3); `setting` is not used."""
    label = (constants["label_sigma"], constants["in_range"])
    return losses.representation_loss(logits, ages, constants["er_weight"], *label)


def lae(logits: jax.Array, ages: jax.Array, constants: Mapping, setting: float | jax.Array | None = None) -> jax.Array:
    """Returns stage 3's loss (equation 4); `setting` is not used."""
    return losses.classification_loss(logits, ages, constants["mae"], constants["label_sigma"], constants["in_range"])


def _divergence(logits, ages, constants, setting):
    return losses.label_divergence(logits, ages, constants["label_sigma"], constants["in_range"])


def _scaled_mae(logits, ages, constants, setting):
    return lae(logits, ages, {**constants, "mae": setting * constants["mae"]})


def _error(logits, ages, constants, setting):
    return losses.regression_error(logits, ages)


def _balanced_softmax(logits, ages, constants, setting):
    return _logit_adjusted(logits, ages, constants, 1.0)


def _logit_adjusted(logits, ages, constants, setting):
    label = (constants["label_sigma"], constants["in_range"])
    return method_losses.adjusted_divergence(logits, ages, constants["counts"], setting, *label)


def _weighted(weights: Callable) -> Loss:
    """Returns stage 2's loss times a weight by age; `weights` is (constants, setting) -> (K,)."""

    def loss(logits, ages, constants, setting):
        return method_losses.of_age(weights(constants, setting), ages) * representation(
            logits, ages, constants, setting
        )

    return loss


_inverse = _weighted(lambda constants, setting: method_losses.power_weights(constants["counts"], 1.0))
_inverse_root = _weighted(lambda constants, setting: method_losses.power_weights(constants["counts"], 0.5))
_effective = _weighted(lambda constants, setting: method_losses.effective_weights(constants["counts"], setting))
_lds = _weighted(
    lambda constants, setting: method_losses.lds_weights(constants["counts"], constants["smoothed"], setting)
)


def _balanced_mse(logits, ages, constants, setting):
    return method_losses.balanced_mse(losses.expected_age(logits), ages, constants["counts"], setting)


def normalised(own: Mapping, trained: Mapping, tau: float | jax.Array) -> Mapping:
    """Returns the trained head with the weights w_k (mean norm / |w_k|)^tau and its own biases.

    This is the paper's w_k / |w_k|^tau times a factor common to all ages. The factor does not change the paper's
    argmax, but it changes an expected age.
    """
    kernel = trained["fc"]["kernel"]
    norms = jnp.linalg.norm(kernel, axis=0)
    return {**trained, "fc": {**trained["fc"], "kernel": kernel * (jnp.mean(norms) / norms)[None, :] ** tau}}


def interpolated(own: Mapping, trained: Mapping, share: float | jax.Array) -> Mapping:
    """Returns (1 - share) of stage 2's head plus `share` of the trained head, weight by weight."""
    return jax.tree.map(lambda a, b: (1 - share) * a + share * b, own, trained)


def adjusted(own: jax.Array, trained: jax.Array, constants: Mapping, tau: float | jax.Array) -> jax.Array:
    """Returns the expected age of stage 2's logits - tau log prior."""
    return losses.expected_age(own - tau * method_losses.log_prior(constants["counts"])[None, :])


def routed(own: jax.Array, trained: jax.Array, constants: Mapping, threshold: float | jax.Array) -> jax.Array:
    """Returns stage 2's age where the trained head's age is frequent, else the trained head's age.

    An age is frequent if its smoothed count is at least `threshold` times the largest smoothed count.
    """
    ages = losses.expected_age(trained)
    frequency = method_losses.of_age(constants["smoothed"] / jnp.max(constants["smoothed"]), ages)
    return jnp.where(frequency >= threshold, losses.expected_age(own), ages)


METHODS = {
    method.name: method
    for method in (
        Method("stage2", "Bao et al., 2021 (LAE), section 2.1", "stage 2's own head, nothing trained"),
        Method(
            "lae",
            "Bao et al., 2021 (LAE), equation 4",
            "stage 3: ages equally likely, L_ld + (L_er - mae)^2",
            loss=lae,
        ),
        Method("lae_no_mse", "LAE without the second term", "ages equally likely, L_ld", loss=_divergence),
        Method(
            "lae_power",
            "LAE; the power is progressively-balanced sampling's middle (Kang et al., ICLR 2020, section 4.1)",
            "LAE, ages drawn in proportion to n^power",
            loss=lae,
            settings=(0.25, 0.5, 0.75),
            setting="power",
            sets="power",
        ),
        Method("lae_new_head", "LAE, 'retrain' read literally", "LAE from a new head", loss=lae, start="new"),
        Method(
            "lae_new_head_mae",
            "LAE from a new head, with another mae in equation 4 (ours)",
            "ages equally likely, a new head, L_ld + (L_er - factor mae)^2; with factor 0 the squared error",
            loss=_scaled_mae,
            start="new",
            settings=(0.0, 0.5, 2.0),
            setting="factor of mae",
            least=0.0,
        ),
        Method(
            "absolute_error",
            "LAE, equation 2 alone",
            "ages equally likely, the absolute error L_er without L_ld",
            loss=_error,
        ),
        Method(
            "crt",
            "Kang et al., Decoupling representation and classifier, ICLR 2020 (cRT)",
            "ages equally likely, a new head, stage 2's loss",
            loss=representation,
            start="new",
        ),
        Method(
            "crt_kept_head",
            "cRT (Kang et al., ICLR 2020) from stage 2's head (ours)",
            "ages equally likely, stage 2's head and loss",
            loss=representation,
        ),
        Method(
            "lws",
            "Kang et al., ICLR 2020 (LWS, equation 6)",
            "ages equally likely, stage 2's loss trains a factor for each age's weights",
            loss=representation,
            trains="scales",
        ),
        Method(
            "tau_norm",
            "Kang et al., ICLR 2020 (tau-normalised, equation 5)",
            "the norms of the ages' weights are made more equal",
            finish_head=normalised,
            settings=(0.25, 0.5, 0.75, 1.0),
            setting="tau",
            sets="finish",
        ),
        Method(
            "logit_adjustment",
            "Menon et al., Long-tail learning via logit adjustment, ICLR 2021 (post-hoc, equation 9)",
            "tau log prior is subtracted from stage 2's logits",
            finish_outputs=adjusted,
            settings=(0.25, 0.5, 0.75, 1.0),
            setting="tau",
            sets="finish",
        ),
        Method(
            "logit_adjusted_loss",
            "Menon et al., ICLR 2021 (loss, equation 10)",
            "tau log prior is added to the logits in training",
            loss=_logit_adjusted,
            order="shuffled",
            settings=(0.5, 0.75, 1.25),
            setting="tau",
        ),
        Method(
            "balanced_softmax",
            "Ren et al., Balanced meta-softmax, NeurIPS 2020, equation 3",
            "log prior is added to the logits in training",
            loss=_balanced_softmax,
            order="shuffled",
        ),
        Method(
            "inverse",
            "Re-weighting by the inverse frequency (Huang et al., CVPR 2016)",
            "stage 2's loss, weights 1 / n",
            loss=_inverse,
            order="shuffled",
        ),
        Method(
            "inverse_root",
            "Re-weighting by the square root of the inverse frequency (Mahajan et al., ECCV 2018)",
            "stage 2's loss, weights 1 / sqrt(n)",
            loss=_inverse_root,
            order="shuffled",
        ),
        Method(
            "effective_number",
            "Cui et al., Class-balanced loss, CVPR 2019, equation 2",
            "stage 2's loss, weights 1 / effective number",
            loss=_effective,
            order="shuffled",
            settings=(0.9, 0.99, 0.999),
            setting="beta",
            below=1.0,
        ),
        Method(
            "lds",
            "Yang et al., Delving into deep imbalanced regression, ICML 2021 (LDS)",
            "stage 2's loss, weights by the inverse of smoothed counts to a power",
            loss=_lds,
            order="shuffled",
            settings=(0.5, 1.0),
            setting="power",
        ),
        Method(
            "feature_calibration",
            "Yang et al., ICML 2021: the part of FDS that can act on frozen features",
            "stage 2's loss on features whose mean and variance by age are smoothed",
            loss=representation,
            order="shuffled",
            smooth_features=True,
            takes_ranges=False,
        ),
        Method(
            "balanced_mse",
            "Ren et al., Balanced MSE, CVPR 2022 (BNI)",
            "squared error with the prior removed",
            loss=_balanced_mse,
            order="shuffled",
            settings=(2.0, 5.0),
            setting="noise in years",
            takes_ranges=False,
        ),
        Method(
            "two_layers",
            "A head with a hidden layer, trained like LAE's",
            "LAE, a hidden layer before a new head",
            loss=lae,
            start="new",
            trains="two_layers",
        ),
        Method(
            "two_layers_crt",
            "cRT (Kang et al., ICLR 2020) with a hidden layer (ours)",
            "ages equally likely, a hidden layer before a new head, stage 2's loss",
            loss=representation,
            start="new",
            trains="two_layers",
        ),
        Method(
            "c_mixup",
            "Yao et al., C-Mixup: improving generalization in regression, NeurIPS 2022, on features",
            "LAE, features of near ages are mixed",
            loss=lae,
            mix=mixing.c_mixup,
            settings=(1.0, 3.0),
            setting="bandwidth in years",
            takes_ranges=False,
        ),
        Method(
            "two_layers_c_mixup",
            "C-Mixup (Yao et al., NeurIPS 2022) and a hidden layer (ours)",
            "LAE, a hidden layer before a new head, features of near ages are mixed",
            loss=lae,
            start="new",
            trains="two_layers",
            mix=mixing.c_mixup,
            settings=(1.0, 3.0),
            setting="bandwidth in years",
            takes_ranges=False,
        ),
        Method(
            "routing",
            "Bao et al., GLAE, 2023: its routing, here by the frequency of the age that LAE's head predicts",
            "stage 2's age where LAE's age is frequent, else LAE's age",
            loss=lae,
            finish_outputs=routed,
            settings=(0.1, 0.2, 0.4, 0.6),
            setting="threshold",
            sets="finish",
        ),
        Method(
            "crt_routing",
            "Routing as above, between stage 2's head and cRT's (ours)",
            "stage 2's age where cRT's age is frequent, else cRT's age",
            loss=representation,
            start="new",
            finish_outputs=routed,
            settings=(0.4, 0.6, 0.8),
            setting="threshold",
            sets="finish",
        ),
        Method(
            "two_layers_routing",
            "Routing as above, between stage 2's head and the head of two layers (ours)",
            "stage 2's age where the age of the two layers is frequent, else theirs",
            loss=lae,
            start="new",
            trains="two_layers",
            finish_outputs=routed,
            settings=(0.4, 0.6, 0.8),
            setting="threshold",
            sets="finish",
        ),
        Method(
            "interpolation",
            "Wortsman et al., Robust fine-tuning (WiSE-FT), CVPR 2022, on the head",
            "the weights lie between stage 2's head and LAE's",
            loss=lae,
            finish_head=interpolated,
            settings=(0.25, 0.5, 0.75),
            setting="share",
            sets="finish",
        ),
    )
}


def get(name: str) -> Method:
    """Returns the method of this name.

    Raises:
      InputError: There is no such method.
    """
    if name not in METHODS:
        raise InputError(unknown("method", name, METHODS))
    return METHODS[name]

"""Losses of semantic segmentation, over the valid pixels of a batch.

A loss is kept as the sums it is made of (`LossSums`): their ratio is what is differentiated, and merged over batches they give
the loss of a whole set, also for Dice, which is a ratio of sums over all pixels and no mean over images.

Shape letters: B batch, H W image, C classes (with background).
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import struct

from imgrec_jax import losses, metrics
from imgrec_jax.ops.precision import single

# In pixels, added to both sides of Dice's ratio: a class that a batch lacks costs little, and its gradient stays finite.
DICE_SMOOTHING = 1.0


def focal(logits: jax.Array, label: jax.Array, gamma: float = 2.0, label_smoothing: float = 0.0) -> jax.Array:
    """(1 - p)^gamma times the cross-entropy, p the probability of the label (Lin et al. 2017, arXiv 1708.02002, eq. 4).

    float [..., C], int [...] -> float32 [...].
    """
    log_probs = jax.nn.log_softmax(single(logits))
    of_label = jnp.take_along_axis(log_probs, label[..., None].astype(jnp.int32), axis=-1)[..., 0]
    return losses.focal_weight(-jnp.expm1(of_label), gamma) * losses.of_log_probabilities(log_probs, label, label_smoothing)


@struct.dataclass
class MeanTerm(metrics.Sum):
    """A weighted mean over pixels."""

    def value(self, axis_name: str | None = None) -> jax.Array:
        """The share of this device under `axis_name`: the devices' values add up to the mean over all of them."""
        count = self.count if axis_name is None else jax.lax.psum(self.count, axis_name)
        return self.total / jnp.maximum(count, 1e-12)


@struct.dataclass
class DiceTerm(metrics.SumState):
    """1 - the mean over classes of the soft Dice coefficient (Milletari et al. 2016, arXiv 1606.04797, with p + t below).

    overlap, mass: [C] sums over pixels of p t and of p + t, where p is a class's probability and t is 1 on its pixels.
    """

    overlap: jax.Array
    mass: jax.Array

    @classmethod
    def of(cls, logits: jax.Array, label: jax.Array, valid: jax.Array, background: bool = False) -> "DiceTerm":
        """logits [..., C], label int [...], valid bool [...]; class 0 is left out unless `background`."""
        first = 0 if background else 1
        # `where` before the softmax: an invalid pixel's logits may be anything, and its gradient must be zero.
        logits = jnp.where(valid[..., None], single(logits), 0.0)
        probs = (jax.nn.softmax(logits) * valid[..., None])[..., first:]
        truth = (jax.nn.one_hot(label, logits.shape[-1]) * valid[..., None])[..., first:]
        pixels = tuple(range(label.ndim))
        return cls(jnp.sum(probs * truth, pixels), jnp.sum(probs + truth, pixels))

    def value(self, axis_name: str | None = None) -> jax.Array:
        """As `MeanTerm.value`."""
        if axis_name is None:
            return _dice_loss(self.overlap, self.mass)
        overlap, mass, devices = jax.lax.psum((self.overlap, self.mass, 1), axis_name)
        return _dice_loss(overlap, mass) / devices

    def compute(self) -> dict[str, float]:
        return {"": float(_dice_loss(self.overlap, self.mass))}


def _dice_loss(overlap: jax.Array, mass: jax.Array) -> jax.Array:
    return 1 - ((2 * overlap + DICE_SMOOTHING) / (mass + DICE_SMOOTHING)).mean()


@struct.dataclass
class LossSums(metrics.SumState):
    """A weighted sum of terms: the loss and, under their names, its terms."""

    terms: dict[str, MeanTerm | DiceTerm]
    weights: tuple[tuple[str, float], ...] = struct.field(pytree_node=False)

    def value(self, axis_name: str | None = None) -> jax.Array:
        """Differentiable float32 scalar."""
        return functools.reduce(jnp.add, [weight * self.terms[name].value(axis_name) for name, weight in self.weights])

    def count(self) -> jax.Array | None:
        """The sum of the weights that cross-entropy, focal loss and their auxiliary terms are means by, the same of each; None
        for a loss that is Dice alone, which is no mean."""
        return next((term.count for term in self.terms.values() if isinstance(term, MeanTerm)), None)

    def with_aux(self, aux: "LossSums", weight: float) -> "LossSums":
        """This loss plus `weight` times that of an auxiliary head, whose terms are called aux_..."""
        terms = {f"aux_{name}": term for name, term in aux.terms.items()}
        weights = tuple((f"aux_{name}", weight * w) for name, w in aux.weights)
        return LossSums({**self.terms, **terms}, self.weights + weights)

    def compute(self) -> dict[str, float]:
        values = {name: term.compute()[""] for name, term in self.terms.items()}
        return {"": sum(weight * values[name] for name, weight in self.weights), **values}


def loss_of_pixels(
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    logits: jax.Array,
    label: jax.Array,
    valid: jax.Array,
    pixel_weight: jax.Array | None = None,
) -> LossSums:
    """The mean over valid pixels, weighted where weights are given, of a loss of each pixel.

    Args:
      loss: (logits [B, H, W, C], label int [B, H, W]) -> [B, H, W].
      logits, label, valid, pixel_weight: as of `segmentation_loss`.
    """
    values = loss(jnp.where(valid[..., None], logits, 0.0), jnp.where(valid, label, 0))
    weights = valid.astype(jnp.float32) if pixel_weight is None else valid * pixel_weight
    return LossSums({"pixels": MeanTerm.of(values, weights)}, (("pixels", 1.0),))


def segmentation_loss(
    logits: jax.Array,
    label: jax.Array,
    valid: jax.Array,
    pixel_weight: jax.Array | None = None,
    *,
    cross_entropy: float = 1.0,
    focal_loss: float = 0.0,
    dice: float = 0.0,
    gamma: float = 2.0,
    class_weights: Sequence[float] = (),
    label_smoothing: float = 0.0,
    dice_background: bool = False,
) -> LossSums:
    """A sum of cross-entropy, focal and Dice loss over valid pixels.

    The first two are means weighted by `pixel_weight` and the class weight of the label, divided by the sum of these weights as
    in torch (which, with both class weights and label smoothing, weighs the smoothed part by every class's own weight); Dice
    counts every valid pixel once.

    Args:
      logits: [B, H, W, C].
      label: int [B, H, W].
      valid: bool [B, H, W].
      pixel_weight: float [B, H, W], e.g. the U-Net's border weights; None for none.
      cross_entropy, focal_loss, dice: weights of the terms; 0 leaves one out.
      gamma: of the focal loss.
      class_weights: C numbers, or () for none.
      label_smoothing: of cross-entropy and focal loss.
      dice_background: whether class 0 takes part in Dice.

    Raises:
      ValueError: no term, or a wrong number of class weights.
    """
    classes = logits.shape[-1]
    if class_weights and len(class_weights) != classes:
        raise ValueError(f"loss.class_weights has {len(class_weights)} numbers; expected one for each of the {classes} classes")
    label = jnp.where(valid, label, 0)  # a void label may lie outside the classes
    weights = valid.astype(jnp.float32)
    if pixel_weight is not None:
        weights = weights * pixel_weight
    if class_weights:
        weights = weights * jnp.asarray(class_weights, jnp.float32)[label]
    terms: dict[str, MeanTerm | DiceTerm] = {}
    if cross_entropy:
        terms["cross_entropy"] = MeanTerm.of(losses.softmax_cross_entropy(logits, label, label_smoothing), weights)
    if focal_loss:
        known = jnp.where(valid[..., None], logits, 0.0)  # an invalid pixel's logits may be anything, as for Dice
        terms["focal"] = MeanTerm.of(focal(known, label, gamma, label_smoothing), weights)
    if dice:
        terms["dice"] = DiceTerm.of(logits, label, valid, dice_background)
    if not terms:
        raise ValueError("loss.cross_entropy, loss.focal_loss and loss.dice are all 0; give one a weight")
    named = {"cross_entropy": cross_entropy, "focal": focal_loss, "dice": dice}
    return LossSums(terms, tuple((name, named[name]) for name in terms))

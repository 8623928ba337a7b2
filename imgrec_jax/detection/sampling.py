"""Balanced sampling of positives and negatives with static shapes.

Shape letters: N candidates, S = min(batch_size, N) samples. One image; `jax.vmap` over the batch.
Same quota rule as torchvision/models/detection/_utils.py (BalancedPositiveNegativeSampler).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Samples(NamedTuple):
    """Positives come first, then negatives, then slots that are not valid (their index is arbitrary)."""

    index: jax.Array  # type: ignore[assignment]  # int32 [S]; the name hides `tuple.index`
    positive: jax.Array  # bool [S]; implies valid
    valid: jax.Array  # bool [S]


def sample_balanced(
    key: jax.Array, positive: jax.Array, negative: jax.Array, batch_size: int, positive_fraction: float
) -> Samples:
    """Up to int(batch_size * positive_fraction) positives, the rest negatives, each uniform without replacement.

    Fewer positives than their quota leave more room for negatives; fewer negatives leave slots invalid.

    Args:
      key: one PRNG key, used once.
      positive, negative: disjoint bool [N].
    """
    priority = jax.random.uniform(key, positive.shape)
    return sample_by_priority(priority, positive, negative, batch_size, positive_fraction)


def sample_by_priority(
    priority: jax.Array, positive: jax.Array, negative: jax.Array, batch_size: int, positive_fraction: float
) -> Samples:
    """As `sample_balanced`, taking the candidates of highest `priority` (float [N], >= 0; ties to the lower index)."""
    size = min(batch_size, positive.size)
    quota = int(batch_size * positive_fraction)
    negative_index = jax.lax.top_k(jnp.where(negative, priority, -1.0), size)[1]
    positives = jnp.minimum(jnp.sum(positive), quota)
    negatives = jnp.minimum(jnp.sum(negative), batch_size - positives)
    slot = jnp.arange(size)
    index = negative_index[jnp.maximum(slot - positives, 0)]
    if quota:
        positive_index = jax.lax.top_k(jnp.where(positive, priority, -1.0), min(quota, size))[1]
        index = jnp.where(slot < positives, positive_index[jnp.minimum(slot, positive_index.size - 1)], index)
    return Samples(index.astype(jnp.int32), slot < positives, slot < positives + negatives)

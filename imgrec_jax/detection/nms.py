"""Non-maximum suppression: exact greedy, at every threshold, with static shapes and without a host round trip.

Shape letters: N boxes, D boxes kept. One image; `jax.vmap` over the batch.
"""

import jax
import jax.numpy as jnp

from imgrec_jax.detection.boxes import pairwise_iou


def nms(
    boxes: jax.Array,
    scores: jax.Array,
    valid: jax.Array,
    iou_threshold: float,
    groups: jax.Array | None = None,
) -> jax.Array:
    """Which boxes greedy suppression keeps, bool [N], in the order given (nothing needs to be sorted).

    From the highest score down, a box is kept unless its IoU with a box already kept is greater than `iou_threshold`
    (strictly, as torchvision/csrc/ops/cpu/nms_kernel.cpp); of equal scores the lower index comes first.

    Greedy suppression is the only fixed point of "kept = valid and not suppressed by a kept box", because every box
    depends on better ones only. Iterating from "all kept" settles at least one more link of each chain of overlapping
    boxes per pass, so it ends with the exact answer after as many passes as the longest chain has links (about ten in
    practice). Each pass is one reduction over an [N, N] boolean matrix: no sort, no tiles, no gather. Measured on 2
    AVX2 cores: 28 ms for 4 x 2,000 boxes, 8 ms for 2,000 (tiles of 128 to 512 boxes: 25 to 36 ms).

    Args:
      boxes: [N, 4].
      scores: [N].
      valid: bool [N]; other boxes neither suppress nor are kept, and may hold anything.
      groups: int [N], boxes of different groups (classes, levels) do not suppress each other; None means one group.
    """
    boxes, scores = jax.lax.stop_gradient((boxes, scores))
    index = jnp.arange(scores.shape[0])
    before = (scores > scores[:, None]) | ((scores == scores[:, None]) & (index < index[:, None]))
    suppresses = before & valid & (pairwise_iou(boxes, boxes) > iou_threshold)  # [i, j]: j, when kept, removes i
    if groups is not None:
        suppresses &= groups == groups[:, None]

    def unsettled(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        return state[1]

    def refine(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        keep = valid & ~jnp.any(suppresses & state[0], axis=1)
        return keep, jnp.any(keep != state[0])

    return jax.lax.while_loop(unsettled, refine, (valid, jnp.any(valid)))[0]


def top_scores(scores: jax.Array, valid: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Indices of the `k` valid entries of highest score, best first, and which of them exist: int32 [D], bool [D].

    D = min(k, N); of equal scores the lower index comes first.
    """
    best, index = jax.lax.top_k(jnp.where(valid, scores, -jnp.inf), min(k, scores.shape[0]))
    return index, best > -jnp.inf

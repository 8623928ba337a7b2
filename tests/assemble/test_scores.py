"""Scores of evaluations: thresholds and intervals."""

import numpy as np

from imgrec_jax.assemble import scores
from imgrec_jax.data.source import SourceInfo


def test_a_threshold_of_zero_is_one():
    chosen, score = {}, np.array([0.0, 0.0, 1.0, 1.0])
    rows = {"probs": np.stack([1 - score, score], 1), "label": np.array([1, 1, 0, 0]), "index": np.arange(4)}
    values = scores._classes(SourceInfo("x", ("no", "yes")), 1, "youden", chosen, True, rows)
    assert chosen["threshold"] == values["threshold"] == 0.0


def test_groups_add_an_interval_to_that_by_images():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (40, 2))
    rows = {"probs": rng.random((40, 2)), "labels": labels, "label_known": np.ones((40, 2), bool), "index": np.arange(40)}
    groups = {"groups": tuple(f"p{n // 4}" for n in range(40))}
    plain = scores._labels(SourceInfo("x", ("a", "b")), rows)
    grouped = scores._labels(SourceInfo("x", ("a", "b"), groups), rows)
    assert {k: grouped[k] for k in ("mAP_low", "mAP_high")} == {k: plain[k] for k in ("mAP_low", "mAP_high")}
    assert grouped["mAP_groups_low"] is not None and "mAP_groups_low" not in plain


def test_an_interval_of_map_is_of_draws_that_hold_every_label():
    rng = np.random.default_rng(0)
    labels = np.stack([np.arange(300) % 2, np.arange(300) < 2], 1).astype(int)
    probs = np.stack([labels[:, 0] * 0.5 + 0.25, rng.random(300)], 1)  # one label is perfect, the rare one guessed
    rows = {"probs": probs, "labels": labels, "label_known": np.ones((300, 2), bool), "index": np.arange(300)}
    values = scores._labels(SourceInfo("x", ("common", "rare")), rows)
    assert values["mAP"] < values["mAP_high"] < 0.7  # not 1, as of draws without the rare one

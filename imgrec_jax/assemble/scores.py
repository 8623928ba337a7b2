"""What an evaluation of classification says beside its sums: intervals by images and by groups, rankings, two-class scores.

Shape letters: N examples, K classes or labels.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from imgrec_jax import metrics, stats
from imgrec_jax.assemble.lookup import ConfigError
from imgrec_jax.data.source import SourceInfo

Values = dict[str, Any]


def make_summaries(
    infos: dict[str, SourceInfo], *, chooses: str, positive: str, criterion: str, multi_label: bool
) -> dict[str, Callable[[dict], Values]]:
    """{split: merged metric states with "scores" -> values}.

    Args:
      infos: of the splits; `meta["groups"]` where examples belong together.
      chooses: the split whose two-class threshold all use.
      positive: of two classes, the one that is looked for; "" is the second.
      criterion: of the threshold, one of `stats.CRITERIA`.
      multi_label: several labels an image.
    """
    chosen: dict[str, float] = {}
    summaries: dict[str, Callable[[dict], Values]] = {}
    for split, info in infos.items():
        if multi_label:
            extra: Callable = partial(_labels, info)
        else:
            where = _positive(info.class_names, positive)
            extra = partial(_classes, info, where, criterion, chosen, split == chooses)
        summaries[split] = partial(_summarise, extra)
    return summaries


def _positive(names: tuple[str, ...], positive: str) -> int | None:
    """The label that two-class scores are of; None where there are more classes."""
    if positive and (len(names) != 2 or positive not in names):
        raise ConfigError(f"config.eval.positive={positive!r}; expected '' or one of two classes, and there are {list(names)}")
    return (names.index(positive) if positive else 1) if len(names) == 2 else None


def _summarise(extra: Callable, states: dict[str, Any]) -> Values:
    values = metrics.compute({name: state for name, state in states.items() if name != "scores"})
    return {**values, **extra(states["scores"].taken())}


def _groups(info: SourceInfo, index: np.ndarray) -> np.ndarray | None:
    if "groups" not in info.meta:
        return None
    return np.asarray(info.meta["groups"])[index]


def _interval(name: str, interval: stats.Interval | None) -> Values:
    low, high = interval or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def _classes(
    info: SourceInfo, positive: int | None, criterion: str, chosen: dict[str, float], chooses: bool, rows: dict
) -> Values:
    """Of one label an image."""
    probs, label = np.asarray(rows["probs"], np.float64), rows["label"]
    hit, groups = probs.argmax(1) == label, _groups(info, rows["index"])
    values = _interval("accuracy", stats.wilson(int(hit.sum()), len(hit)))
    if groups is not None:
        values |= _interval("accuracy_groups", stats.bootstrap(stats.mean_of(hit), groups))
    if positive is None:
        return values
    score, yes = probs[:, positive], label == positive
    if chooses:
        best = stats.best_threshold(score, yes, criterion)
        chosen["threshold"] = 0.5 if best is None else best
    threshold = chosen.get("threshold", 0.5)
    values |= {"auc": stats.auc(score, yes), **_interval("auc", stats.auc_interval(score, yes))}
    if groups is not None:
        values |= _interval("auc_groups", stats.bootstrap(lambda w: stats.auc(score, yes, w), groups))
    counts = stats.binary(score, yes, threshold)
    return values | counts.scores() | {"threshold": threshold, "at_threshold": counts._asdict()}


def _labels(info: SourceInfo, rows: dict) -> Values:
    """Of several labels an image: each over the images where it is known."""
    probs, yes, known = np.asarray(rows["probs"], np.float64), rows["labels"] > 0, rows["label_known"]
    per_label: dict[str, dict[str, Any]] = {}
    for n, name in enumerate(info.class_names):
        score, truth = probs[known[:, n], n], yes[known[:, n], n]
        per_label[name] = {
            "AP": stats.average_precision(score, truth),
            "AUC": stats.auc(score, truth),
            **stats.binary(score, truth, 0.5).scores(),
            "yes": int(truth.sum()),
            "known": len(truth),
        }

    def mean(key: str) -> float | None:
        there = [entry[key] for entry in per_label.values() if entry[key] is not None]
        return float(np.mean(there)) if there else None

    groups, mean_ap = _groups(info, rows["index"]), partial(_map, probs, yes, known)
    values: Values = {"mAP": mean("AP"), "mAUC": mean("AUC"), "f1_macro": mean("f1"), "per_label": per_label}
    values |= _interval("mAP", stats.bootstrap(mean_ap, np.arange(len(probs))))
    return values if groups is None else values | _interval("mAP_groups", stats.bootstrap(mean_ap, groups))


def _map(probs: np.ndarray, yes: np.ndarray, known: np.ndarray, weights: np.ndarray) -> float | None:
    """Mean average precision of weighted examples; None where it would leave out a label, and be the mean of others."""
    each = [
        stats.average_precision(probs[at, n], yes[at, n], weights[at]) for n in range(probs.shape[1]) for at in [known[:, n]]
    ]
    there = [value for value in each if value is not None]
    whole = int((yes & known).any(0).sum())  # labels that have a positive
    return float(np.mean(there)) if there and len(there) == whole else None

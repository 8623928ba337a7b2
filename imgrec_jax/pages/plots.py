"""Plots of a report, drawn by matplotlib: grey letters on nothing, so that they read on white and on black."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imgrec_jax.inference.drawing import one_line

_GREY = "#808088"
MOST_BARS = 200  # a taller picture is more than its library draws
LONGEST = 32  # letters of a name beside an axis
COLOURS = ("#3b7dd8", "#e07b39", "#3aa76d", "#c94f7c", "#8a63d2", "#b59a2b", "#4fb3bf", "#9c6b4f")


class Plot(NamedTuple):
    """A plot as bytes of both formats."""

    png: bytes
    svg: bytes

    def save(self, path: Path) -> None:
        """Writes path.png and path.svg."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".png").write_bytes(self.png)
        path.with_suffix(".svg").write_bytes(self.svg)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    _style(axes)
    return figure, axes


def _style(axes: Any) -> None:
    axes.tick_params(colors=_GREY, labelsize=8)
    axes.grid(True, color=_GREY, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    for name, line in axes.spines.items():
        line.set_visible(name in ("left", "bottom"))
        line.set_color(_GREY)


def _plain(name: str) -> str:
    """A name as matplotlib draws it letter by letter: no mathematics, and not left out of a legend."""
    return ("\u200b" if name.startswith("_") else "") + one_line(name).replace("$", r"\$")


def _label(name: str) -> str:
    """A name beside an axis: of a long one its begin and its end, which tells it from others."""
    return _plain(name if len(name) <= LONGEST else f"{name[: LONGEST // 2]}…{name[-LONGEST // 2 :]}")


def _done(figure: Any, axes: Any, x: str, y: str, legend: bool = False) -> Plot:
    axes.set_xlabel(x, color=_GREY, fontsize=9)
    axes.set_ylabel(y, color=_GREY, fontsize=9)
    if legend:
        axes.legend(frameon=False, labelcolor=_GREY, fontsize=8)
    files = {}
    for kind, options in (("png", {"dpi": 110}), ("svg", {"metadata": {"Date": None}})):
        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # `one_line` has said so
            figure.savefig(file, format=kind, transparent=True, **options)
        files[kind] = file.getvalue()
    return Plot(files["png"], files["svg"])


def curves(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str, *, unit: bool = False, diagonal: bool = False
) -> Plot:
    """{name: (x values, y values)} as lines; unit: both axes from 0 to 1; diagonal: a thin one for comparison."""
    figure, axes = _figure(6.4, 3.4)
    if diagonal:
        axes.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8, linestyle="--")
    for number, (name, (xs, ys)) in enumerate(lines.items()):
        marker = "o" if len(xs) < 3 else None
        colour, dash = COLOURS[number % len(COLOURS)], "-" if number < len(COLOURS) else "--"
        axes.plot(xs, ys, dash, label=_plain(name), color=colour, linewidth=1.6, marker=marker, markersize=4)
    if unit:
        axes.set_xlim(0, 1.01)
        axes.set_ylim(0, 1.01)
    return _done(figure, axes, x, y, legend=len(lines) > 1)


def bars(values: Mapping[str, float], x: str, y: str = "", *, errors: Mapping[str, tuple[float, float]] | None = None) -> Plot:
    """Horizontal bars of the first MOST_BARS, the first on top; errors: {name: (low, high)} as whiskers."""
    names = list(values)[:MOST_BARS][::-1]
    figure, axes = _figure(6.4, max(1.4, 0.28 * len(names) + 0.8))
    heights, places = [values[name] for name in names], np.arange(len(names))
    axes.barh(places, heights, color=COLOURS[0], height=0.7)
    axes.set_yticks(places, [_label(name) for name in names])
    if errors:
        low, high = (np.array([errors[name][n] for name in names]) for n in (0, 1))
        widths = np.maximum([np.array(heights) - low, high - np.array(heights)], 0)
        axes.errorbar(heights, places, xerr=widths, fmt="none", ecolor=_GREY, elinewidth=1.2, capsize=2)
    return _done(figure, axes, x, y)


def histogram(values: Sequence[float], x: str, y: str, bins: int = 30) -> Plot:
    figure, axes = _figure(6.4, 2.6)
    axes.hist(np.asarray(values, np.float64), bins=bins, color=COLOURS[0])
    return _done(figure, axes, x, y)


def scatter(xs: Sequence[float], ys: Sequence[float], x: str, y: str) -> Plot:
    figure, axes = _figure(4.8, 3.6)
    axes.scatter(xs, ys, s=6, alpha=0.35, color=COLOURS[0], linewidths=0)
    return _done(figure, axes, x, y)


def reliability(confidence: np.ndarray, accuracy: np.ndarray, share: np.ndarray) -> Plot:
    """Accuracy over confidence, one bar a bin; its width of colour is the share of examples in it."""
    figure, axes = _figure(4.4, 3.6)
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8, linestyle="--")
    bins = len(share)
    known = np.asarray(share) > 0
    places = (np.arange(bins) + 0.5) / bins
    axes.bar(places[known], np.asarray(accuracy)[known], width=0.9 / bins, color=COLOURS[0], alpha=0.85, label="accuracy")
    axes.plot(
        np.asarray(confidence)[known], np.asarray(accuracy)[known], "o", color=COLOURS[1], markersize=3, label="mean confidence"
    )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.01)
    return _done(figure, axes, "confidence", "accuracy", legend=True)


def matrix(counts: np.ndarray, rows: Sequence[str], columns: Sequence[str], x: str = "predicted", y: str = "true") -> Plot:
    """Counts [R, C], each row coloured by its shares; numbers are written where they fit."""
    from matplotlib.figure import Figure

    counts = np.asarray(counts)
    across, down = [_label(name) for name in columns], [_label(name) for name in rows]
    longest = max(map(len, (*across, *down)), default=0)
    side = min(max(0.42 * max(counts.shape) + max(1.2, 0.6 + 0.065 * longest), 3.2), 12)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    _style(axes)
    axes.grid(False)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(across)), across, rotation=90 if max(map(len, across), default=0) > 3 else 0)
    axes.set_yticks(range(len(down)), down)
    if max(counts.shape) <= 25:
        for r, c in zip(*np.nonzero(counts), strict=True):
            dark = shares[r, c] > 0.5
            axes.text(c, r, f"{counts[r, c]:,}", ha="center", va="center", fontsize=7, color="white" if dark else "#333")
    return _done(figure, axes, x, y)

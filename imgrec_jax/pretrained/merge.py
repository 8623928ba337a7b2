"""Merges loaded tensors into initialised variables, with every difference named.

The rules: a loaded tensor finds its place by its "/"-joined path, whichever collection ("params", "batch_stats")
holds it; what is missing, unexpected or of another shape is an error unless a regular expression allows it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util


class MergeError(ValueError):
    """The loaded tensors do not fit the variables."""


class MergeReport(NamedTuple):
    """What a merge did. Paths are the variables' own, without the collection."""

    loaded: tuple[str, ...]
    renamed: tuple[tuple[str, str], ...]  # (name in the file, path here), where they differ
    missing: tuple[str, ...]  # in the variables, not in the file: kept as initialised
    unexpected: tuple[str, ...]  # in the file, not in the variables: left out
    wrong_shape: tuple[tuple[str, tuple, tuple], ...]  # (path, shape in the file, shape here): kept as initialised

    def __str__(self) -> str:
        """One line per kind, with its count and its first names."""
        rows = (
            ("loaded", self.loaded),
            ("renamed", [f"{source} -> {path}" for source, path in self.renamed]),
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("wrong shape", [f"{path} {given} for {expected}" for path, given, expected in self.wrong_shape]),
        )
        return "\n".join(f"{kind:<12}{len(names):>5}  {_first(names)}".rstrip() for kind, names in rows)


def _first(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def _refuse(kind: str, names: Sequence[str], allowed: Sequence[str], argument: str) -> None:
    refused = [name for name in names if not any(re.search(pattern, name) for pattern in allowed)]
    if refused:
        raise MergeError(
            f"{len(refused)} {kind}: {_first(refused, 8)}; correct the names, or allow them with {argument}=[regex, ...]"
        )


def _check_numbers(value: np.ndarray, dtype: np.dtype, name: str) -> None:
    """Raises MergeError for a tensor that cannot be cast to the variable's dtype: integers, or numbers beyond its range."""
    if not jnp.issubdtype(dtype, jnp.floating):
        return
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise MergeError(
            f"{name} is of {value.dtype}, without the scale that would make it weights; expected floats: save the network as "
            "it was before it was quantised"
        )
    largest = jnp.finfo(dtype).max
    if jnp.finfo(value.dtype).max > largest and (np.isfinite(value) & (abs(value) > largest)).any():
        raise MergeError(
            f"{name} has numbers that {dtype} cannot hold, up to {np.nanmax(abs(value)):.3g}; is the file damaged?"
        )


def merge(
    variables: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    *,
    source_names: Mapping[str, str] | None = None,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    allow_wrong_shape: Sequence[str] = (),
) -> tuple[dict[str, Any], MergeReport]:
    """Variables with `tensors` in place of what they name, cast to the variables' dtypes, and a report.

    Args:
      variables: {"params": ..., "batch_stats": ...} as initialised.
      tensors: {path: array}, for instance `torchvision.Converted.tensors`.
      source_names: {path: name in the file}, for the report.
      allow_missing, allow_unexpected, allow_wrong_shape: regular expressions searched in the path; a difference that
        none of them matches is a `MergeError`. A wrongly shaped tensor that is allowed keeps its initial value.

    Raises:
      MergeError: for such a difference; for integers in place of floats, and numbers beyond the variable's range.
    """
    flat = traverse_util.flatten_dict(dict(variables))
    place = {"/".join(map(str, key[1:])): key for key in flat}
    if len(place) != len(flat):
        raise MergeError("two collections hold a variable of the same path; merge them one at a time")
    shared = [path for path in place if path in tensors]
    wrong_shape = tuple(
        (path, tuple(tensors[path].shape), tuple(flat[place[path]].shape))
        for path in shared
        if tensors[path].shape != flat[place[path]].shape
    )
    wrong_paths = {path for path, _, _ in wrong_shape}
    report = MergeReport(
        loaded=tuple(path for path in shared if path not in wrong_paths),
        renamed=tuple((name, path) for path, name in (source_names or {}).items() if path in place and name != path),
        missing=tuple(path for path in place if path not in tensors),
        unexpected=tuple(path for path in tensors if path not in place),
        wrong_shape=wrong_shape,
    )
    _refuse("missing from the file", report.missing, allow_missing, "allow_missing")
    _refuse("unexpected in the file", report.unexpected, allow_unexpected, "allow_unexpected")
    _refuse(
        "of the wrong shape",
        [f"{path} {given} for {expected}" for path, given, expected in wrong_shape],
        allow_wrong_shape,
        "allow_wrong_shape",
    )
    file_names = dict(source_names or {})
    for path in report.loaded:
        _check_numbers(tensors[path], flat[place[path]].dtype, file_names.get(path, path))
    merged = {**flat, **{place[p]: jnp.asarray(tensors[p], flat[place[p]].dtype) for p in report.loaded}}
    return traverse_util.unflatten_dict(merged), report

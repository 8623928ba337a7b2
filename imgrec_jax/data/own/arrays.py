"""Arrays of images and labels in an npz, as listings."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from imgrec_jax.data.files import stamp
from imgrec_jax.data.own.division import canonical_split
from imgrec_jax.data.own.listing import UNKNOWN, Listing, Reading
from imgrec_jax.data.own.rows import check_marks, check_names
from imgrec_jax.data.own.stores import Store


def read_arrays(path: Path, reading: Reading) -> Listing:
    """An npz of `SPLIT_images, SPLIT_labels` (`x_SPLIT, y_SPLIT`, or without splits), perhaps `SPLIT_groups`, `class_names`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file}
    except Exception as error:  # whatever damaged bytes do to a parser
        raise ValueError(f"{path}: no npz that can be read ({error}); expected arrays without pickled objects") from error
    stamps = {path.name: stamp(path)}
    every: list[np.ndarray] = []
    listing = Listing(str(path), Store(path, stamps, lambda name: b"", lambda name: f"{path}: {name}"), pixels=every)
    classes = [str(name) for name in arrays.pop("class_names", arrays.pop("label_names", np.zeros(0))).ravel().tolist()]
    sets = _npz_sets(arrays)
    if not sets:
        raise ValueError(f"{path} has the arrays {sorted(arrays)}; expected train_images, train_labels, val_images, ...")
    marks, raw, names = [], [], set()
    for split, images, labels, groups in sets:
        x, y = arrays[images], arrays[labels]
        y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
        if len(x) != len(y) or x.ndim not in (3, 4) or y.ndim > 2 or (x.ndim == 4 and x.shape[3] not in (1, 3)):
            raise ValueError(
                f"{path}: {images} {x.shape} and {labels} {y.shape}; expected [N, H, W] or [N, H, W, 1 or 3], and [N]"
            )
        if x.dtype.kind != "f" and x.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"{path}: {images} is of {x.dtype}; expected uint8, uint16 or floats of 0..1")
        if y.ndim == 2:
            raw.append(y)
            marks.append(_marks_of(y, f"{path}: {labels}", reading.minus_one))
        members = [_array_text(g) for g in arrays[groups].ravel().tolist()] if groups in arrays else [""] * len(x)
        said = [_array_text(label) for label in y.tolist()] if y.ndim == 1 else [""] * len(y)
        names |= {*said}
        if classes and (strange := sorted({text for text in said if text.isdigit() and int(text) >= len(classes)})):
            raise ValueError(
                f"{path}: {labels} holds {', '.join(strange[:5])}; expected 0 to {len(classes) - 1}, as class_names has "
                f"{len(classes)} names"
            )
        for n, (image, label, group) in enumerate(zip(x, said, members, strict=True)):
            text = {"": reading.empty, "-1": reading.minus_one}.get(label, label)
            named = classes[int(text)] if classes and text.isdigit() else text
            listing.add(f"{images}[{n}]", named if named != "-1" else "", split, group)
            every.append(image)
    if marks:
        listing.marks = np.concatenate(marks)
        listing.mark_names = tuple(classes) or tuple(map(str, range(listing.marks.shape[1])))
        for name, column in zip(listing.mark_names, np.concatenate(raw).T, strict=False):
            check_marks(str(path), name, {_array_text(value) for value in np.unique(column).tolist()}, reading)
    else:
        check_names(str(path), "the label", names, reading)
    if (listing.marks is not None) != reading.multi_label:
        given = "several labels" if listing.marks is not None else "one label"
        raise ValueError(
            f"{path} has {given} an image; use --config=configs/image_folder.py{':multi_label' * (listing.marks is not None)}"
        )
    return listing


def _array_text(value: object) -> str:
    """A label or group of an array as a table would write it; "" where it is unknown."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float):
        return "" if np.isnan(value) else str(int(value)) if value.is_integer() else str(value)
    return str(value)


def _marks_of(values: np.ndarray, title: str, minus_one: str) -> np.ndarray:
    """[N, K] of 1, 0, and -1 or NaN for what is unknown -> int8 marks; minus_one: see `Reading`."""
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{title} is of {values.dtype}; expected [N, K] numbers: 0, 1, and -1 or NaN for what is unknown")
    unknown = np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, np.bool_)
    if (odd := ~unknown & ~np.isin(values, (0, 1, UNKNOWN))).any():
        row, column = np.argwhere(odd)[0].tolist()
        raise ValueError(
            f"{title}[{row}, {column}]={values[row, column].item()!r}; expected 0, 1, and -1 or NaN for what is unknown"
        )
    known = np.where(values == UNKNOWN, int(minus_one), values) if minus_one in ("0", "1") else values
    return np.where(unknown, UNKNOWN, known).astype(np.int8)


def _npz_sets(arrays: dict[str, np.ndarray]) -> list[tuple[str, str, str, str]]:
    """(split, key of the images, of the labels, of the groups)."""
    found = []
    for key in arrays:
        for images, labels in (("images", "labels"), ("x", "y"), ("image", "label"), ("X", "y")):
            rest = key.removeprefix(f"{images}_") if key.startswith(f"{images}_") else key.removesuffix(f"_{images}")
            split = "" if key == images else canonical_split(rest) if rest != key else None
            if split is not None and (other := key.replace(images, labels, 1)) in arrays:
                found.append((split, key, other, key.replace(images, "groups", 1)))
    return found

"""Features of images, and how alike two images are: verification of faces, products, prints.

Shape letters: N images, C channels of a feature, P pairs.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imgrec_jax.data.batch import Batch
from imgrec_jax.data.files import write_whole
from imgrec_jax.data.own.rows import text_of_table
from imgrec_jax.inference import inputs, layers
from imgrec_jax.inference.inputs import Picture
from imgrec_jax.inference.outputs import output_file

EMBEDDING = "embedding"


def _embedding(run: Any, known: dict[str, tuple[int, ...]]) -> Callable[..., jax.Array]:
    """(variables, batch) -> float32 [B, C]: what the last layer of a classifier takes, else the mean of the widest map over
    the image.

    Raises:
      ValueError: where there is neither.
    """
    last = next(reversed(known), "")
    if last and len(known[last]) == 2:
        enters = layers.entering(run.task.predict, last)
        return lambda variables, batch: layers.pooled(enters(variables, batch)[1])
    widths = {name: shape[3] for name, shape in known.items() if len(shape) == 4}
    if not widths:
        raise ValueError(f"the model of {run.workdir} has no feature map that could be an embedding; it has {list(known)}")
    widest = next(name for name in reversed(widths) if widths[name] == max(widths.values()))
    look = layers.watched(run.task.predict, (widest,))
    return lambda variables, batch: _pooled_inside(look(variables, batch)[1][widest], batch)


def _pooled_inside(value: jax.Array, batch: Batch) -> jax.Array:
    """[B, h, w, C] -> float32 [B, C], the mean over the cells of the image: what it is padded with is of others' sizes."""
    if "image_size" not in batch:
        return layers.pooled(value)
    padded, cells = np.array(batch["image"].shape[1:3]), np.array(value.shape[1:3])
    ends = -(-jnp.asarray(batch["image_size"]) * cells // padded)  # [B, 2], rounded up
    rows, columns = (jnp.arange(n) < ends[:, axis, None] for axis, n in enumerate(cells.tolist()))
    inside = (rows[:, :, None] & columns[:, None, :]).astype(jnp.float32)
    return jnp.einsum("bhwc,bhw->bc", value.astype(jnp.float32), inside, precision="highest") / inside.sum((1, 2))[:, None]


def feature_names(run: Any) -> list[str]:
    """What `extract` takes: "embedding" and every layer with one row an image."""
    return [EMBEDDING, *_layers_of(run)]


def _layers_of(run: Any) -> dict[str, tuple[int, ...]]:
    batch = run.example_batch()
    found = layers.shapes(run.task.predict, run.variables, batch)
    return {name: shape for name, shape in found.items() if shape[0] == batch["image"].shape[0]}


def make_extract(run: Any, name: str) -> Callable[[Batch], np.ndarray]:
    """batch -> the layer `name` of its rows, or their embedding, float32.

    Raises:
      ValueError: for a layer that the model has not, with those it has.
    """
    known = _layers_of(run)
    if name == EMBEDDING:
        take = _embedding(run, known)
    elif name in known:
        look = layers.watched(run.task.predict, (name,))
        take = lambda variables, batch: look(variables, batch)[1][name]  # noqa: E731
    else:
        raise ValueError(f"--features={name} is no layer of the model; it has {[EMBEDDING, *known]}")
    compiled = jax.jit(take)
    return lambda batch: np.asarray(compiled(run.on_device, batch), np.float32)


def features(
    run: Any, images: Any, name: str = EMBEDDING, on_fault: Callable[[Picture, ValueError], None] | None = None
) -> dict[str, np.ndarray]:
    """{file: feature} of every image: float32 [C] for the embedding, else the layer's own shape; on_fault as in `stream`."""
    extract, found = make_extract(run, name), dict[str, np.ndarray]()
    for pictures, batch in run.batches(images, on_fault=on_fault):
        found.update(zip((picture.name for picture in pictures), extract(batch), strict=False))
    return found


def write_features(run: Any, images: Iterable[Picture], name: str, out: str | None, faults: Any) -> int:
    """Writes {"files": names [N], "features": float32 [N, ...]}, or one array a file where maps differ in size; exit status."""
    if out is None or not out.endswith(".npz"):
        raise ValueError(f"--features writes arrays: give --out=FILE.npz{f', not {out}' if out else ''}")
    path = output_file("--out", out)
    found = features(run, images, name, on_fault=faults)
    if not found:
        return 1
    files, values = np.array(list(found)), list(found.values())
    if len({value.shape for value in values}) == 1:
        arrays: dict[str, Any] = {"files": files, "features": np.stack(values)}
    else:
        arrays = {"files": files, **{f"features_{n}": value for n, value in enumerate(values)}}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda partial: np.savez_compressed(partial, **arrays))
    return 1 if faults.count else 0


class Roc(NamedTuple):
    """Attributes:
    threshold: similarities, falling; a pair with at least this one is accepted.
    false_accept: share of pairs of different objects that are accepted.
    true_accept: share of pairs of the same object that are accepted.
    """

    threshold: np.ndarray
    false_accept: np.ndarray
    true_accept: np.ndarray

    @property
    def area(self) -> float:
        """Under the curve, by trapezoids."""
        return float(np.trapezoid(self.true_accept, self.false_accept))

    def at(self, far: float) -> tuple[float, float]:
        """(the lowest threshold whose false-accept rate is at most `far`, the true-accept rate there)."""
        best = int(np.flatnonzero(self.false_accept <= far)[-1])
        return float(self.threshold[best]), float(self.true_accept[best])


def roc(similarity: np.ndarray, same: np.ndarray) -> Roc:
    """The receiver operating characteristic of similarities [P] of pairs that are the same or not, bool [P].

    The first point accepts nothing.

    Raises:
      ValueError: where all pairs are of one kind.
    """
    same = np.asarray(same, bool)
    if same.all() or not same.any():
        raise ValueError("a ROC needs pairs of the same object (1) and of different ones (0); all of these are of one kind")
    order = np.argsort(-similarity, kind="stable")
    similarity, same = np.asarray(similarity, np.float64)[order], same[order]
    last = np.append(np.flatnonzero(np.diff(similarity)), len(same) - 1)  # equal similarities are accepted together
    rates = [np.concatenate([[0.0], np.cumsum(kind)[last] / kind.sum()]) for kind in (~same, same)]
    return Roc(np.concatenate([[np.inf], similarity[last]]), *rates)


def read_pairs(path: str | Path) -> list[tuple[str, str, int | None]]:
    """Lines "PATH,PATH" or "PATH,PATH,SAME" with SAME 1 or 0; a first line of column names is passed over.

    Raises:
      ValueError: naming the line.
    """
    pairs: list[tuple[str, str, int | None]] = []
    try:
        rows = list(csv.reader(io.StringIO(text_of_table(Path(path).expanduser().read_bytes(), f"--pairs={path}"), newline="")))
    except OSError as error:
        raise ValueError(f"--pairs={path} cannot be read ({error.strerror})") from error
    for number, row in enumerate(rows, start=1):
        if not row or (number == 1 and len(row) == 3 and row[2].strip() not in ("0", "1")):
            continue
        if len(row) not in (2, 3) or (len(row) == 3 and row[2].strip() not in ("0", "1")):
            raise ValueError(f"--pairs={path}, line {number}: {','.join(row)!r}; expected PATH,PATH or PATH,PATH,1 (or 0)")
        pairs.append((row[0].strip(), row[1].strip(), int(row[2]) if len(row) == 3 else None))
    if len({same is None for _, _, same in pairs}) > 1:
        raise ValueError(f"--pairs={path}: some lines say whether the pair is the same and some do not")
    return pairs


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of two features of any shape, -1 to 1; 0 where one of them is all zeros."""
    a, b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-12))


def compare(run: Any, path: str, name: str | None, *, far: float, out: str | None, say: Callable[[str], None]) -> int:
    """Writes "a,b,similarity[,same]" lines; with labels says the ROC area and the threshold at `far`; exit status."""
    if not 0 < far < 1:
        raise ValueError(f"--far={far}: expected a rate between 0 and 1, e.g. 0.01")
    target = output_file("--out", out) if out else None
    pairs = read_pairs(path)
    files = list(dict.fromkeys(file for pair in pairs for file in pair[:2]))
    bad: list[str] = []

    def fault(picture: Picture, error: ValueError) -> None:
        bad.append(picture.name)
        say(f"error: {error}")

    options = run.reading()
    wanted = [_one(file, inputs.of_path(file, **options)) for file in files]
    found = features(run, wanted, name or EMBEDDING, on_fault=fault)
    known = [(a, b, same, cosine(found[a], found[b])) for a, b, same in pairs if a in found and b in found]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerows((a, b, f"{value:.6f}", *([] if same is None else [same])) for a, b, same, value in known)
    if target is None:
        print(text.getvalue(), end="")
    else:
        write_whole(target, lambda partial: partial.write_text(text.getvalue(), encoding="utf-8", errors="surrogateescape"))
    if known and known[0][2] is not None:
        say(_verdict([(value, bool(same)) for _, _, same, value in known], far))
    return 1 if bad or not known else 0


def _one(file: str, pictures: Iterator[Picture]) -> Picture:
    """The only picture of a path, under this name; one that says so where there are several: which is meant?"""
    first, *more = itertools.islice(pictures, 2)
    return inputs.fault(file, "holds several images; a pair is of two") if more else Picture(file, first.read)


def _verdict(pairs: Sequence[tuple[float, bool]], far: float) -> str:
    curve = roc(np.array([value for value, _ in pairs]), np.array([same for _, same in pairs]))
    threshold, accepted = curve.at(far)
    return (
        f"{len(pairs):,} pairs: area under the ROC {curve.area:.4f}; at a false-accept rate of {far:g} or less the threshold "
        f"is {threshold:.4f} and {accepted:.1%} of the same pairs are accepted"
    )

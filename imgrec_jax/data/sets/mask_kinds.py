"""What the masks of a set hold, all of them together, and of which kind they are so.

Shape letters: R rows.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from imgrec_jax.data.files import Files
from imgrec_jax.data.own.found import shown
from imgrec_jax.data.own.index import KEPT_FROM
from imgrec_jax.data.progress import progress
from imgrec_jax.data.sets.mask_values import LEAST_WHITE, MOST_COLOURS, read_mask

_VALUE, _LEVEL, _COLOUR, _END, _ALPHA = range(5)  # of a row: what it tells
_COLOURED = -1  # stands for the number that a pixel of a colour image does not have
_MOST_UNNAMED, _MOST_VALUE = 64, 128  # of classes that nothing names, and of their numbers
_DENSE_TO, _DENSE = 32, 4  # from this number on, one in so many has to occur
_BETWEEN = slice(48, 208)  # greys of a lossy mask that are neither black nor white
_NEAR = 8  # greys that a plateau in a lossy file spreads over, to each side
_CHOOSE = (
    "--config.data.options=\"{'kind': 'index'}\" for class numbers (better with classes.txt), 'instance_map' for numbers of "
    "objects, 'grey' where 128 and more is foreground, 'binary' where all but 0 is"
)


class Held(NamedTuple):
    """What masks hold.

    Attributes:
      values: {value: pixels}, of masks that are not lossy; 255 for what is not black in a colour image.
      levels: {grey: pixels}, of lossy ones.
      colours: {(value, colour 0xRRGGBB): where it is seen first}, of palettes, and of colour images with _COLOURED for value.
      ends: the different largest values of masks that each hold all from 0 to theirs; () where one does not.
      alpha: where a mask is seen first that is drawn in its alpha channel; -1 for nowhere.
      lossy: where a lossy one is seen first; -1 for nowhere.
      first: {value: where it is seen first}.
    """

    values: dict[int, int]
    levels: dict[int, int]
    colours: dict[tuple[int, int], int]
    ends: tuple[int, ...]
    alpha: int
    lossy: int
    first: dict[int, int]


def look_into(files: Files, masks: Sequence[PurePosixPath], title: str) -> np.ndarray:
    """int64 [R, 5]: (what it tells, of what, of which colour, pixels, in which mask first), as `held` takes them."""
    counts: Counter[tuple[int, int, int]] = Counter()
    first: dict[tuple[int, int, int], int] = {}
    ends: set[int] | None = set()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        each = pool.map(lambda name: _facts(files, name), masks)
        shown = progress(each, f"looking into {len(masks):,} masks of {title}", len(masks))
        for number, facts in enumerate(shown if len(masks) >= KEPT_FROM else each):
            for fact, pixels in facts.items():
                counts[fact] += pixels
                first.setdefault(fact, number)
            values = {of for what, of, _ in facts if what == _VALUE}
            if ends is not None:
                full = values | {0} == set(range(max(values, default=0) + 1))
                ends = ends | {len(values | {0}) - 1} if full else None
    rows = [(*fact, pixels, first[fact]) for fact, pixels in sorted(counts.items())]
    rows += [(_END, end, 0, 0, 0) for end in sorted(ends or ())]
    return np.array(rows, np.int64).reshape(-1, 5)


def held(rows: np.ndarray) -> Held:
    of = {what: rows[rows[:, 0] == what][:, 1:].tolist() for what in (_VALUE, _LEVEL, _COLOUR, _END, _ALPHA)}
    return Held(
        values={value: pixels for value, _, pixels, _ in of[_VALUE]},
        levels={level: pixels for level, _, pixels, _ in of[_LEVEL]},
        colours={(value, colour): at for value, colour, _, at in of[_COLOUR]},
        ends=tuple(end for end, *_ in of[_END]),
        alpha=min((at for *_, at in of[_ALPHA]), default=-1),
        lossy=min((at for *_, at in of[_LEVEL]), default=-1),
        first={value: at for value, *_, at in of[_VALUE]},
    )


def _facts(files: Files, name: PurePosixPath) -> dict[tuple[int, int, int], int]:
    """{(what it tells, of what, and which colour): pixels} of one mask."""
    mask = read_mask(files, name)
    facts: dict[tuple[int, int, int], int] = {(_ALPHA, 0, 0): 1} if mask.alpha else {}
    values = mask.values
    if values.ndim == 3:
        packed = values.astype(np.int64) @ [1 << 16, 1 << 8, 1]
        colours, pixels = np.unique(packed, return_counts=True)
        for colour, count in zip(colours[:MOST_COLOURS].tolist(), pixels.tolist(), strict=False):
            facts[_COLOUR, _COLOURED, colour] = count
        black = int(pixels[colours == 0].sum())
        return facts | {(_VALUE, 255, 0): packed.size - black} | ({(_VALUE, 0, 0): black} if black else {})
    if values.dtype in (np.uint8, np.bool_):
        pixels = np.bincount(values.ravel(), minlength=256)
        used = np.flatnonzero(pixels)
        pixels = pixels[used]
    else:
        used, pixels = np.unique(values, return_counts=True)
    what = _LEVEL if mask.lossy else _VALUE
    facts |= {(what, value, 0): count for value, count in zip(used.tolist(), pixels.tolist(), strict=True)}
    if mask.palette is not None and used[-1] < len(mask.palette):
        colours = mask.palette[used].astype(np.int64) @ [1 << 16, 1 << 8, 1]
        if len(np.unique(colours)) == len(used):  # else its colours tell nothing
            pairs = zip(used.tolist(), colours.tolist(), pixels.tolist(), strict=True)
            facts |= {(_COLOUR, value, colour): count for value, colour, count in pairs}
    return facts


def kind_of(
    what: Held, title: str, name: Callable[[int], object], named: bool, void: int | None, say: Callable[[str], None]
) -> str:
    """The kind of the masks that hold this.

    Args:
      title: of the set, for messages.
      name: the file of a mask by its number.
      named: whether something names the classes.
      void: see `mask_values.targets_of`.
      say: takes lines on what was chosen.

    Raises:
      ValueError: where the values may mean several things; says how to choose.
    """
    values = what.values
    refuse_no_foreground(what, title, name)
    if negative := sorted(value for value in values if value < 0):
        if negative == [void]:
            return "index"
        raise ValueError(
            f"{title}: its masks hold negative values, {negative[:5]}, e.g. {name(what.first[negative[0]])}; where these are "
            f"without data, --config.data.options=\"{{'kind': 'index', 'void': {negative[0]}}}\" leaves them out"
        )
    if what.levels:
        return _lossy(what, title, name)
    if _two_colours(what, title, name, named, void):
        return "binary"
    if set(values) <= {0, 255} or len(set(values) - {0}) == 1:
        return "binary"
    if named:
        return "index"
    between = {value for value in values if 0 < value < 255}
    spread = max(values) == 255 and len(between) > 4 and min(between) < LEAST_WHITE < max(between)
    if spread and sum(values[value] for value in between) < values[255]:
        say("masks have soft edges: 128 and more is foreground (data.options.kind says otherwise)")
        return "grey"
    if len(what.ends) > 2 and what.ends[-1] > 8:
        say(
            f"every mask counts from 0, one to {what.ends[0]} and one to {what.ends[-1]}: taken as numbers of objects "
            "(data.options.kind='index' takes them as classes)"
        )
        return "instance_map"
    numbers = set(values) - {0, void}
    sparse = max(numbers) >= _DENSE_TO and len(numbers) * _DENSE <= max(numbers)
    if len(numbers) > _MOST_UNNAMED or max(numbers) >= _MOST_VALUE or sparse:
        raise ValueError(
            f"{title}: its masks hold {len(values)} values up to {max(values)}, and nothing names so many classes "
            f"({shown([str(value) for value in sorted(values)], 5)}); say what they are: {_CHOOSE}"
        )
    return "index"


def refuse_no_foreground(what: Held, title: str, name: Callable[[int], object]) -> None:
    """Raises ValueError where no pixel of any mask is anything but background."""
    if set(what.values) <= {0} and not any(what.levels):
        drawn = f"; {name(what.alpha)} is drawn in its alpha channel, which is not read" if what.alpha >= 0 else ""
        raise ValueError(
            f"{title}: no mask holds anything but 0, the background{drawn}; expected masks whose values tell what is "
            "foreground; write them so"
        )


def _lossy(what: Held, title: str, name: Callable[[int], object]) -> str:
    """Of masks some of which are lossy: "binary", where nothing speaks against it."""
    example, numbers = name(what.lossy), sorted(set(what.values) - {0})
    if len(numbers) > 1:
        raise ValueError(
            f"{title}: some of its masks are lossy, e.g. {example}, whose values are not those that were drawn, and others "
            f"hold {numbers[:5]}; write all as PNG, or, where all but the background is foreground, say "
            "--config.data.options=\"{'kind': 'binary'}\""
        )
    pixels = np.bincount(list(what.levels), list(what.levels.values()), minlength=256)
    middle = pixels[_BETWEEN]
    top = int(middle.argmax()) + _BETWEEN.start
    plateau, white = pixels[top - _NEAR : top + _NEAR + 1].sum(), pixels[256 - 2 * _NEAR :].sum()
    beside = max(pixels[top - 3 * _NEAR : top - _NEAR].sum(), pixels[top + _NEAR + 1 : top + 3 * _NEAR + 1].sum())
    # Soft edges are of all greys, what is left of black by a high compression goes on to it, and white may be a lighter grey.
    if plateau > middle.sum() / 2 and plateau > 2 * beside and white / 5 < plateau < 10 * white:
        raise ValueError(
            f"{title}: its masks are lossy, e.g. {example}, and {plateau / pixels.sum():.0%} of their pixels are about "
            f"{top}, between black and white: a class of its own? write the masks as PNG of class numbers, or say "
            "--config.data.options=\"{'kind': 'binary'}\" where 128 and more is foreground"
        )
    return "binary"


def _two_colours(what: Held, title: str, name: Callable[[int], object], named: bool, void: int | None) -> bool:
    """Whether the masks are told from the background by colour: they hold black and one other, in whatever order.

    Raises:
      ValueError: where colours tell more, and no number of a mask tells it: for colour images of several colours, palettes in
        which a number has several colours, and those in which black is no background.
    """
    if not what.colours:
        return False
    of: dict[int, dict[int, int]] = {}  # {value: {colour: where}}
    for (value, colour), at in what.colours.items():
        of.setdefault(value, {})[colour] = at
    either = len({colour for _, colour in what.colours} - {0}) == 1
    drawn = {colour: at for colour, at in of.pop(_COLOURED, {}).items() if colour}
    if drawn:
        if either and set(what.values) <= {0, 255}:
            return True
        several = shown([f"{_rgb(colour)} in {name(at)}" for colour, at in drawn.items()])
        raise ValueError(
            f"{title}: its masks are colour images, {several}{'' if len(drawn) > 1 else ', and others hold numbers'}; expected "
            "grey or palette PNG of class numbers, or black and one colour, the same for all; write the masks so, or say "
            "--config.data.options=\"{'kind': 'binary'}\" where all but black is foreground"
        )
    if any(len(colours) > 1 for colours in of.values()):
        if either:
            return True
        value, colours = next((value, colours) for value, colours in sorted(of.items()) if len(colours) > 1)
        raise ValueError(
            f"{title}: number {value} of its palettes is {shown([f'{_rgb(c)} in {name(at)}' for c, at in colours.items()])}; "
            "expected one colour for a number in all masks; write them with one palette, or say "
            "--config.data.options=\"{'kind': 'index'}\" where the numbers count, 'binary' where all but black is foreground"
        )
    black = next((value for value, colours in of.items() if 0 in colours), 0)
    if black not in (0, void) and len(of) > 2 and 0 in of and not named:
        raise ValueError(
            f"{title}: black is number {black} of its palettes, and 0, the background, is {_rgb(next(iter(of[0])))}, e.g. "
            f"{name(of[black][0])}; write what is background as 0, or say --config.data.options=\"{{'kind': 'index'}}\" where "
            "the numbers are right as they are"
        )
    return False


def _rgb(colour: int) -> str:
    return f"({colour >> 16}, {colour >> 8 & 255}, {colour & 255})"

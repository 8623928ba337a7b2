"""The points of a sweep: a grid or a random sample, with every seed."""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Point(NamedTuple):
    """name: of its workdir; values: {key: text} of what varies but the seed; overrides: {key: text} of all that is given."""

    name: str
    seed: int
    values: dict[str, str]
    overrides: dict[str, str]


def split_values(text: str) -> list[str]:
    """ "0.1,0.2" -> ["0.1", "0.2"]; commas within brackets or quotes do not divide: "(8,8),(16,16)"."""
    values, depth, quote, current = [], 0, "", ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        else:
            depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0 and not quote:
            values.append(current)
            current = ""
        else:
            current += character
    return [value.strip() for value in (*values, current)]


def _key_and_text(text: str, flag: str) -> tuple[str, str]:
    key, equals, values = text.partition("=")
    if not equals or not key or not values:
        raise ValueError(f"--{flag} {text}: expected KEY=VALUES, e.g. --{flag} optim.learning_rate=0.01,0.02")
    return key.removeprefix("config."), values


def grid(texts: Sequence[str]) -> list[dict[str, str]]:
    """Every combination, the last key varying fastest."""
    axes = [(key, split_values(values)) for key, values in (_key_and_text(text, "grid") for text in texts)]
    _check_keys("grid", [key for key, _ in axes])
    keys = [key for key, _ in axes]
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*(values for _, values in axes))]


def _check_keys(flag: str, keys: Sequence[str]) -> None:
    if len(set(keys)) < len(keys):
        raise ValueError(f"--{flag}: a key twice among {keys}")
    if "seed" in keys:
        raise ValueError(f"--{flag} seed: give seeds as --seeds=0,1,2")


def sample(texts: Sequence[str], count: int, seed: int) -> list[dict[str, str]]:
    """`count` draws, of which a point that comes again is left out; those of fewer are the first of those of more."""

    def draw(key: str, text: str, number: int) -> str:
        rng = np.random.default_rng([seed, number, int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")])
        parts, values = text.split(":"), split_values(text)
        if len(parts) == 1 or len(values) > 1:  # names of values may have colons
            return values[rng.integers(len(values))]
        try:
            low, high, kind = float(parts[0]), float(parts[1]), parts[2] if len(parts) > 2 else ""
        except ValueError:
            low, high, kind = math.nan, math.nan, ""
        if (
            not (low <= high and math.isfinite(low) and math.isfinite(high))
            or kind not in ("", "log", "int")
            or (kind == "log" and low <= 0)
            or (kind == "int" and not (low.is_integer() and high.is_integer()))
            or len(parts) > 3
        ):
            raise ValueError(
                f"--sample {key}={text}: expected LOW:HIGH of finite numbers, LOW:HIGH:log with LOW above 0, LOW:HIGH:int of "
                "whole numbers, or V1,V2"
            )
        if kind == "int":
            return str(rng.integers(int(low), int(high) + 1))
        value = math.exp(rng.uniform(math.log(low), math.log(high))) if kind == "log" else rng.uniform(low, high)
        return rounded if low <= float(rounded := f"{value:.4g}") <= high else repr(min(max(value, low), high))

    if count < 1:
        raise ValueError(f"--random={count}; expected 1 or more")
    axes = [_key_and_text(text, "sample") for text in texts]
    _check_keys("sample", [key for key, _ in axes])
    drawn = [{key: draw(key, text, number) for key, text in axes} for number in range(count)]
    return [point for number, point in enumerate(drawn) if point not in drawn[:number]]


def seeds_of(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 0 or (len(numbers) == 1 and "," not in text and numbers[0] < 1):
        raise ValueError(f"--seeds={text}; expected how many, or a list such as 3,5,8")
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"--seeds={text} has a seed twice: that is one run, and no evidence of another; give each once")
    return list(range(numbers[0])) if len(numbers) == 1 and "," not in text else numbers


def points(combinations: Sequence[Mapping[str, str]], seeds: Sequence[int], common: Mapping[str, str]) -> list[Point]:
    """A point a combination and seed, with names that are different and fit into a path."""
    made: list[Point] = []
    for values in combinations:
        for seed in seeds:
            words = [f"{key.rpartition('.')[2]}={value}" for key, value in values.items()] + [f"seed={seed}"]
            name = "_".join(re.sub(r"[^\w.=+-]+", "-", word).strip("-") for word in words)
            if len(name) > 120 or any(point.name == name for point in made):
                name = f"{name[:90]}_{hashlib.sha256(json.dumps(values).encode()).hexdigest()[:8]}_seed={seed}"
            made.append(Point(name, seed, dict(values), {**common, **values, "seed": str(seed)}))
    return made

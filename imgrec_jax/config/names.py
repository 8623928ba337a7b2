"""What in a config names something: code of the user's own, or a word that is like another."""

import difflib
import re
from collections.abc import Iterable

from ml_collections import ConfigDict

from imgrec_jax.config.stored import flatten

# Where a config may name code of the user's own: "my_file.py:Name" or "package.module:Name"; not "mnist:3.0.1".
NAME_KEYS = ("model.name", "loss.name", "optim.name", "data.name")
OP_SECTIONS = ("data.train_ops", "data.eval_ops")
_OWN = re.compile(r".+\.py:[A-Za-z_]\w*|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_own(name: object) -> bool:
    """Whether a name means code of the user's own."""
    return isinstance(name, str) and _OWN.fullmatch(name) is not None


def own_names(config: ConfigDict) -> dict[str, str]:
    """{key: name} of all code of the user's own that a config names."""
    flat = flatten(config)
    ops = (key for key in flat if key.startswith(OP_SECTIONS) and key.endswith(".op"))
    return {key: str(flat[key]) for key in (*NAME_KEYS, *ops) if is_own(flat.get(key))}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'adam'?", or "" where nothing known is like the word."""
    close = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""

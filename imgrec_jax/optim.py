"""Optimisers: schedules, per-parameter rules and the chain that they make.

Rules are lists of `(regex, value)` over parameter names such as `backbone/layer1_0/conv1/kernel`. The first rule whose regex
is found (`re.search`) in a name wins, and every parameter must be matched by one.
"""

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

Rules = Sequence[tuple[str, float]]

# Optimisers whose own weight decay is decoupled from the gradient (Loshchilov & Hutter 2017, arXiv 1711.05101).
DECOUPLED = ("adamw", "nadamw", "adamaxw", "adan", "lion", "adabelief", "muon")
# Optimisers that decay in the midst of their step, and what optax calls it: Lamb between Adam's step and the trust ratio
# (You et al. 2019, arXiv 1904.00962), NovoGrad within its momentum (Ginsburg et al. 2019, arXiv 1905.11286), Adafactor after
# its own scaling and not times the learning rate. These are given their decay by optax itself.
INSIDE = {"lamb": "weight_decay", "novograd": "weight_decay", "adafactor": "weight_decay_rate"}
# What a train step does not have: it hands over the gradient of a batch, the optimiser's state and the parameters.
REFUSED = {
    "lbfgs": "the loss as a function, for its line search",
    "polyak_sgd": "the value of the loss",
    "dpsgd": "the gradient of every example",
}


def parameter_names(params: Any) -> list[str]:
    """Names in tree order: path entries joined by "/"."""
    return ["/".join(str(getattr(key, "key", key)) for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def match_rules(rules: Rules, params: Any, what: str) -> Any:
    """A tree like `params` of the value of the first matching rule.

    Raises:
      ValueError: for a parameter without a rule, or a rule that wins nowhere.
    """
    names = parameter_names(params)
    used, values = set(), []
    for name in names:
        index = next((i for i, (regex, _) in enumerate(rules) if re.search(regex, name)), None)
        if index is None:
            raise ValueError(f"no {what} rule matches parameter {name!r}; end the list with ('.*', value)")
        used.add(index)
        values.append(rules[index][1])
    idle = [rules[i][0] for i in range(len(rules)) if i not in used]
    if idle:
        raise ValueError(f"{what} rules that match no parameter first: {idle}; the parameters are {names[:20]}")
    return jax.tree.unflatten(jax.tree.structure(params), values)


def make_schedule(
    name: str,
    *,
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    warmup_factor: float = 0.0,
    final_factor: float = 0.0,
    boundaries: Sequence[int] = (),
    gamma: float = 0.1,
    power: float = 0.9,
    peak_fraction: float = 0.3,
    div_factor: float = 25.0,
) -> Callable[[jax.Array], jax.Array]:
    """step -> learning rate.

    Args:
      name: "constant", "step", "cosine", "polynomial" or "one_cycle".
      learning_rate: the peak.
      total_steps: of the run, warm-up included.
      warmup_steps: linear warm-up from `warmup_factor` x the peak (not for one_cycle, which has its own).
      final_factor: share of the peak at the end (cosine, polynomial, one_cycle).
      boundaries, gamma: "step" multiplies by gamma at each of these steps.
      power: of "polynomial": (1 - t)^power.
      peak_fraction, div_factor: of "one_cycle" (Smith & Topin 2017, arXiv 1708.07120): where the peak lies, and the peak
        over the first rate; linear up, cosine down.
    """
    known = ("constant", "step", "cosine", "polynomial", "one_cycle")
    if name not in known:
        raise ValueError(f"unknown schedule {name!r}; choose one of {list(known)}")

    def factor(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        if name == "one_cycle":
            peak = max(peak_fraction * total_steps, 1.0)
            up = 1 / div_factor + (1 - 1 / div_factor) * step / peak
            done = jnp.clip((step - peak) / max(total_steps - peak, 1.0), 0.0, 1.0)
            return jnp.where(step < peak, up, final_factor + (1 - final_factor) * 0.5 * (1 + jnp.cos(jnp.pi * done)))
        done = jnp.clip((step - warmup_steps) / max(total_steps - warmup_steps, 1), 0.0, 1.0)
        if name == "cosine":
            value = final_factor + (1 - final_factor) * 0.5 * (1 + jnp.cos(jnp.pi * done))
        elif name == "polynomial":
            value = final_factor + (1 - final_factor) * (1 - done) ** power
        elif name == "step":
            value = gamma ** jnp.sum(step >= jnp.asarray(np.array(boundaries, np.float32)))
        else:
            value = jnp.ones(())
        if warmup_steps:
            value *= warmup_factor + (1 - warmup_factor) * jnp.minimum(step / warmup_steps, 1.0)
        return value

    return lambda step: learning_rate * factor(step)


def make_optimizer(
    name: str | Callable[..., optax.GradientTransformation],
    *,
    schedule: Callable[[jax.Array], jax.Array],
    params: Any,
    options: dict[str, Any] | None = None,
    weight_decay: Rules = (),
    lr_multiplier: Rules = (),
    frozen: Sequence[str] = (),
    unfreeze_at: int | None = None,
    layer_decay: float = 1.0,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Builds the chain: clip, coupled decay, the optimiser, decoupled decay, per-parameter rates; what is frozen stands still.

    Where optax's optimiser takes a weight decay, one rule for all parameters makes the steps that optax makes with that decay.

    Args:
      name: any optimiser of optax that takes a schedule as its learning rate, "sgd", "adam", "adamw", "lion", ..., or "muon" as
        below; but none that needs more than gradients, state and parameters (REFUSED). Or a function
        (learning_rate=schedule, **options) -> transformation of one's own; a decay of one's own is an option of its own.
      schedule: step -> learning rate.
      params: the parameters, for their names.
      options: further arguments of the optimiser, e.g. {"momentum": 0.9, "nesterov": True}.
      weight_decay: rules; for the optimisers in DECOUPLED added to the step, times the learning rate; for those in INSIDE where
        optax adds it; for all others added to the gradient (L2).
      lr_multiplier: rules; factors on the learning rate.
      frozen: regexes of parameters that are not trained and have no optimiser state.
      unfreeze_at: step from which the frozen ones are trained, too, with an optimiser state of their own that begins there.
      layer_decay: factor on the rate from each block of the backbone to the one before it (`block_depths`).
      clip_norm: largest global norm of the trained parameters' gradient.

    Raises:
      ValueError: an optimiser that is unknown or cannot be used here, or an unknown option, with what exists; rules beside a
        decay among the options.
    """
    options = options or {}
    twice = [key for key in ("weight_decay", "weight_decay_rate") if weight_decay and options.get(key)]
    if twice:
        raise ValueError(
            f"optim.options: {twice[0]}={options[twice[0]]} and optim.weight_decay={weight_decay} would both decay; give one"
        )
    decay = match_rules(weight_decay, params, "weight_decay") if weight_decay else None
    multipliers = [match_rules(lr_multiplier, params, "lr_multiplier")] if lr_multiplier else []
    if layer_decay != 1.0:
        depths = block_depths(params)
        if not any(jax.tree.leaves(depths)):
            raise ValueError(
                f"optim.layer_decay={layer_decay} changes nothing: this model has no parameters under backbone/; take "
                "optim.lr_multiplier"
            )
        multipliers.append(jax.tree.map(lambda depth: layer_decay**depth, depths))

    together = clip_norm is not None and bool(frozen) and unfreeze_at is not None

    def chain(schedule: Callable[[jax.Array], jax.Array]) -> optax.GradientTransformation:
        parts = [optax.identity() if together else optax.clip_by_global_norm(clip_norm)] if clip_norm else []
        core = _core(name, schedule, options)
        # `partition` hands on the parameters with others masked; the trees of values are masked the same way by `_like`.
        if decay is not None and name not in DECOUPLED and name not in INSIDE:
            parts.append(_add_decay(decay, None))
        if decay is not None and name in INSIDE:
            cores = {d: _core(name, schedule, {**options, INSIDE[name]: d}) for d in set(jax.tree.leaves(decay))}
            core = optax.partition(cores, lambda params: _like(decay, params))
        parts.append(core)
        if decay is not None and name in DECOUPLED:
            parts.append(_add_decay(decay, schedule))
        return optax.chain(*parts, *map(_multiply, multipliers))

    if not frozen:
        return chain(schedule)
    later = optax.set_to_zero()
    if unfreeze_at is not None:
        later = _from_step(unfreeze_at, chain(lambda step: schedule(step + unfreeze_at)))
    labels = frozen_labels(frozen, params)
    parts = optax.partition({"train": chain(schedule), "frozen": later}, labels)
    return _clipped(clip_norm, labels, unfreeze_at, parts) if together and clip_norm and unfreeze_at is not None else parts


def _clipped(norm: float, labels: Any, unfreeze_at: int, tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` after clipping to the norm over all that is trained at a step: what is frozen counts from `unfreeze_at` on."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        counts = state.inner_states["frozen"].inner_state.step >= unfreeze_at
        trained = jax.tree.map(lambda u, label: u if label == "train" else jnp.where(counts, u, 0), updates, labels)
        scale = jnp.minimum(1.0, norm / jnp.maximum(optax.global_norm(trained), jnp.finfo(jnp.float32).tiny))
        return tx.update(jax.tree.map(lambda u: u * scale.astype(u.dtype), updates), state, params)

    return optax.GradientTransformation(tx.init, update)


class _FromStepState(NamedTuple):
    step: jax.Array
    inner: Any


def _from_step(first: int, tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Stands still, with its state, before step `first`."""

    def init(params: Any) -> _FromStepState:
        return _FromStepState(jnp.zeros((), jnp.int32), tx.init(params))

    def update(updates: Any, state: _FromStepState, params: Any = None) -> tuple[Any, _FromStepState]:
        moves = state.step >= first
        new, inner = tx.update(updates, state.inner, params)
        new = jax.tree.map(lambda u: jnp.where(moves, u, jnp.zeros_like(u)), new)
        inner = jax.tree.map(lambda a, b: jnp.where(moves, a, b), inner, state.inner)
        return new, _FromStepState(optax.safe_increment(state.step), inner)

    return optax.GradientTransformation(init, update)


# Of a backbone's parameters, the block that they are of: its name, and how it is placed among the blocks.
_BLOCK = re.compile(
    r"(?:^|/)(?P<kind>layer|blocks_|features_|denseblock|down|merge|transition)(?P<stage>\d+)(?:_(?:denselayer)?(?P<index>\d+))?"
)
_BEFORE = ("down", "merge")  # the blocks of their stage


def block_depths(params: Any) -> Any:
    """A tree like `params` of how many blocks lie between a parameter and the head: 0 for all outside of the backbone."""
    names = parameter_names(params)

    def place(name: str) -> tuple[int, int] | None:
        if not name.startswith("backbone/"):
            return None
        if (match := _BLOCK.search(name)) is None:
            # What is before the first block, and a transformer's last norm.
            return (10**6, 0) if name.startswith(("backbone/norm/", "backbone/fpn/")) else (-1, 0)
        index = -1 if match["kind"] in _BEFORE else 10**6 if match["kind"] == "transition" else int(match["index"] or 0)
        return int(match["stage"]), index

    places = [place(name) for name in names]
    order = sorted({where for where in places if where is not None})
    depths = [0 if where is None else len(order) - order.index(where) for where in places]
    return jax.tree.unflatten(jax.tree.structure(params), depths)


def frozen_labels(frozen: Sequence[str], params: Any) -> Any:
    """A tree of "frozen" or "train"; ValueError when a regex finds no parameter."""
    names = parameter_names(params)
    for regex in frozen:
        if not any(re.search(regex, name) for name in names):
            raise ValueError(f"optim.frozen: {regex!r} matches no parameter; the parameters are {names[:20]}")
    labels = ["frozen" if any(re.search(regex, name) for regex in frozen) else "train" for name in names]
    return jax.tree.unflatten(jax.tree.structure(params), labels)


class MuonState(NamedTuple):
    count: jax.Array  # type: ignore[assignment]  # optax's own name; it hides `tuple.count`
    momentum: Any


def muon(
    learning_rate: Any,
    *,
    beta: float = 0.95,
    ns_steps: int = 5,
    b1: float = 0.9,
    b2: float = 0.999,
    vectors: str = r"logits|score|pred|head/kernel|(^|/)fc/kernel|token|embedding|bias_table",
) -> optax.GradientTransformation:
    """Muon (https://github.com/KellerJordan/Muon): kernels move by their orthogonalised momentum, the rest by Adam.

    A kernel is taken as a matrix: all axes but the last, by the last. Its step is not Adam's in size: give it a rate of its own
    with `lr_multiplier`. The steps are those of `optax.contrib.muon` up to rounding, in less time (`orthogonalise`).

    Args:
      learning_rate: number or schedule, of both.
      beta, ns_steps: momentum and Newton-Schulz iterations of the kernels.
      b1, b2: of Adam.
      vectors: regex of parameters that Adam takes whatever their shape; by default the classifiers' kernels, and a
        transformer's tokens, embeddings and tables.
    """

    def labels(params: Any) -> Any:
        names = parameter_names(params)
        is_kernel = [
            p.ndim >= 2 and not re.search(vectors, name) for name, p in zip(names, jax.tree.leaves(params), strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(params), ["kernels" if kernel else "vectors" for kernel in is_kernel])

    kernels = optax.chain(_orthogonal_momentum(beta, ns_steps), optax.scale_by_learning_rate(learning_rate))
    return optax.partition({"kernels": kernels, "vectors": optax.nadam(learning_rate, b1=b1, b2=b2)}, labels)


def _orthogonal_momentum(beta: float, ns_steps: int) -> optax.GradientTransformation:
    """Nesterov's momentum without bias, orthogonalised, and larger for kernels with more outputs than inputs."""

    def init(params: Any) -> MuonState:
        return MuonState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(gradients: Any, state: MuonState, params: Any = None) -> tuple[Any, MuonState]:
        count = state.count + 1
        momentum = optax.tree.update_moment(gradients, state.momentum, beta, 1)
        ahead, now = 1 - beta ** (count + 1.0), 1 - beta ** (count + 0.0)

        def one(m: jax.Array, g: jax.Array) -> jax.Array:
            step = beta * m / ahead + (1 - beta) * g / now
            matrix = step.reshape(-1, step.shape[-1])
            growth = max(1.0, matrix.shape[1] / matrix.shape[0]) ** 0.5
            return growth * orthogonalise(matrix, ns_steps).reshape(step.shape)

        return jax.tree.map(one, momentum, gradients), MuonState(count, momentum)

    return optax.GradientTransformation(init, update)


def orthogonalise(x: jax.Array, steps: int) -> jax.Array:
    """x [m, n] with its singular values brought near 1 by Newton-Schulz iterations x <- x (a + b G + c G^2), G = x'x.

    All iterates are x times polynomials of the first G (on x's shorter side), so that only two products are of x's size: G and
    the last one. The train step of the scenes' U-Net (config of commit e2c9a45) takes 46 ms where it took 53 with
    `optax.contrib.muon` (2 AVX2 cores).
    """
    a, b, c = 3.4445, -4.7750, 2.0315  # github.com/KellerJordan/Muon: steepest at 0
    tall = x.shape[0] >= x.shape[1]
    gram = x.T @ x if tall else x @ x.T
    square = jnp.trace(gram) + 1e-16  # of the Frobenius norm, which bounds the singular values
    gram = gram / square
    identity = jnp.eye(gram.shape[0], dtype=x.dtype)
    product = identity * jax.lax.rsqrt(square)
    for step in range(steps):
        polynomial = a * identity + b * gram + c * (gram @ gram)
        product = product @ polynomial
        if step < steps - 1:
            gram = polynomial @ gram @ polynomial
    return x @ product if tall else product @ x


def find(name: str | Callable) -> Callable:
    """The optimiser of that name, of optax or of this file; ValueError for one that is unknown or cannot be used."""
    if callable(name):
        return name
    known = _optimisers()
    if name in REFUSED:
        raise ValueError(
            f"optimiser {name!r} needs {REFUSED[name]}, which a train step does not have; choose one of {sorted(known)}"
        )
    if name not in known:
        raise ValueError(f"unknown optimiser {name!r}; optax has {sorted(set(known) - {'muon'})}, and there is 'muon'")
    return known[name]


def _core(name: str | Callable, schedule: Callable, options: dict[str, Any]) -> optax.GradientTransformation:
    factory = find(name)
    accepted = set(inspect.signature(factory).parameters) - {"learning_rate"}
    unknown = set(options) - accepted
    given, name = name, getattr(name, "__name__", name)
    if unknown:
        raise ValueError(f"optim.options: {name} takes no {sorted(unknown)}; it takes {sorted(accepted)}")
    if "weight_decay" in accepted and "weight_decay" not in options and not callable(given):
        options = {**options, "weight_decay": 0.0}  # decay comes from the rules alone
    try:
        tx = factory(learning_rate=schedule, **options)
        # One step of a small kernel, by its shapes alone: what cannot be used is named now, not when training begins.
        kernel = {"kernel": jax.ShapeDtypeStruct((2, 2), jnp.float32)}
        jax.eval_shape(tx.update, kernel, jax.eval_shape(tx.init, kernel), kernel)
    except Exception as error:
        raise ValueError(
            f"optimiser {name!r} with options {options} cannot be used with gradients, state and parameters alone, and with a "
            f"schedule as its learning rate: {error}"
        ) from error
    return tx


def _optimisers() -> dict[str, Callable]:
    """Those of optax by name, and ours: what takes a learning rate and is no mere part of an optimiser."""
    factories = {
        name: value
        for name, value in vars(optax).items()
        if inspect.isfunction(value) or isinstance(value, functools.partial)  # nadam and nadamw are partials
        if not name.startswith(("_", "scale_by_")) and name not in REFUSED
    }
    taken = {n: f for n, f in factories.items() if "learning_rate" in inspect.signature(f).parameters}
    return {**taken, "muon": muon}


def _stateless(update: Callable) -> optax.GradientTransformation:
    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _multiply(multipliers: Any) -> optax.GradientTransformation:
    def update(updates, state, params=None):
        return jax.tree.map(lambda u, m: u * m, updates, _like(multipliers, updates)), state

    return _stateless(update)


def _add_decay(decay: Any, schedule: Callable | None) -> optax.GradientTransformation:
    """Adds decay * p to the gradient, or -rate * decay * p to the step where a schedule is given."""

    def update(updates, state, params=None):
        sign = 1.0 if schedule is None else -schedule(state.count)
        new = jax.tree.map(lambda u, d, p: u + sign * d * p if d else u, updates, _like(decay, updates), params)
        return new, state if schedule is None else optax.ScaleByScheduleState(optax.safe_increment(state.count))

    init = optax.EmptyState() if schedule is None else optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))
    return optax.GradientTransformation(lambda params: init, update)


def _like(values: Any, updates: Any) -> Any:
    """`values` with `MaskedNode` wherever `updates` has one."""
    is_masked = lambda node: isinstance(node, optax.MaskedNode)  # noqa: E731
    return jax.tree.map(lambda u, v: u if is_masked(u) else v, updates, values, is_leaf=is_masked)

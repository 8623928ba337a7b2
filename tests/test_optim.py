import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from imgrec_jax import optim
from imgrec_jax.models.classifiers import CLASSIFIERS

PARAMS = {"conv": {"kernel": jnp.array([1.0, 2.0]), "bias": jnp.array([3.0])}, "head": {"kernel": jnp.array([4.0])}}
GRADS = jax.tree.map(jnp.ones_like, PARAMS)


def one_update(**kwargs):
    options = {"name": "sgd", "schedule": lambda step: 0.1, "params": PARAMS} | kwargs
    tx = optim.make_optimizer(options.pop("name"), **options)
    return tx.update(GRADS, tx.init(PARAMS), PARAMS)[0]


def test_first_rule_wins_and_every_parameter_needs_one():
    tree = optim.match_rules((("bias", 0.0), ("conv", 2.0), (".*", 3.0)), PARAMS, "weight_decay")
    assert tree == {"conv": {"kernel": 2.0, "bias": 0.0}, "head": {"kernel": 3.0}}
    with pytest.raises(ValueError, match="no weight_decay rule matches parameter 'head/kernel'"):
        optim.match_rules((("conv", 1.0),), PARAMS, "weight_decay")
    with pytest.raises(ValueError, match=r"match no parameter first: \['hed'\]"):
        optim.match_rules((("hed", 1.0), (".*", 0.0)), PARAMS, "weight_decay")


def test_coupled_weight_decay_is_added_to_the_gradient():
    updates = one_update(weight_decay=(("kernel", 0.5), (".*", 0.0)))
    np.testing.assert_allclose(updates["conv"]["kernel"], -0.1 * (1 + 0.5 * np.array([1.0, 2.0])), rtol=1e-6)
    np.testing.assert_allclose(updates["conv"]["bias"], [-0.1], rtol=1e-6)


def test_decoupled_weight_decay_equals_optax_adamw():
    mine = one_update(name="adamw", weight_decay=((".*", 0.3),))
    tx = optax.adamw(0.1, weight_decay=0.3)
    expected = tx.update(GRADS, tx.init(PARAMS), PARAMS)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), mine, expected)


def test_adamw_without_rules_decays_nothing():
    tx = optax.adam(0.1)
    expected = tx.update(GRADS, tx.init(PARAMS), PARAMS)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one_update(name="adamw"), expected)


NUMBERS_ONLY = {"optimistic_adam", "rprop", "sm3"}  # they take no schedule as their learning rate
MORE_THAN_GRADIENTS = {"lbfgs", "polyak_sgd", "dpsgd"}
OFFERED = sorted(
    name
    for name, value in vars(optax).items()
    if not inspect.isclass(value) and not name.startswith(("_", "scale_by_"))
    if hasattr(value, "__code__") or hasattr(value, "func")
    if "learning_rate" in inspect.signature(value).parameters
)


def five_steps(tx):
    """Parameters of several shapes after five steps by gradients of several sizes."""
    rng = np.random.default_rng(0)
    shapes = {"conv": (3, 3, 4, 8), "dense": (8, 5), "bias": (5,)}
    params = {name: {"kernel": jnp.asarray(rng.normal(size=shape), jnp.float32)} for name, shape in shapes.items()}
    state = tx.init(params)
    for scale in (1.0, 1e-2, 30.0, 0.1, 1.0):
        gradients = jax.tree.map(lambda p, scale=scale: scale * jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params


def like_params():
    return {name: {"kernel": jnp.zeros(2)} for name in ("conv", "dense", "bias")}


def falling(step):
    return 0.02 / (1 + step)


@pytest.mark.parametrize("decayed", [False, True])
@pytest.mark.parametrize("name", [name for name in OFFERED if name not in NUMBERS_ONLY | MORE_THAN_GRADIENTS])
def test_every_optimiser_makes_the_steps_of_optax_s_own_with_and_without_decay(name, decayed):
    factory, options = getattr(optax, name), {"key": 0} if name == "noisy_sgd" else {}
    decay = {"weight_decay", "weight_decay_rate"} & set(inspect.signature(factory).parameters)
    if decayed and not decay:
        theirs = optax.chain(optax.add_decayed_weights(0.3), factory(learning_rate=falling, **options))  # L2, as for SGD
        theirs = five_steps(theirs if name != "adabelief" else optax.chain(
            optax.scale_by_belief(), optax.add_decayed_weights(0.3), optax.scale_by_learning_rate(falling)
        ))  # fmt: skip
    else:
        theirs = five_steps(factory(learning_rate=falling, **options, **dict.fromkeys(decay, 0.3 if decayed else 0.0)))
    rules = ((".*", 0.3),) if decayed else ()
    ours = optim.make_optimizer(name, schedule=falling, params=like_params(), options=options, weight_decay=rules)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6), five_steps(ours), theirs)


@pytest.mark.parametrize("name", ["lamb", "novograd", "adafactor", "adan", "lars"])
def test_rules_of_several_values_decay_each_parameter_as_its_own_optimiser_would(name):
    """These optimisers know no parameter but the one they move, so each moves as if its decay were that of all."""
    rules = (("conv", 0.3), ("dense", 0.1), (".*", 0.0))
    mixed = five_steps(optim.make_optimizer(name, schedule=falling, params=like_params(), weight_decay=rules))
    of = "weight_decay_rate" if name == "adafactor" else "weight_decay"
    for part, decay in (("conv", 0.3), ("dense", 0.1), ("bias", 0.0)):
        alone = five_steps(getattr(optax, name)(learning_rate=falling, **{of: decay}))
        np.testing.assert_allclose(mixed[part]["kernel"], alone[part]["kernel"], rtol=2e-6, atol=1e-6)


def test_decay_inside_an_optimiser_and_frozen_parameters_go_together():
    rules = (("dense", 0.1), (".*", 0.0))
    tx = optim.make_optimizer("lamb", schedule=falling, params=like_params(), weight_decay=rules, frozen=("conv",))
    frozen, free = five_steps(tx), five_steps(optax.lamb(falling, weight_decay=0.1))
    np.testing.assert_allclose(frozen["dense"]["kernel"], free["dense"]["kernel"], rtol=2e-6, atol=1e-6)
    start = five_steps(optax.set_to_zero())
    np.testing.assert_array_equal(frozen["conv"]["kernel"], start["conv"]["kernel"])


@pytest.mark.parametrize("name", sorted(NUMBERS_ONLY | MORE_THAN_GRADIENTS))
def test_what_a_train_step_cannot_use_is_refused_by_name_when_it_is_made(name):
    with pytest.raises(ValueError, match=f"optimiser '{name}'"):
        optim.make_optimizer(name, schedule=falling, params={})


def test_two_decays_are_refused():
    with pytest.raises(ValueError, match=r"weight_decay=0.1 and optim.weight_decay=.* would both decay"):
        one_update(name="adamw", options={"weight_decay": 0.1}, weight_decay=((".*", 0.3),))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_frozen_parameters_stand_still_and_have_no_state(name):
    tx = optim.make_optimizer(
        name, schedule=lambda step: 0.1, params=PARAMS, frozen=("conv",), clip_norm=1.0,
        weight_decay=((".*", 0.1),), lr_multiplier=(("head", 10.0), (".*", 1.0)),
    )  # fmt: skip
    state = tx.init(PARAMS)
    big = jax.tree.map(lambda p: p * 0 + 1e6, PARAMS)
    updates, _ = tx.update({**big, "head": GRADS["head"]}, state, PARAMS)
    assert not np.any(updates["conv"]["kernel"]) and not np.any(updates["conv"]["bias"])
    # The clipping norm is that of the trained parameters alone: the head's gradient of norm 1 passes whole.
    if name == "sgd":
        np.testing.assert_allclose(updates["head"]["kernel"], [-0.1 * 10 * (1 + 0.1 * 4)], rtol=1e-5)
    shapes = {leaf.shape for leaf in jax.tree.leaves(state)}
    assert (2,) not in shapes


def test_rate_multipliers_scale_the_whole_step():
    plain, scaled = one_update(name="adam"), one_update(name="adam", lr_multiplier=(("head", 10.0), (".*", 1.0)))
    np.testing.assert_allclose(scaled["head"]["kernel"], 10 * plain["head"]["kernel"], rtol=1e-6)
    np.testing.assert_allclose(scaled["conv"]["kernel"], plain["conv"]["kernel"])


def test_clipping():
    updates = one_update(clip_norm=0.5)
    assert float(optax.global_norm(updates)) == pytest.approx(0.05, rel=1e-5)


def test_unknown_names_are_listed():
    with pytest.raises(ValueError, match="unknown optimiser 'sdg'; optax has .*'adam'"):
        one_update(name="sdg")
    with pytest.raises(ValueError, match=r"sgd takes no \['beta'\]; it takes .*'momentum'"):
        one_update(options={"beta": 1})
    with pytest.raises(ValueError, match="unknown schedule 'cosin'"):
        optim.make_schedule("cosin", learning_rate=1.0, total_steps=10)


def test_schedules_at_points_one_can_compute():
    make = lambda name, **k: optim.make_schedule(name, learning_rate=2.0, total_steps=100, **k)  # noqa: E731
    assert float(make("constant")(50)) == 2.0
    assert float(make("cosine")(50)) == pytest.approx(1.0)
    assert float(make("cosine", final_factor=0.1)(100)) == pytest.approx(0.2)
    assert float(make("polynomial", power=0.9)(75)) == pytest.approx(2 * 0.25**0.9, rel=1e-6)
    step = make("step", boundaries=(30, 60), gamma=0.1)
    assert [float(step(s)) for s in (29, 30, 60)] == pytest.approx([2.0, 0.2, 0.02])
    one = make("one_cycle", peak_fraction=0.25, div_factor=10.0)
    assert [float(one(s)) for s in (0, 25, 100)] == pytest.approx([0.2, 2.0, 0.0], abs=1e-6)
    assert float(make("constant", warmup_steps=10, warmup_factor=0.001)(0)) == pytest.approx(0.002)
    assert float(make("constant", warmup_steps=10)(5)) == pytest.approx(1.0)


def test_schedule_matches_optax_where_both_exist():
    mine = optim.make_schedule("cosine", learning_rate=1.0, total_steps=100, warmup_steps=10)
    theirs = optax.warmup_cosine_decay_schedule(0.0, 1.0, 10, 100)
    steps = np.arange(100)
    np.testing.assert_allclose([mine(s) for s in steps], [theirs(s) for s in steps], atol=1e-6)


def test_muon_makes_the_steps_of_optax_s():
    def dimensions(path, p):
        skipped = p.ndim < 2 or path[0].key == "head"
        return None if skipped else contrib.MuonDimensionNumbers(tuple(range(p.ndim - 1)), p.ndim - 1)

    rng = np.random.default_rng(0)
    shapes = {"wide": (20, 96), "tall": (3, 3, 24, 64), "bias": (7,), "head": (9, 5)}
    params = {name: {"kernel": jnp.asarray(rng.normal(size=shape), jnp.float32)} for name, shape in shapes.items()}
    theirs = contrib.muon(
        0.1, beta=0.9, ns_steps=3, adam_b1=0.9, adam_b2=0.99,
        muon_weight_dimension_numbers=lambda p: jax.tree_util.tree_map_with_path(dimensions, p),
    )  # fmt: skip
    ours = optim.muon(0.1, beta=0.9, ns_steps=3, b1=0.9, b2=0.99)
    states = theirs.init(params), ours.init(params)
    for scale in (1.0, 1e-5, 300.0, 0.1):
        gradients = jax.tree.map(lambda p, scale=scale: scale * jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)
        (expected, first), (updates, second) = (
            tx.update(gradients, state, params) for tx, state in zip((theirs, ours), states, strict=True)
        )
        states = first, second
        jax.tree.map(lambda u, e: np.testing.assert_allclose(u, e, rtol=1e-3, atol=1e-5), updates, expected)


@pytest.mark.parametrize("shape", [(40, 8), (8, 40), (8, 8)])
def test_orthogonalise_keeps_the_singular_vectors_and_evens_the_values(shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    u, values, v = np.linalg.svd(optim.orthogonalise(jnp.asarray(x), 5), full_matrices=False)
    assert values.min() > 0.6 and values.max() < 1.3
    left, _, right = np.linalg.svd(x, full_matrices=False)
    polar = left @ right
    assert np.linalg.norm(u @ v - polar) < 1e-3 * np.linalg.norm(polar)
    assert not np.any(optim.orthogonalise(jnp.zeros(shape), 5))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_what_is_unfrozen_later_moves_from_then_on_as_if_training_began_there(name):
    """Up to rounding: with the schedule of the whole run, and an optimiser state of its own."""
    options = {"schedule": falling, "params": PARAMS, "weight_decay": ((".*", 0.1),)}
    tx = optim.make_optimizer(name, frozen=("conv",), unfreeze_at=2, **options)
    alone = optim.make_optimizer(name, **{**options, "schedule": lambda step: falling(step + 2)})
    free = optim.make_optimizer(name, **options)
    params, state = PARAMS, tx.init(PARAMS)
    expected, alone_state, all_params, free_state = PARAMS, alone.init(PARAMS), PARAMS, free.init(PARAMS)
    for step in range(4):
        updates, state = tx.update(GRADS, state, params)
        params = optax.apply_updates(params, updates)
        updates, free_state = free.update(GRADS, free_state, all_params)
        all_params = optax.apply_updates(all_params, updates)
        if step >= 2:
            updates, alone_state = alone.update(GRADS, alone_state, expected)
            expected = optax.apply_updates(expected, updates)
        np.testing.assert_allclose(params["conv"]["kernel"], expected["conv"]["kernel"], rtol=1e-6)
        np.testing.assert_allclose(params["head"]["kernel"], all_params["head"]["kernel"], rtol=1e-6)


def test_what_is_unfrozen_is_clipped_with_what_was_trained_before():
    """One norm over all that is trained at a step, and one direction."""
    tx = optim.make_optimizer("sgd", schedule=lambda step: 1.0, params=PARAMS, frozen=("conv",), unfreeze_at=1, clip_norm=0.5)
    whole = optim.make_optimizer("sgd", schedule=lambda step: 1.0, params=PARAMS, clip_norm=0.5)
    state = tx.init(PARAMS)
    first, state = tx.update(GRADS, state, PARAMS)
    assert float(optax.global_norm(first)) == pytest.approx(0.5, rel=1e-5) and not np.any(first["conv"]["kernel"])
    later, _ = tx.update(GRADS, state, PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), later, whole.update(GRADS, whole.init(PARAMS))[0])


@pytest.mark.parametrize("name", ["resnet18", "vit_b_32", "swin_t"])
def test_muon_leaves_heads_tokens_and_tables_to_adam(name):
    model = CLASSIFIERS[name](num_classes=10)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))["params"]
    state = jax.eval_shape(lambda: optim.muon(0.1).init(jax.tree.map(lambda x: jnp.zeros(x.shape), params)))
    momentum = state.inner_states["kernels"].inner_state[0].momentum
    kernels = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(momentum)]
    assert kernels and all(path.endswith("['kernel']") for path in kernels)
    assert not any(path.startswith("['fc']") for path in kernels)


def test_layers_nearer_to_the_image_get_lower_rates():
    names = {
        "backbone/conv1/kernel": 4, "backbone/layer1_0/conv1/kernel": 3, "backbone/layer1_1/bn1/scale": 2,
        "backbone/layer2_0/conv1/kernel": 1, "embedding/dense/kernel": 0, "fc/kernel": 0,
    }  # fmt: skip
    tree = {}
    for name in names:
        node, parts = tree, name.split("/")
        for part in parts[:-1]:
            node = node.setdefault(part, {})
        node[parts[-1]] = jnp.ones(1)
    depths = optim.block_depths(tree)
    assert dict(zip(optim.parameter_names(tree), jax.tree.leaves(depths), strict=True)) == names
    tx = optim.make_optimizer("sgd", schedule=lambda step: 1.0, params=tree, layer_decay=0.5)
    updates, _ = tx.update(tree, tx.init(tree), tree)
    assert updates["backbone"]["layer1_1"]["bn1"]["scale"] == -0.25 and updates["fc"]["kernel"] == -1.0


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("backbone/stem_conv/kernel", "backbone/blocks_0_0/project_conv/kernel"),
        ("backbone/blocks_0_1/fc1/kernel", "backbone/down1_norm/scale"),
        ("backbone/down1_conv/kernel", "backbone/blocks_1_0/fc1/kernel"),
        ("backbone/denseblock1_denselayer6/conv1/kernel", "backbone/transition1_conv/kernel"),
        ("backbone/transition1_conv/kernel", "backbone/denseblock2_denselayer1/conv1/kernel"),
        ("backbone/pos_embedding", "backbone/blocks_0/qkv/kernel"),
        ("backbone/blocks_2/qkv/kernel", "backbone/blocks_11/qkv/kernel"),
        ("backbone/features_2/kernel", "backbone/features_10/kernel"),
    ],
)
def test_blocks_are_in_the_order_of_the_network(first, second):
    tree = {first: jnp.ones(1), second: jnp.ones(1)}
    depths = optim.block_depths(tree)
    assert depths[first] == 2 and depths[second] == 1

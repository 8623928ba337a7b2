"""Merging loaded tensors: every difference is named, and is an error unless allowed."""

import jax.numpy as jnp
import numpy as np
import pytest

from imgrec_jax.pretrained.merge import MergeError, merge


def variables():
    return {
        "params": {
            "a": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3, jnp.bfloat16)},
            "norm": {"scale": jnp.ones(3)},
        },
        "batch_stats": {"norm": {"mean": jnp.zeros(3)}},
    }


def tensors():
    return {
        "a/kernel": np.full((2, 3), 2.0),
        "a/bias": np.full(3, 3.0, np.float16),
        "norm/scale": np.full(3, 4.0),
        "norm/mean": np.full(3, 5.0),
    }


def test_every_collection_is_filled_and_dtypes_are_the_variables():
    before = variables()
    merged, report = merge(before, tensors(), source_names={"a/kernel": "x.weight", "norm/mean": "norm/mean"})
    np.testing.assert_array_equal(merged["params"]["a"]["kernel"], np.full((2, 3), 2.0))
    np.testing.assert_array_equal(merged["batch_stats"]["norm"]["mean"], [5.0] * 3)
    assert merged["params"]["a"]["kernel"].dtype == jnp.float32
    assert merged["params"]["a"]["bias"].dtype == jnp.bfloat16
    assert report.renamed == (("x.weight", "a/kernel"),)
    assert len(report.loaded) == 4 and not (report.missing or report.unexpected or report.wrong_shape)
    np.testing.assert_array_equal(before["params"]["a"]["kernel"], np.zeros((2, 3)))  # the input is untouched


@pytest.mark.parametrize(
    ("change", "message", "allow"),
    [
        (lambda t: t.pop("a/bias"), "1 missing from the file: a/bias.*allow_missing", {"allow_missing": ["^a/"]}),
        (
            lambda t: t.update({"fc/bias": np.zeros(1)}),
            "1 unexpected in the file: fc/bias.*allow_unexpected",
            {"allow_unexpected": ["^fc/"]},
        ),
        (
            lambda t: t.update({"a/kernel": np.zeros((3, 2))}),
            r"1 of the wrong shape: a/kernel \(3, 2\) for \(2, 3\).*allow_wrong_shape",
            {"allow_wrong_shape": ["kernel"]},
        ),
    ],
)
def test_differences_are_errors_unless_allowed(change, message, allow):
    loaded = tensors()
    change(loaded)
    with pytest.raises(MergeError, match=message):
        merge(variables(), loaded)
    with pytest.raises(MergeError, match=message):
        merge(variables(), loaded, **{name: ["^zzz"] for name in allow})
    merged, report = merge(variables(), loaded, **allow)
    assert len(report.missing + report.unexpected + report.wrong_shape) == 1
    np.testing.assert_array_equal(merged["params"]["norm"]["scale"], [4.0] * 3)
    if report.wrong_shape:
        np.testing.assert_array_equal(merged["params"]["a"]["kernel"], np.zeros((2, 3)))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64", "bool"])
@pytest.mark.parametrize("path", ["a/kernel", "a/bias", "norm/mean"])
def test_integers_are_no_weights(dtype, path):
    """Quantised ones are theirs times a scale that is elsewhere."""
    loaded = tensors()
    loaded[path] = loaded[path].astype(dtype)
    with pytest.raises(MergeError, match=rf"^x\.weight is of {dtype}, .*expected floats"):
        merge(variables(), loaded, source_names={path: "x.weight"})


def test_numbers_beyond_the_variables_range_are_refused():
    loaded = tensors() | {"norm/scale": np.array([1.0, -1e39, 2.0])}
    with pytest.raises(MergeError, match=r"norm/scale has numbers that float32 cannot hold, up to 1e\+39"):
        merge(variables(), loaded)
    merge(variables(), tensors() | {"norm/scale": np.array([np.inf, 1e38, 1e-300])})  # infinite in the file itself


def test_report_prints_one_line_per_kind():
    loaded = tensors() | {"fc/bias": np.zeros(1)}
    _, report = merge(variables(), loaded, allow_unexpected=["fc"], source_names={"a/bias": "a.bias"})
    assert str(report).splitlines() == [
        "loaded          4  a/kernel, a/bias, norm/scale, ...",
        "renamed         1  a.bias -> a/bias",
        "missing         0",
        "unexpected      1  fc/bias",
        "wrong shape     0",
    ]


def test_one_path_in_two_collections_is_refused():
    with pytest.raises(MergeError, match="two collections"):
        merge({"params": {"a": jnp.zeros(1)}, "batch_stats": {"a": jnp.zeros(1)}}, {})

"""What is asked of own data before a file is opened, and of the parts they are cut into."""

import numpy as np
import pytest

from imgrec_jax import assemble
from imgrec_jax.assemble.data import check_overlap
from imgrec_jax.assemble.lookup import ConfigError
from imgrec_jax.config import load
from imgrec_jax.data.source import ArraySource, SourceInfo


def own(name="image_folder"):
    config = load(name)
    config.data.manual_dir = "d"
    return config


def test_any_top_k_may_be_asked_for_before_the_classes_are_known():
    config = own()
    config.eval.top_k = (1, 5)
    assemble.check(config)


def test_few_examples_of_several_labels_are_refused():
    config = own("image_folder:multi_label")
    config.data.examples_per_class = 3
    with pytest.raises(ConfigError, match="takes images of one class each"):
        assemble.check(config)


def test_parts_of_one_split_do_not_cut_through_a_group():
    config = own()
    config.data.train_split, config.data.validation_split, config.data.test_split = "train[:3]", "train[3:]", ""

    def part(tied):
        return ArraySource({"label": np.zeros(3, np.int32)}, SourceInfo("x", ("a", "b"), {"tied": np.array(tied)}, "", 6))

    check_overlap(config, part([0, 0, 1]), {"validation": part([2, 2, 3])})
    with pytest.raises(ConfigError, match="cut through what belongs together .*: 2 examples of validation"):
        check_overlap(config, part([0, 0, 1]), {"validation": part([1, 1, 2])})


def test_more_test_sets_are_parts_of_no_split():
    config = own()
    config.data.train_split, config.data.validation_split, config.data.test_split = "train[:3]", "train[3:]", ""
    one = ArraySource({"label": np.zeros(3, np.int32)}, SourceInfo("x", ("a", "b"), {}, "", 6))
    check_overlap(config, one, {"validation": one, "east": one})

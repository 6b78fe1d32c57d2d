"""From patterns to labels, frontier and BatchNorm modes."""

import re

import numpy as np
import pytest
from flax import nnx

from jaxtl.config.phases import everything, from_stage
from jaxtl.errors import UserError
from jaxtl.models import BatchNorm, batch_statistics, build, merge, split
from jaxtl.training.trainable import partition, running_momentum, select_trainable, training_graph

NETWORK = build("mobilenet_v2", num_classes=3, width=0.35)
PARAMETERS = split(NETWORK)[1].keys() - batch_statistics(NETWORK)


def test_the_first_match_wins_and_the_rest_is_frozen():
    rules = {"head/bias": 0.5, "head/.*": 1.0, "(top|block_16)/.*": 0.1}
    result = select_trainable(NETWORK, rules, "frozen")
    assert result.multipliers["head/bias"] == 0.5
    assert result.multipliers["head/kernel"] == 1.0
    assert result.multipliers["block_16/expand_bn/scale"] == 0.1
    frozen = {path for path in PARAMETERS if not re.match(r"(head|top|block_16)/", path)}
    assert {path for path, label in result.labels.items() if label == "frozen"} == frozen
    assert result.labels.keys() == PARAMETERS


@pytest.mark.parametrize(
    ("rules", "frontier"),
    [
        ({"head/.*": 1.0}, "head"),
        ({"head/.*": 1.0, "block_3/project/kernel": 0.1}, "block_3"),
        ({".*": 1.0}, "stem"),
    ],
)
def test_the_frontier_is_the_first_stage_with_anything_to_train(rules, frontier):
    assert select_trainable(NETWORK, rules, "frozen").frontier == frontier


def test_a_pattern_matches_whole_paths():
    with pytest.raises(UserError, match="matches no parameter"):
        select_trainable(NETWORK, {"head": 1.0}, "frozen")


def test_a_pattern_that_matches_nothing_is_refused_with_all_paths():
    with pytest.raises(UserError) as error:
        select_trainable(NETWORK, {"haed/.*": 1.0}, "frozen")
    listed = str(error.value).partition("the paths are ")[2]
    patterns = [re.compile(part) for part in listed.split(", ")]
    for path in PARAMETERS:
        assert any(pattern.fullmatch(path) for pattern in patterns), path


def test_statistics_cannot_be_trained():
    with pytest.raises(UserError, match="matches no parameter"):
        select_trainable(NETWORK, {"stem/bn/mean": 1.0}, "frozen")


def test_a_pattern_that_comes_too_late_is_refused():
    with pytest.raises(UserError, match="'head/bias' has no effect"):
        select_trainable(NETWORK, {"head/.*": 1.0, "head/bias": 0.1}, "frozen")


def test_a_broken_pattern_is_refused():
    with pytest.raises(UserError, match="not a regular expression"):
        select_trainable(NETWORK, {"(head": 1.0}, "frozen")


def test_statistics_move_only_where_scale_or_bias_trains():
    rules = {"head/.*": 1.0, "block_16/(depthwise|depthwise_bn)/.*": 1.0, "top/conv/kernel": 1.0}
    assert not select_trainable(NETWORK, rules, "frozen").statistics
    moving = select_trainable(NETWORK, rules, "train").statistics
    assert moving == {"block_16/depthwise_bn/mean", "block_16/depthwise_bn/var"}


def test_only_moving_batch_norms_are_in_training_mode():
    rules = {"head/.*": 1.0, "block_16/.*": 1.0}
    result = select_trainable(NETWORK, rules, "train")
    graph = training_graph(NETWORK, result, momentum=0.9, axis_name="data")
    modes = {
        "/".join(map(str, path)): module.training
        for path, module in nnx.iter_modules(merge(graph, split(NETWORK)[1]))
        if isinstance(module, BatchNorm)
    }
    training = {f"block_16/{part}_bn" for part in ("expand", "depthwise", "project")}
    assert {name for name, mode in modes.items() if mode} == training
    originals = [m for _, m in nnx.iter_modules(NETWORK) if isinstance(m, BatchNorm)]
    assert not any(m.training for m in originals)  # the network itself stays as it was


@pytest.mark.parametrize("steps", [1, 100, 868, 10_000, 1_000_000])
def test_momentum_lets_the_statistics_settle_within_the_phase(steps):
    momentum = running_momentum(steps)
    assert 0.9 <= momentum <= 0.99
    if steps >= 200:  # what the statistics began with weighs under 1e-8 of itself at the end
        assert momentum**steps < 1e-8


@pytest.mark.parametrize(
    ("steps", "momentum"), [(1, 0.9), (200, 0.9), (1000, 0.98), (2000, 0.99), (9000, 0.99)]
)
def test_momentum_is_a_twentieth_of_the_phase_within_bounds(steps, momentum):
    assert running_momentum(steps) == pytest.approx(momentum)


def test_partition_loses_and_copies_nothing():
    variables = {"a": np.ones(1), "b": np.ones(2), "c": np.ones(3)}
    inside, outside = partition(variables, ["a", "c"])
    assert inside == {"a": variables["a"], "c": variables["c"]}
    assert outside == {"b": variables["b"]}


def test_training_batch_norms_without_a_trained_scale_or_bias_is_refused():
    with pytest.raises(UserError, match="updates no statistics"):
        select_trainable(NETWORK, {"(head|block_16)/.*kernel": 1.0}, "train")


@pytest.mark.parametrize("batch_norm", ["frozen", "train"])
def test_stages_train_at_rates_that_halve_towards_the_images(batch_norm):
    """The pooling between `top` and `head` has no parameters, and so takes no share of the rate."""
    by_hand = {"head/.*": 1.0, "top/.*": 0.5, "block_16/.*": 0.25, "block_15/.*": 0.125}
    expected = select_trainable(NETWORK, by_hand, batch_norm)
    assert select_trainable(NETWORK, from_stage("block_15", decay=0.5), batch_norm) == expected


def test_all_stages_train_alike_or_each_at_its_own_rate():
    assert select_trainable(NETWORK, everything(), "train") == select_trainable(
        NETWORK, {".*": 1.0}, "train"
    )
    rates = select_trainable(NETWORK, everything(decay=0.5), "frozen").multipliers
    assert rates.keys() == PARAMETERS
    assert rates["head/bias"] == 1.0
    assert rates["stem/conv/kernel"] == 0.5**19  # 17 blocks and `top` lie between them


def test_the_last_stage_of_a_network_without_head_has_the_full_rate():
    headless = build("mobilenet_v2", num_classes=None, width=0.35)
    rates = select_trainable(headless, from_stage("block_16", decay=0.5), "frozen").multipliers
    assert {path.partition("/")[0]: rate for path, rate in rates.items()} == {
        "block_16": 0.5,
        "top": 1.0,
    }


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("blok_14", "'block_14'"), ("head/.*", "'head'"), ("Top", "'top'"), ("pool", None)],
)
def test_a_stage_without_parameters_is_refused_with_those_that_have_some(name, nearest):
    with pytest.raises(UserError) as error:
        select_trainable(NETWORK, from_stage(name), "frozen")
    said, _, hint = str(error.value).partition("; did you mean ")
    assert said.startswith(f"mobilenet_v2 has no stage {name!r} with parameters, only ")
    listed = said.partition(", only ")[2].split(", ")
    assert set(listed) == {path.partition("/")[0] for path in PARAMETERS}
    assert len(listed) == 20
    assert hint == (f"{nearest}?" if nearest else "")

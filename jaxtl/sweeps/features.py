"""The cached features that a group of runs trains on and is validated on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
from rich.console import Console

from jaxtl.config import Augment, Config
from jaxtl.data.loader import Loader
from jaxtl.training.feature_cache import Feed, FrozenPass, Plan, open_feed, plan
from jaxtl.training.feature_store import FeatureStore
from jaxtl.training.loop import Interrupted

FeaturePlans = list[tuple[Plan, Config]]


def plan_features(
    config: Config, row: jax.ShapeDtypeStruct, train: int, val: int, *, runs: int
) -> FeaturePlans:
    """Decides how the features of N runs are kept, from one of their configs.

    Args:
        config: of one of the runs.
        row: what the stages before the head return for one image.
        train, val: numbers of images.
        runs: N.

    Returns:
        A plan for the training features of each phase, one for the validation of an epoch, and one
        for that of a result, each with its config: a single run validates its result by the whole
        network, without rounding to `cache.dtype`.
    """
    unrounded = config.cache.model_copy(update={"dtype": "float32"})
    exact = config.model_copy(update={"cache": unrounded})
    phases = [(plan(config, row, train, epochs=p.epochs, runs=runs), config) for p in config.phases]
    return phases + [(plan(c, row, val, epochs=runs, views=1), c) for c in (config, exact)]


def open_features(
    plans: FeaturePlans,
    work: FrozenPass,
    val: Loader,
    store: FeatureStore,
    out: Console,
    stop: Callable[[], bool],
) -> list[Feed] | None:
    """Finds the features of a group of runs, or makes them.

    Args:
        plans: from `plan_features`.
        work: the pass over the training images; its number of views does not matter.
        val: the validation images.
        store: keeps the features.
        out: the terminal.
        stop: whether to stop making them.

    Returns:
        A feed for each plan; None where the features cannot be kept in memory after all.

    Raises:
        Interrupted: `stop` said so.
    """
    phases = work.config.phases
    feeds: list[Feed] = []
    opened: dict[tuple[int, str, Loader], Feed] = {}  # phases with as many views share a table
    for number, (planned, config) in enumerate(plans):
        this = dataclasses.replace(work, config=config, views=planned.views)
        if number < len(phases):
            out.print(f"{phases[number].name}: {planned.why}")
        else:
            this = dataclasses.replace(this, loader=val, augmentation=Augment())
        key = this.views, config.cache.dtype, this.loader
        feed = opened[key] if key in opened else open_feed(planned, this, store, out, stop)
        if feed is None:
            raise Interrupted
        if feed.table is None:
            return None
        opened[key] = feed
        feeds.append(feed)
    return feeds

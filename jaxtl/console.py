"""The terminal: what trains, how far it is, and how well it goes."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from jaxtl.config.config_file import Phase
from jaxtl.metrics import Sums
from jaxtl.models import Network, split, statistics
from jaxtl.training.trainable import FROZEN, Trainable


def console() -> Console:
    """A console on stdout; in a file or a pipe its lines are plain and never wrapped."""
    out = Console(highlight=False, markup=False, emoji=False)  # names are what they are
    if out.is_terminal:
        return out
    return Console(highlight=False, markup=False, emoji=False, width=10_000, no_color=True)


def stage_table(
    network: Network, phases: Sequence[Phase], trainables: Sequence[Trainable]
) -> Table:
    """What each phase trains of each stage; neighbours that are treated alike share a line."""
    table = Table(title=f"{network.name}, width {network.width:g}", title_justify="left")
    table.add_column("stage")
    table.add_column("parameters", justify="right")
    for phase in phases:
        table.add_column(f"phase {phase.name}")
    fixed = statistics(network)
    sizes: dict[str, dict[str, int]] = {stage: {} for stage in network.stage_names}
    for path, value in split(network)[1].items():
        if path not in fixed:
            sizes[path.partition("/")[0]][path] = value.size
    treated = {
        stage: tuple(
            _treatment(sizes[stage], *pair) for pair in zip(phases, trainables, strict=True)
        )
        for stage in network.stage_names
        if sizes[stage]
    }
    for treatment, group in itertools.groupby(treated, treated.__getitem__):
        stages = list(group)
        name = stages[0] if len(stages) == 1 else f"{stages[0]} ... {stages[-1]}"
        table.add_row(name, f"{sum(sum(sizes[s].values()) for s in stages):,}", *treatment)
    total = sum(sum(of_stage.values()) for of_stage in sizes.values())
    trained = [
        sum(
            size
            for of_stage in sizes.values()
            for p, size in of_stage.items()
            if p in f.multipliers
        )
        for f in trainables
    ]
    table.add_section()
    table.add_row("trained", "", *(f"{count:,}" for count in trained))
    table.add_row("frozen", f"{total:,}", *(f"{total - count:,}" for count in trained))
    table.add_row("frontier", "", *(trainable.frontier for trainable in trainables))
    return table


def _treatment(sizes: dict[str, int], phase: Phase, trainable: Trainable) -> str:
    labels = {trainable.labels[path] for path in sizes}
    if labels == {FROZEN}:
        return FROZEN
    rates = sorted(
        {phase.lr * trainable.multipliers[p] for p in sizes if p in trainable.multipliers}
    )
    partly = "partly " if FROZEN in labels else ""
    return f"{partly}trained, rate " + ", ".join(f"{rate:g}" for rate in rates)


@contextlib.contextmanager
def counter(out: Console, title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Counts: a bar on a terminal that goes when all are done, nothing elsewhere."""
    columns = TextColumn("{task.description}", markup=False), MofNCompleteColumn(), BarColumn()
    with Progress(
        *columns,
        TimeRemainingColumn(compact=True),
        console=out,
        transient=True,
        disable=not out.is_terminal,
    ) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.update(task, completed=done)


class EpochProgress:
    """The progress of one epoch: a bar on a terminal, nothing elsewhere until the epoch is done.

    Args:
        out: the console.
        title: such as `head 3/10`.
        steps: training batches of the epoch.
        done: those of them that an interrupted run has done already.
    """

    def __init__(self, out: Console, title: str, steps: int, done: int = 0):
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[metrics]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=out,
            transient=True,
            disable=not out.is_terminal,
        )
        self._out, self._title = out, title
        self._task = self._bar.add_task(title, total=steps, completed=done, metrics="")
        self._begun = time.perf_counter()
        self._first: tuple[float, int] | None = None
        self._last = self._begun
        self._images = 0

    def __enter__(self) -> EpochProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def batches(self, count: int, sums: Sums, images: int) -> None:
        """Shows that more training batches are done.

        Args:
            count: how many.
            sums: of the epoch so far.
            images: in these batches.
        """
        self._last = time.perf_counter()
        self._images += images
        if self._first is None:  # the first ones may have waited for the compiler
            self._first = (self._last, self._images)
        text = f"{metrics_text(sums.means(0))} {self.images_per_second:,.0f} images/s"
        self._bar.update(self._task, advance=count, metrics=text)

    @property
    def images_per_second(self) -> float:
        """Training images a second, without those noted first where there are more."""
        if self._first is None:
            return 0.0
        since, images = self._first
        if self._last == since:
            since, images = self._begun, 0
        return (self._images - images) / max(self._last - since, 1e-9)

    def validating(self) -> None:
        """Shows that the training part of the epoch is done."""
        self._bar.update(self._task, metrics="validating")

    def done(self, train: dict[str, float], val: dict[str, float], best: bool) -> None:
        """Leaves one line of the epoch behind."""
        self._bar.stop()
        seconds = time.perf_counter() - self._begun
        shown = {name: train[name] for name in ("loss", "accuracy")}
        speed = f"{self.images_per_second:,.0f} images/s"
        self._out.print(
            f"{self._title:<14} {seconds:6.1f} s  {metrics_text(shown)}  "
            f"{metrics_text(val, 'val_')}  {speed}{'  best' if best else ''}"
        )


def metrics_text(values: Mapping[str, float], prefix: str = "") -> str:
    """Metrics as people read them: `val_loss 0.1234 val_accuracy 0.9876`."""
    return " ".join(f"{prefix}{name} {value:.4f}" for name, value in values.items())

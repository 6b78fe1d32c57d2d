"""The terminal: progress bars and lines of metrics."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from jaxtl.errors import printable
from jaxtl.metrics import Sums, proportion

_log = logging.getLogger("jaxtl")


class _Console(Console):
    """Shows names of images and classes as they are, but for what would move the cursor."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text, keep="\n\t"), **options)

    def on_broken_pipe(self) -> None:
        """Goes on in silence: a run outlives the `tee` or the `head` that showed it."""
        self.quiet = True
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
        _log.warning("nobody reads this output any more; the command goes on without it")


def console() -> Console:
    """A console on stdout. Into a file or a pipe it writes plain lines that are never wrapped."""
    out = _Console(highlight=False, markup=False, emoji=False)
    if out.is_terminal:
        return out
    return _Console(highlight=False, markup=False, emoji=False, width=10_000, no_color=True)


@contextlib.contextmanager
def counter(out: Console, title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a progress bar on a terminal, which disappears at the end; nothing elsewhere.

    Args:
        out: the console.
        title: the name of the counted things.
        total: the last number of the count.

    Yields:
        A function that takes the count so far.
    """
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
    """A progress bar of one epoch on a terminal, and one line at its end.

    Args:
        out: the console.
        title: the name of the epoch, such as `head 3/10`.
        steps: the number of training batches in the epoch.
        done: the number of batches that an interrupted run has done already.
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
            count: the number of new batches.
            sums: the sums over the epoch so far.
            images: the number of images in the new batches.
        """
        self._last = time.perf_counter()
        self._images += images
        if self._first is None:
            self._first = (self._last, self._images)
        text = f"{metrics_text(sums.means(0))} {self.images_per_second:,.0f} images/s"
        self._bar.update(self._task, advance=count, metrics=text)

    @property
    def images_per_second(self) -> float:
        """Training images a second, without the first batches, which include compilation."""
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
        """Prints one line for the epoch.

        Args:
            train: loss and accuracy of training; the fraction of its time that it waited for input,
                gigabytes of device memory and utilisation, as far as they are known.
            val: the metrics of validation.
            best: whether it is the best epoch of the phase.
        """
        self._bar.stop()
        seconds = time.perf_counter() - self._begun
        shown = {name: train[name] for name in ("loss", "accuracy")}
        use = {
            "input_wait": "  input wait {:.0%}",
            "memory_gb": "  {:.1f} GB",
            "mfu": "  MFU {:.1%}",
        }
        known = (text.format(train[name]) for name, text in use.items() if name in train)
        speed = f"{self.images_per_second:,.0f} images/s{''.join(known)}"
        self._out.print(
            f"{self._title:<14} {seconds:6.1f} s  {metrics_text(shown)}  "
            f"{metrics_text(val, 'val_')}  {speed}{'  best' if best else ''}"
        )


def metrics_text(values: Mapping[str, float], prefix: str = "") -> str:
    """Metrics in one line: `val_loss 0.1234 val_accuracy 0.9876`."""
    return " ".join(f"{prefix}{name} {value:.4f}" for name, value in values.items())


def correct_text(correct: int, images: int) -> str:
    """How many images are correct, with a Wilson interval of the accuracy:
    `(352/359 correct, 95 % interval 0.9603 to 0.9905)`.
    """
    _, *bounds = proportion(correct, images)
    return f"({correct}/{images} correct, 95 % interval {interval_text(*bounds)})"


def interval_text(low: float, high: float, *, form: str = ".4f") -> str:
    """An interval, such as `0.9603 to 0.9905`; `form` formats its bounds."""
    return f"{low:{form}} to {high:{form}}"

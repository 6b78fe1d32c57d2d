"""Traces some steps of a run with `jax.profiler`, and measures what an epoch waits for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax

from jaxtl.accelerators import accelerator_of
from jaxtl.errors import UserError

T = TypeVar("T")


def steps_to_trace(text: str) -> range:
    """Reads the `START:STOP` of `--profile`.

    Args:
        text: two steps, counted from 0 since the run began; the second one is not traced.

    Raises:
        UserError: it is not of that form, or there is no step in it.
    """
    start, _, stop = text.partition(":")
    if start.isdecimal() and stop.isdecimal() and int(start) < int(stop):
        return range(int(start), int(stop))
    raise UserError(
        f"--profile {text}: give two steps, the first and the one to stop before: 10:20"
    )


def check_planned(steps: range, planned: int) -> None:
    """Refuses to trace steps after those that a run does at most.

    Raises:
        UserError: there are such steps.
    """
    if steps.stop > planned:
        raise UserError(
            f"--profile {steps.start}:{steps.stop}: the run has {planned:,} steps, and the first "
            "one is 0"
        )


class Trace:
    """A trace of some steps, once they run.

    Steps that run in one call are traced together.

    Args:
        folder: where TensorBoard and XProf find it: `plugins/profile/` in it.
        steps: the steps, counted from 0 since the run began; none, for no trace.
        done: the number of steps that the run has done.
        here: whether this host writes the trace.

    Raises:
        UserError: these steps are done already.
    """

    def __init__(self, folder: Path, steps: range, *, done: int, here: bool = True):
        if steps and steps.start < done:
            raise UserError(
                f"--profile {steps.start}:{steps.stop}: the run has done {done:,} steps; "
                f"take later ones, such as --profile {done}:{done + len(steps)}, or a new --workdir"
            )
        self.missing = bool(steps) and here
        self._folder, self._steps = folder, steps
        self._running = False

    def before(self, first: int, count: int) -> None:
        """Begins the trace if one of so many steps, which are called next, is in it."""
        if self.missing and not self._running and first + count > self._steps.start:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, done: int, outputs: Any) -> None:
        """Ends the trace if so many steps were called; waits for the last of them."""
        if self._running and done >= self._steps.stop:
            jax.block_until_ready(outputs)
            self.close()

    def close(self) -> None:
        """Writes a trace that has not ended."""
        if self._running:
            self._running = self.missing = False
            jax.profiler.stop_trace()


def is_idle(state: Any) -> bool:
    """Whether the devices are done with the step that makes this state."""
    return state.step.is_ready()


class InputWait:
    """Measures how long the devices had nothing to do because the next batch was not there.

    A wait counts if the devices were done with all that they had got when it ended.
    """

    def __init__(self) -> None:
        self._begun = time.perf_counter()
        self._waited = 0.0

    def timed(self, batches: Iterable[T], idle: Callable[[], bool]) -> Iterator[T]:
        """Yields the batches; `idle` says whether the devices have nothing to do."""
        iterator = iter(batches)
        while True:
            begun = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            if idle():
                self._waited += time.perf_counter() - begun
            yield batch

    @property
    def fraction(self) -> float:
        """The fraction of the time since this was made, 0 to 1."""
        return self._waited / max(time.perf_counter() - self._begun, 1e-9)


def device_use(
    devices: Sequence[Any],
    count: int,
    macs_per_image: Callable[[], float] | None,
    images_per_second: float,
) -> dict[str, float]:
    """What the devices say of themselves, and how much of their arithmetic training uses.

    Args:
        devices: the devices of this host that train, `jax.Device`s.
        count: the number of devices that train, of all hosts.
        macs_per_image: counts the multiply-adds of a training step for an image; None if no step
            ran, as in an epoch that was stopped in its validation.
        images_per_second: the speed on all devices.

    Returns:
        `memory_gb`, the most that the process has used on one device since it began, in 1e9 bytes,
        where devices tell; and `mfu`, the fraction of the bfloat16 peak that the step's matrix
        products and convolutions reach, where that is published.
    """
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in devices]
    used = {"memory_gb": max(known) / 1e9} if (known := [p for p in peaks if p]) else {}
    accelerator = accelerator_of(devices[0].device_kind)
    if accelerator is None or macs_per_image is None:
        return used
    flops = 2 * macs_per_image() * images_per_second
    return used | {"mfu": flops / (count * accelerator.flops)}

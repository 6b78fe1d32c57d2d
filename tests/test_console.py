"""What a user sees of a network, its phases and the progress of an epoch."""

import io
import re
import sys

import pytest
from rich.console import Console

from jaxtl import console as terminal
from jaxtl.config.config_file import Phase
from jaxtl.console import EpochProgress, console
from jaxtl.metrics import Sums
from jaxtl.models import build
from jaxtl.training.stage_table import stage_table
from jaxtl.training.trainable import select_trainable

# Keras' summary of MobileNetV2(alpha=0.35, include_top=False): 410,208 parameters, of which 14,080
# are the means and variances of BatchNorms.
TRUNK = 410_208 - 14_080
HEAD = 1280 * 3 + 3
TOP = 112 * 1280 + 2 * 1280


def block(channels, inner, out):
    """The parameters of an inverted residual block (Sandler et al. 2018, table 1)."""
    return channels * inner + 9 * inner + inner * out + 2 * (inner + inner + out)


def plain():
    """A console that writes to memory, as one in a pipe does."""
    return Console(file=io.StringIO(), width=10_000, no_color=True, highlight=False)


def last_shown(out):
    """The last line that a terminal showed, without its escape codes."""
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", out.file.getvalue())
    return [line for line in re.split("[\r\n]", text) if line.strip()][-1]


@pytest.fixture(scope="module")
def table():
    """The lines of the table for a small network and three phases, as lists of cells."""
    network = build("mobilenet_v2", num_classes=3, width=0.35)
    phases = [
        Phase(name="head", train={"head/.*": 1.0}, epochs=1),
        Phase(name="finetune", train={"head/.*": 1.0, "(top|block_1[5-6])/.*": 0.1}, epochs=1),
        Phase(name="biases", train={"head/bias": 2.0}, epochs=1),
    ]
    out = plain()
    frozen = [select_trainable(network, phase.train, phase.batch_norm) for phase in phases]
    out.print(stage_table(network, phases, frozen))
    return [
        [cell.strip() for cell in re.split("[│┃]", line)[1:-1]]
        for line in out.file.getvalue().splitlines()
        if line[0] in "│┃"
    ]


def test_the_table_has_a_column_for_each_phase(table):
    assert table[0] == ["stage", "parameters", "phase head", "phase finetune", "phase biases"]


def test_the_table_says_what_each_phase_does_with_each_stage(table):
    trained = block(56, 336, 56) + block(56, 336, 112) + TOP
    assert table[1:4] == [
        ["stem ... block_14", f"{TRUNK - trained:,}", "frozen", "frozen", "frozen"],
        ["block_15 ... top", f"{trained:,}", "frozen", "trained, learning rate 0.0001", "frozen"],
        [
            "head",
            f"{HEAD:,}",
            "trained, learning rate 0.001",
            "trained, learning rate 0.001",
            "partly trained, learning rate 0.002",
        ],
    ]


def test_the_table_counts_what_is_trained_and_what_is_frozen(table):
    rows = {row[0]: row[1:] for row in table}
    trained = [HEAD, HEAD + TOP + block(56, 336, 56) + block(56, 336, 112), 3]
    assert rows["trained"][1:] == [f"{count:,}" for count in trained]
    assert rows["frozen"][1:] == [f"{TRUNK + HEAD - count:,}" for count in trained]


def test_the_table_names_the_frontier_of_each_phase(table):
    assert table[-1] == ["frontier", "", "head", "block_15", "head"]


def test_a_pipe_gets_one_plain_line_an_epoch():
    out = plain()
    for epoch in (1, 2):
        with EpochProgress(out, f"head {epoch}/2", 3) as progress:
            for step in (1, 2, 3):
                progress.batches(1, Sums(8.0 * step, 4 * step, 8 * step, 8 * step), 8)
            progress.validating()
            train, val = {"loss": 1.0, "accuracy": 0.5}, {"loss": 0.25, "accuracy": 0.75}
            progress.done(train, val, best=epoch == 2)
    text = out.file.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    first, second = text.splitlines()
    assert first.startswith("head 1/2  ")
    assert "  loss 1.0000 accuracy 0.5000  val_loss 0.2500 val_accuracy 0.7500  " in first
    assert re.search(r"  [\d,]+ images/s$", first)
    assert re.search(r"  [\d,]+ images/s  best$", second)


def test_a_terminal_shows_a_bar_with_epoch_loss_accuracy_and_speed():
    out = Console(force_terminal=True, file=io.StringIO(), width=150)
    with EpochProgress(out, "finetune 4/9", 6) as progress:
        for step in (1, 2, 3):
            progress.batches(1, Sums(16.0 * step, 2 * step, 8 * step, 8 * step), 8)
    shown = last_shown(out)
    assert "finetune 4/9" in shown
    assert re.search(r" 3/6 ", shown)
    assert "━" * 10 in shown
    assert "loss 2.0000 accuracy 0.2500" in shown
    assert re.search(r"[\d,]+ images/s", shown)


def test_a_continued_epoch_counts_the_batches_that_were_done_before():
    out = Console(force_terminal=True, file=io.StringIO(), width=150)
    with EpochProgress(out, "head 1/1", 6, done=4) as progress:
        progress.batches(1, Sums(1.0, 1, 1, 1), 1)
    assert " 5/6 " in last_shown(out)


def test_batches_that_are_done_in_one_call_are_counted_and_timed_together(monkeypatch):
    clock = iter([0.0, 100.0, 102.0, 102.0, 102.0])
    monkeypatch.setattr(terminal.time, "perf_counter", lambda: next(clock))
    out = Console(force_terminal=True, file=io.StringIO(), width=150)
    progress = EpochProgress(out, "head 1/1", 10)
    for count in (6, 4):
        progress.batches(count, Sums(1.0, 1, 1, 1), 8 * count)
    assert progress.images_per_second == 16.0


def test_the_speed_leaves_out_the_batch_that_waited_for_the_compiler(monkeypatch):
    clock = iter([0.0, 100.0, 101.0, 102.0, 102.0, 102.0])
    monkeypatch.setattr(terminal.time, "perf_counter", lambda: next(clock))
    progress = EpochProgress(plain(), "head 1/1", 3)
    for _ in range(3):
        progress.batches(1, Sums(1.0, 1, 1, 1), 8)
    assert progress.images_per_second == 8.0


def test_the_only_batch_of_an_epoch_has_a_speed(monkeypatch):
    clock = iter([0.0, 2.0, 2.0])
    monkeypatch.setattr(terminal.time, "perf_counter", lambda: next(clock))
    progress = EpochProgress(plain(), "head 1/1", 1)
    assert progress.images_per_second == 0.0
    progress.batches(1, Sums(1.0, 1, 1, 1), 8)
    assert progress.images_per_second == 4.0


def test_the_console_never_wraps_or_colours_what_goes_into_a_pipe(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    out = console()
    line = "path/to/[red]images[/red]".ljust(3000, "x")
    out.print(line, markup=False)
    assert sys.stdout.getvalue() == line + "\n"

"""What a comparison says: the front, the words, the table, the file and the picture."""

import csv
import io
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from jaxtl.costs import Cost, Measured
from jaxtl.errors import UserError
from jaxtl.probe import Probe
from jaxtl.report.advice import Budget, advice, characters
from jaxtl.report.comparison import Row, comparison_table, pareto_front, write_comparison
from jaxtl.report.scatter import write_picture


def row(model, accuracy, ms, *, mb=10.0, tuning_ms=100.0, tuning_mb=500.0, **more):
    """A row that was measured with 32 pictures a batch."""
    cost = Cost(
        parameters=int(mb * 250_000),
        weight_bytes=int(mb * 1e6),
        macs=int(ms * 1e8),
        batch_size=32,
        single=Measured(ms / 1e3, 50, int(2e7)),
        inference=Measured(32 * ms / 2e3, 5, int(1e8)),
        finetuning=Measured(tuning_ms / 1e3, 3, int(tuning_mb * 1e6)),
    )
    probe = None if accuracy is None else Probe(accuracy, 0.8, 5)
    weights = "keras could not be reached" if probe is None else "keras sha256:0123"
    return Row(model, 96, cost, probe, weights, **more)


SMALL = row("small", 88.0, 3.0, mb=2.0, tuning_ms=50, tuning_mb=200)
MIDDLE = row("middle", 93.1, 18.0, mb=9.0)
LARGE = row("large", 96.4, 90.0, mb=90.0, tuning_ms=900, tuning_mb=2000)
CLUMSY = row("clumsy", 90.0, 40.0, mb=60.0, tuning_ms=1000, tuning_mb=2500)
UNKNOWN = row("unknown", None, 2.0, mb=1.0, tuning_ms=70, tuning_mb=300)
ROWS = [LARGE, SMALL, CLUMSY, MIDDLE, UNKNOWN]


def test_the_front_is_what_a_search_over_all_pairs_leaves():
    rng = np.random.default_rng(0)
    # Few different values, so that there are ties in both.
    pairs = rng.integers(1, 12, (60, 2)).tolist()
    rows = [row(str(n), float(accuracy), float(ms)) for n, (accuracy, ms) in enumerate(pairs)]
    left = {
        str(n)
        for n, (accuracy, ms) in enumerate(pairs)
        if not any(a >= accuracy and t <= ms and (a, t) != (accuracy, ms) for a, t in pairs)
    }
    front = pareto_front(rows)
    assert {one.model for one in front} == left
    assert all(a.milliseconds <= b.milliseconds for a, b in itertools.pairwise(front))
    assert 1 < len(front) < len(rows)


def test_a_network_without_accuracy_is_not_on_the_front_however_fast():
    assert pareto_front(ROWS) == [SMALL, MIDDLE, LARGE]
    assert pareto_front([UNKNOWN]) == []


def said(rows):
    return dict(line.split(": ", 1) for line in characters(rows))


def test_each_network_is_told_by_what_it_is_best_and_worst_at():
    lines = said([LARGE, SMALL, MIDDLE])
    assert lines["small"] == (
        "fastest at inference, fastest to fine-tune, smallest, needs least memory to fine-tune, "
        "most accuracy per parameter; least accurate"
    )
    assert lines["large"].startswith("most accurate; slowest at inference, slowest to fine-tune")


def test_a_network_between_all_others_is_told_by_its_best_and_worst_rank():
    assert said(ROWS)["middle"] == (
        "at best 2nd of 4 in accuracy, accuracy per parameter; "
        "at worst 3rd of 5 in latency, speed of fine-tuning, size, memory of fine-tuning"
    )


def test_a_network_that_another_beats_in_both_is_told_so():
    assert said(ROWS)["clumsy"].endswith("; middle is at least as fast and as accurate")
    assert not any("at least as fast" in said(ROWS)[name] for name in ("small", "large", "middle"))


def test_a_network_without_weights_is_ranked_by_its_cost_alone():
    assert said(ROWS)["unknown"].startswith("fastest at inference, smallest")
    assert "accuracy unknown" in said(ROWS)["unknown"]
    assert "accurate" not in said(ROWS)["unknown"]


def test_nothing_is_invented_of_networks_that_measure_alike():
    twins = [row("one", 90.0, 5.0), row("two", 90.0, 5.0)]
    assert set(said(twins).values()) == {"nothing tells it from the others"}


@pytest.mark.parametrize(
    ("budgets", "lines"),
    [
        (["ms=20"], ["under 20 ms a picture: middle, 93.1 ± 0.8 %"]),
        (["mb=90"], ["under 90 MB of weights: large, 96.4 ± 0.8 %"]),
        (["macs=1000"], ["under 1000 million MACs: small, 88.0 ± 0.8 %"]),
        (
            ["ms=20", "mb=2.5"],
            [
                "under 20 ms a picture: middle, 93.1 ± 0.8 %",
                "under 2.5 MB of weights: small, 88.0 ± 0.8 %",
                "under 20 ms a picture and 2.5 MB of weights: small, 88.0 ± 0.8 %",
            ],
        ),
        (["ms=2"], ["under 2 ms a picture: unknown, of which no accuracy is known"]),
        (
            ["ms=1"],
            [
                "under 1 ms a picture: none; unknown comes nearest with 2.00 ms a picture, "
                "no accuracy"
            ],
        ),
    ],
)
def test_a_budget_is_answered_by_the_most_accurate_network_within_it(budgets, lines):
    assert advice(ROWS, [Budget.parse(text) for text in budgets]) == lines


def test_where_nothing_fits_the_nearest_is_named():
    (line,) = advice([LARGE, MIDDLE], [Budget("ms", 10.0)])
    assert line == (
        "under 10 ms a picture: none; middle comes nearest with 18.0 ms a picture, 93.1 ± 0.8 %"
    )


def test_without_a_budget_the_front_is_offered():
    assert advice(ROWS, []) == [
        "take one of the Pareto front, the fastest first: small (88.0 ± 0.8 %, 3.00 ms), "
        "middle (93.1 ± 0.8 %, 18.0 ms), large (96.4 ± 0.8 %, 90.0 ms)"
    ]
    assert "none can be recommended" in advice([UNKNOWN], [])[0]


@pytest.mark.parametrize("text", ["s=20", "ms", "ms=", "ms=fast", "ms=0", "mb=-1", "ms=nan"])
def test_a_budget_that_is_none_is_refused(text):
    with pytest.raises(UserError, match=r"^--budget .*: .*=20"):
        Budget.parse(text)


def test_fine_tuning_decides_where_it_was_done():
    tuned = [
        row("probe is better", 95.0, 5.0, finetuned=96.0),
        row("tuned is better", 90.0, 5.0, finetuned=98.5),
        row("diverged", 99.0, 5.0, finetuned=math.nan),
    ]
    assert advice(tuned, [Budget("ms", 9.0)]) == [
        "under 9 ms a picture: tuned is better, 98.5 % fine-tuned"
    ]


def shown(rows, width=200):
    out = Console(file=io.StringIO(), width=width)
    table = comparison_table(rows, "a CPU of 2 cores", width=width, rest=Path("compare.csv"))
    out.print(table)
    return out.file.getvalue()


def test_the_table_has_a_line_for_each_network_with_what_was_measured():
    lines = {
        words[1] if words[0] == "●" else words[0]: line
        for line in shown(ROWS).splitlines()
        if (words := line.split())
    }
    measured = "● middle 93.1 ± 0.8 41.4 2.25 1,800 9.00 18.0 111 320 100 500"
    assert " ".join(lines["middle"].split()) == measured
    assert "no weights" in lines["unknown"]
    marked = [
        name for name in ("large", "small", "clumsy", "middle", "unknown") if "●" in lines[name]
    ]
    assert marked == [
        "large",
        "small",
        "middle",
    ]


@pytest.mark.parametrize("width", [80, 99, 100, 200])
def test_every_number_that_is_shown_is_whole_on_any_terminal(width):
    said = shown([row("mobilenet_v1@0.25", 93.1, 1234.5, tuning_mb=13_500), *ROWS], width)
    assert "93.1 ± 0.8" in said
    assert "1,234" in said
    assert "…" not in said
    assert ("13,500" in said) == (width >= 100)
    assert ("MACs and memory: compare.csv" in said) == (width < 100)


def test_the_file_holds_all_rows_in_full_precision_and_says_why_weights_are_missing(tmp_path):
    path = tmp_path / "compare.csv"
    write_comparison(path, ROWS, "a CPU of 2 cores")
    lines = {line["model"]: line for line in csv.DictReader(path.open())}
    assert list(lines) == [one.model for one in ROWS]
    assert float(lines["middle"]["accuracy"]) == 93.1
    assert float(lines["middle"]["accuracy_per_million_parameters"]) == pytest.approx(93.1 / 2.25)
    assert float(lines["middle"]["finetuning_images_per_second"]) == pytest.approx(320)
    assert (lines["clumsy"]["pareto_front"], lines["middle"]["pareto_front"]) == ("False", "True")
    assert lines["unknown"]["accuracy"] == ""
    assert lines["unknown"]["no_weights_because"] == "keras could not be reached"
    assert lines["unknown"]["latency_ms"] == "2.0"


@pytest.mark.parametrize("rows", [ROWS, [LARGE], [UNKNOWN]], ids=["all", "one", "no accuracy"])
def test_the_picture_can_be_drawn_of_any_rows(rows, tmp_path):
    path = tmp_path / "compare.png"
    write_picture(path, rows, data="52 pictures of 3 classes", device="a CPU of 2 cores")
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    blue = (abs(pixels.astype(int) - [0x1F, 0x6F, 0xEB]).sum(axis=1) < 12).sum()
    assert bool(blue) == bool(pareto_front(rows))

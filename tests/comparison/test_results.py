"""What a comparison says: the front, the words, the table, the file and the image."""

import csv
import dataclasses
import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from jaxtl.comparison.advice import Budget, advice, characters
from jaxtl.comparison.costs import Cost
from jaxtl.comparison.linear_probe import Probe
from jaxtl.comparison.plot import write_plot
from jaxtl.comparison.results import (
    Conditions,
    Failure,
    Row,
    Tuned,
    Unmeasured,
    beats,
    number,
    pareto_front,
    write_comparison,
)
from jaxtl.comparison.table import comparison_table
from jaxtl.errors import UserError

CONDITIONS = Conditions(1797, 10, largest=10.2, folds=5, device="a CPU of 2 cores")
DIVERGED = Failure("diverged", "as the training loss is nan after step 3")


def row(model, accuracy, ms, *, mb=10.0, tuning_ms=100.0, tuning_mb=500.0, **more):
    """A row that was measured with 32 images a batch."""
    cost = Cost(
        parameters=int(mb * 250_000),
        macs=int(ms * 1e8),
        weights_mb=mb,
        latency_ms=ms,
        latency_calls=50,
        batch_size=32,
        inference_images_per_second=2e3 / ms,
        inference_calls=5,
        finetuning_images_per_second=32e3 / tuning_ms,
        finetuning_calls=3,
        inference_memory_mb=100.0,
        finetuning_memory_mb=tuning_mb,
    )
    probe = None if accuracy is None else Probe(accuracy, 0.8)
    weights, tried = ("", "keras could not be reached") if probe is None else ("keras 0123", "")
    return Row(model, 96, cost, probe, weights, tried, **more)


def tuned(model, probe, ms, outcome, **more):
    """A row of a comparison with fine-tuning."""
    return row(model, probe, ms, ranked_by="fine-tuning", tuned=outcome, **more)


SMALL = row("small", 88.0, 3.0, mb=2.0, tuning_ms=50, tuning_mb=200)
MIDDLE = row("middle", 93.1, 18.0, mb=9.0)
LARGE = row("large", 96.4, 90.0, mb=90.0, tuning_ms=900, tuning_mb=2000)
CLUMSY = row("clumsy", 90.0, 40.0, mb=60.0, tuning_ms=1000, tuning_mb=2500)
UNKNOWN = row("unknown", None, 2.0, mb=1.0, tuning_ms=70, tuning_mb=300)
HUGE = Unmeasured("huge", 96, Failure("out of memory", "with 32 images a batch"))
ROWS = [LARGE, SMALL, CLUMSY, MIDDLE, UNKNOWN]


def test_the_front_is_what_a_search_over_all_pairs_leaves():
    rng = np.random.default_rng(0)
    # Few different values, so that there are ties in both; times that differ do so by 20 %.
    pairs = rng.integers(1, 12, (60, 2)).tolist()
    rows = [row(str(n), float(accuracy), 1.2**ms) for n, (accuracy, ms) in enumerate(pairs)]
    left = {
        str(n)
        for n, (accuracy, ms) in enumerate(pairs)
        if not any(a >= accuracy and t <= ms and (a, t) != (accuracy, ms) for a, t in pairs)
    }
    front = pareto_front(rows)
    assert {one.model for one in front} == left
    assert all(a.cost.latency_ms <= b.cost.latency_ms for a, b in itertools.pairwise(front))
    assert 1 < len(front) < len(rows)


def test_a_difference_in_time_that_is_noise_decides_nothing():
    rows = [row("better", 91.0, 10.5), row("worse", 90.0, 10.0), row("alike", 91.0, 10.0)]
    assert [one.model for one in pareto_front(rows)] == ["alike", "better"]
    clearly = row("faster", 91.0, 8.9)
    assert beats(clearly, rows[2])
    assert pareto_front([*rows, clearly]) == [clearly]


def test_what_the_front_leaves_out_is_beaten_by_the_front_itself():
    chain = [row("a", 90.0, 10.0), row("b", 91.0, 10.9), row("c", 92.0, 11.8)]
    assert beats(chain[1], chain[0])
    assert beats(chain[2], chain[1])
    assert [one.model for one in pareto_front(chain)] == ["a", "c"]


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
        "at best rank 2 of 4 in accuracy, accuracy per parameter; "
        "at worst rank 3 of 5 in latency, speed of fine-tuning, size, memory of fine-tuning"
    )


def test_a_network_that_another_beats_in_both_is_told_so():
    assert said(ROWS)["clumsy"].endswith(
        "; middle is at least as accurate and, within 10 %, at least as fast"
    )
    assert not any("at least as fast" in said(ROWS)[name] for name in ("small", "large", "middle"))


def test_a_network_without_weights_is_ranked_by_its_cost_alone():
    assert said(ROWS)["unknown"].startswith("fastest at inference, smallest")
    assert "no weights, so no accuracy" in said(ROWS)["unknown"]
    assert "accurate" not in said(ROWS)["unknown"]


def test_nothing_is_invented_of_networks_that_measure_alike():
    twins = [row("one", 90.0, 5.0), row("two", 90.0, 5.0)]
    assert set(said(twins).values()) == {"nothing tells it from the others"}


@pytest.mark.parametrize(
    ("budgets", "lines"),
    [
        (["ms=20"], ["under 20 ms an image: middle, 93.1 ± 0.8 %"]),
        (["mb=90"], ["under 90 MB of weights: large, 96.4 ± 0.8 %"]),
        (["macs=1000"], ["under 1000 million MACs: small, 88.0 ± 0.8 %"]),
        (
            ["ms=20", "mb=2.5"],
            [
                "under 20 ms an image: middle, 93.1 ± 0.8 %",
                "under 2.5 MB of weights: small, 88.0 ± 0.8 %",
                "under 20 ms an image and 2.5 MB of weights: small, 88.0 ± 0.8 %",
            ],
        ),
        (["ms=2"], ["under 2 ms an image: unknown, of which no accuracy is known"]),
        (
            ["ms=1"],
            ["under 1 ms an image: none; unknown comes nearest with 2.00 ms an image, no weights"],
        ),
    ],
)
def test_a_budget_is_answered_by_the_most_accurate_network_within_it(budgets, lines):
    assert advice(ROWS, [Budget.parse(text) for text in budgets]) == lines


def test_where_nothing_fits_the_nearest_is_named():
    (line,) = advice([LARGE, MIDDLE], [Budget.parse("ms=10")])
    assert line == (
        "under 10 ms an image: none; middle comes nearest with 18.0 ms an image, 93.1 ± 0.8 %"
    )


def test_without_a_budget_the_front_is_offered():
    assert advice(ROWS, []) == [
        "take one of the Pareto front, the fastest first: small (88.0 ± 0.8 %, 3.00 ms), "
        "middle (93.1 ± 0.8 %, 18.0 ms), large (96.4 ± 0.8 %, 90.0 ms)"
    ]
    alone = ["take middle (93.1 ± 0.8 %, 18.0 ms), alone on the Pareto front"]
    assert advice([MIDDLE, UNKNOWN], []) == alone
    assert "none can be recommended" in advice([UNKNOWN], [])[0]


@pytest.mark.parametrize("text", ["s=20", "ms", "ms=fast", "ms=0", "ms=nan", "ms=inf"])
def test_a_budget_that_is_none_is_refused(text):
    with pytest.raises(UserError, match=r"^--budget .*: .*=20"):
        Budget.parse(text)


def test_of_equally_accurate_networks_the_cheaper_is_taken_and_the_others_are_named():
    slow, heavy, light = row("slow", 93.0, 9.0), row("heavy", 93.0, 5.0), row("light", 93.0, 5.0)
    light = dataclasses.replace(light, cost=light.cost._replace(weights_mb=0.001))
    (line,) = advice([slow, heavy, light], [Budget.parse("ms=20")])
    alike = "not distinguishable from light in accuracy: slow, heavy"
    assert line == f"under 20 ms an image: light, 93.0 ± 0.8 %; {alike}"


def test_what_lies_within_a_spread_of_the_best_is_not_told_from_it():
    rows = [row("best", 93.0, 9.0), row("close", 92.2, 5.0), row("far", 92.1, 3.0)]
    (line,) = advice(rows, [Budget.parse("ms=20")])
    assert line.endswith("; not distinguishable from best in accuracy: close")
    assert advice(rows, [])[0].endswith("; not distinguishable from best in accuracy: close")


TUNED = [
    tuned("probe is better", 95.0, 5.0, Tuned(180, 200, 2)),
    tuned("tuned is better", 90.0, 5.0, Tuned(196, 200, 4)),
    tuned("exploded", 99.0, 5.0, DIVERGED),
    tuned("waits", 99.0, 4.0, None),
    tuned("weightless", None, 4.0, None),
]


def test_fine_tuning_decides_where_it_was_asked_for():
    assert advice(TUNED, [Budget.parse("ms=9")]) == [
        "under 9 ms an image: tuned is better, 196/200 = 98.0 % fine-tuned"
    ]
    assert [one.model for one in pareto_front(TUNED)] == ["tuned is better"]


def test_fine_tuning_that_gained_nothing_is_told_so():
    told = "no better than its linear probe: more epochs of --finetune may help"
    assert [name for name, traits in said(TUNED).items() if told in traits] == ["probe is better"]
    assert not any(told in traits for traits in said(ROWS).values())
    perfect = [tuned("perfect", 100.0, 5.0, Tuned(200, 200, 2)), *TUNED]
    assert told not in said(perfect)["perfect"]


def test_the_spread_of_a_fine_tuned_accuracy_is_the_standard_error_of_a_share():
    drawn = np.random.default_rng(0).binomial(200, 0.98, 100_000) / 2
    assert TUNED[1].score.spread == pytest.approx(drawn.std(), rel=0.15)
    assert Tuned(5000, 10_000, 1).spread == pytest.approx(0.5, rel=1e-3)  # sqrt(p (1 - p) / n)


@pytest.mark.parametrize(("images", "truth"), [(18, 0.97), (18, 0.8), (357, 0.99)])
def test_as_often_as_a_standard_error_should_it_holds_the_true_accuracy(images, truth):
    drawn = np.random.default_rng(0).binomial(images, truth, 2000)
    outcomes = [Tuned(int(correct), images, 1) for correct in drawn]
    held = [abs(one.accuracy - 100 * truth) <= one.spread for one in outcomes]
    assert 0.55 < np.mean(held) < 0.95  # of a normal distribution, 68 %


def test_networks_that_are_all_right_are_not_told_from_those_that_nearly_are():
    rows = [
        tuned("all", 95.0, 9.0, Tuned(18, 18, 1)),
        tuned("nearly", 95.0, 5.0, Tuned(17, 18, 1)),
        tuned("far", 95.0, 5.0, Tuned(16, 18, 1)),
    ]
    (line,) = advice(rows, [Budget.parse("ms=20")])
    assert line.endswith("; not distinguishable from all in accuracy: nearly")


def test_a_network_that_diverged_is_told_so_everywhere(tmp_path):
    assert "diverged when fine-tuned" in said(TUNED)["exploded"]
    assert "not fine-tuned, so no accuracy" in said(TUNED)["waits"]
    (line,) = [line for line in shown(TUNED).splitlines() if "exploded" in line]
    assert "diverged" in line
    path = tmp_path / "compare.csv"
    write_comparison(path, TUNED, CONDITIONS)
    lines = {line["model"]: line for line in csv.DictReader(path.open())}
    assert lines["exploded"]["failure"] == "diverged as the training loss is nan after step 3"
    assert (lines["exploded"]["accuracy"], lines["exploded"]["finetuned_accuracy"]) == ("", "")
    assert lines["exploded"]["probe_accuracy"] == "99.0"


def test_it_is_said_which_accuracy_ranks(tmp_path):
    assert "Ranked by: probe" in flat(ROWS)
    assert "Ranked by: tuned" in flat(TUNED)
    path = tmp_path / "compare.csv"
    for rows, how, accuracy in ((ROWS, "linear probe", "88.0"), (TUNED, "fine-tuning", "98.0")):
        write_comparison(path, rows, CONDITIONS)
        line = list(csv.DictReader(path.open()))[1]
        assert (line["ranked_by"], line["accuracy"]) == (how, accuracy)
    share = float(line["accuracy_per_million_parameters"])
    assert share == pytest.approx(98.0 / 2.5)
    assert (line["finetuned_correct"], line["validation_images"]) == ("196", "200")
    assert line["best_epoch"] == "4"


def flat(rows):
    return " ".join(shown(rows).split())


def conditions_of(rows):
    tuned = any(one in TUNED for one in rows)
    return CONDITIONS._replace(tuned=tuned)


def test_it_is_said_what_a_guess_would_be_right_in():
    said_of = "1,797 images of 10 classes, the largest class has 10.2 % of them"
    assert said_of in flat(ROWS)
    assert "5 folds" in flat(ROWS)
    assert "the largest class has 10.2 % of the validation images" in flat(TUNED)


def shown(rows, width=200):
    out = Console(file=io.StringIO(), width=width)
    rest = Path("compare.csv")
    table = comparison_table(rows, conditions_of(rows), width=width, rest=rest)
    out.print(table)
    return out.file.getvalue()


def test_the_table_has_a_line_for_each_network_with_what_was_measured():
    lines = {
        words[1] if words[0] == "●" else words[0]: line
        for line in shown(ROWS).splitlines()
        if (words := line.split())
    }
    measured = "● middle 93.1 ± 0.8 91.8-94.2 41.4 2.25 1,800 9.00 18.0 111 320 100 500"
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


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_every_number_that_is_shown_is_whole_on_any_terminal(width):
    said = shown([row("mobilenet_v1@0.25", 93.1, 1234.5, tuning_mb=13_579), *ROWS], width)
    assert max(len(line.rstrip()) for line in said.splitlines()) <= width
    assert "93.1 ± 0.8" in said
    assert "1,234" in said
    assert "…" not in said
    left_out = " ".join(said.split()).partition(": compare.csv")[0].rpartition(". ")[2]
    assert ("13,579" in said) != ("tuning memory" in left_out)
    assert (" 123,450 " in said) != ("MACs" in left_out)
    assert ("/s" in said.partition("mobilenet")[0]) != ("tuning /s, images /s" in left_out)


def test_columns_are_left_out_only_where_there_is_no_room():
    assert ": compare.csv" not in shown(ROWS, 120)
    assert ": compare.csv" in shown(ROWS, 60)


def test_a_network_that_could_not_be_measured_has_a_line_and_a_reason(tmp_path):
    (line,) = [line for line in shown([HUGE, *ROWS]).splitlines() if "huge" in line]
    assert "out of memory" in line
    path = tmp_path / "compare.csv"
    write_comparison(path, [HUGE, *ROWS], CONDITIONS)
    first, second, *_ = csv.DictReader(path.open())
    assert first["failure"] == "out of memory with 32 images a batch"
    assert (first["latency_ms"], second["latency_ms"]) == ("", "90.0")
    assert "huge" in shown([HUGE])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((9.999, "10.0"), (99.97, "100"), (0.004, "0.004"), (0.0041234, "0.00412"), (0, "0")),
        *((0.47, "0.47"), (3.5, "3.50"), (25.64, "25.6"), (999.7, "1,000"), (1280.4, "1,280")),
    ],
)
def test_a_number_has_three_digits_that_say_something(value, text):
    assert number(value) == text


def test_the_file_holds_all_rows_in_full_precision_and_says_why_weights_are_missing(tmp_path):
    path = tmp_path / "compare.csv"
    write_comparison(path, ROWS, CONDITIONS)
    lines = {line["model"]: line for line in csv.DictReader(path.open())}
    assert list(lines) == [one.model for one in ROWS]
    assert float(lines["middle"]["accuracy"]) == 93.1
    assert float(lines["middle"]["accuracy_per_million_parameters"]) == pytest.approx(93.1 / 2.25)
    assert float(lines["middle"]["finetuning_images_per_second"]) == pytest.approx(320)
    assert (lines["clumsy"]["pareto_front"], lines["middle"]["pareto_front"]) == ("False", "True")
    assert lines["unknown"]["accuracy"] == ""
    assert lines["unknown"]["weights_tried"] == "keras could not be reached"
    assert lines["unknown"]["latency_ms"] == "2.0"


@pytest.mark.parametrize(
    "rows",
    [ROWS, [LARGE], [UNKNOWN], TUNED, [HUGE, *ROWS]],
    ids=["all", "one", "no accuracy", "fine-tuned", "out of memory"],
)
def test_the_image_can_be_drawn_of_any_rows(rows, tmp_path):
    path = tmp_path / "compare.png"
    write_plot(path, rows, conditions_of(rows))
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    blue = (abs(pixels.astype(int) - [0x1F, 0x6F, 0xEB]).sum(axis=1) < 12).sum()
    assert bool(blue) == bool(pareto_front([one for one in rows if one is not HUGE]))

"""The page that compares runs, from what each of them wrote down."""

import re

import pytest
from logged_run import logged_run as run

from jaxtl import report
from jaxtl.errors import UserError
from jaxtl.reports import write_comparison
from jaxtl.runs.directory import RunDirectory


def test_it_has_results_with_intervals_curves_and_what_differs(tmp_path):
    first = run(tmp_path / "a <i>", 0.001, [0.5, 0.9])
    second = run(tmp_path / "b", 0.01, [0.5, 0.8], new_metric=3.0)
    RunDirectory(second).finish({"step": 2, "best_epoch": 2, "loss": 0.2, "accuracy": 0.8})
    page = write_comparison([first, second], tmp_path / "both.html").read_text()
    assert "<i>" not in page
    assert "90.0% " in page
    assert "82.6% to 94.5%" in page  # Wilson's interval of 90 of 100, by hand
    assert "71.1% to 86.7%" in page
    assert "validation accuracy: a &lt;i&gt; from 0.5 to 0.9, b from 0.5 to 0.8" in page
    assert "validation new metric: b from 3 to 3" in page
    assert re.findall(r"<tr><th>([\w.]+)</th><td>(\S+)</td><td>(\S+)</td>", page) == [
        ("phases.head.lr", "0.001", "0.01")
    ]
    assert page.count('<td class="n">150</td>') == 2  # images/s
    assert "cannot be compared" not in page


def test_it_says_when_the_images_differ(tmp_path):
    paths = [run(tmp_path / name, 0.1, [0.5], val=name) for name in ("a", "b")]
    page = write_comparison(paths, tmp_path / "both.html").read_text()
    assert "cannot be compared" in page
    assert "these runs have the same config" in page


def test_a_run_without_an_epoch_has_no_result(tmp_path):
    paths = [run(tmp_path / "a", 0.1, [0.5]), run(tmp_path / "b", 0.1, [])]
    page = write_comparison(paths, tmp_path / "both.html").read_text()
    assert re.search(r'b</td><td class="n">\s*-\s*</td><td class="n">-</td>', page)


def test_the_state_of_a_run_that_is_not_complete_has_its_epoch(tmp_path):
    paths = [run(tmp_path / "a", 0.1, [0.5]), run(tmp_path / "b", 0.1, [0.5, 0.6])]
    RunDirectory(paths[1]).finish({"step": 2, "best_epoch": 2, "loss": 0.2, "accuracy": 0.6})
    page = write_comparison(paths, tmp_path / "both.html").read_text()
    states = re.findall(r"<td>([^<]*)</td></tr>", page)
    assert states[:2] == ["not complete: phase head, epoch 1 of 2", "complete"]


def test_the_lines_of_up_to_21_runs_differ_and_of_more_the_page_says_that_they_do_not(tmp_path):
    paths = [run(tmp_path / f"{number:02}", 0.1, [0.5]) for number in range(22)]
    page, crowded = (
        write_comparison(paths[:count], tmp_path / f"{count}.html").read_text()
        for count in (21, 22)
    )
    drawn = re.findall(r'<g class="(line-\d \w+)"><polyline', page)
    assert len(drawn) == 2 * 21  # of loss and accuracy
    assert len(set(drawn)) == 21
    named = re.findall(r'<span class="key (line-\d \w+)"></span>', page)
    assert drawn == [*named, *named]
    assert "More than 21 runs" in crowded
    assert "More than 21 runs" not in page


def test_the_command_writes_it(tmp_path, capsys):
    paths = [str(run(tmp_path / name, 0.1, [0.5])) for name in ("a", "b")]
    assert report.main([*paths, "--to", str(tmp_path / "both.html")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'both.html'}\n"
    assert "2 runs compared" in (tmp_path / "both.html").read_text()


def test_the_command_asks_for_the_name_of_the_page(tmp_path):
    with pytest.raises(UserError, match="--to FILE"):
        report.main([str(tmp_path / "a"), str(tmp_path / "b")])

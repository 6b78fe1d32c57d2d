"""The page of a run is there while it trains, and an error in it ends nothing."""

import itertools
import re
import signal
import types

import pytest
import small_run

from jaxtl import report
from jaxtl.errors import Interrupted
from jaxtl.reports import write_page
from jaxtl.runs.directory import RunDirectory
from jaxtl.runs.metrics_log import read_metrics
from jaxtl.training.optimizer import schedule
from jaxtl.training.report import _learning_rates

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small")]

SCHEDULES = {
    "constant": {},
    "cosine": {"warmup_epochs": 2},
    "linear": {},
    "one_cycle": {},
    "step": {"step_epochs": (3, 6)},
}

CONFIG = small_run.settings({"train": {"head/.*": 1.0}, "epochs": 2})
LONG = small_run.settings({"train": {"head/.*": 1.0}, "epochs": 30}).phases


def test_a_page_is_written_during_training_completed_at_the_end_and_drawn_again(tmp_path):
    page, seen = tmp_path / "run" / "report.html", []
    out = small_run.watched("p0 2/2", lambda: seen.append(page.read_text()))
    small_run.run(CONFIG, tmp_path / "run", out)
    (during,) = seen
    assert "not complete: phase p0, epoch 1 of 2" in during
    assert "Calibration" not in during
    complete = page.read_text()
    assert "Calibration" in complete
    assert "Grad-CAM" in complete
    assert len(complete) < 2_000_000
    assert report.main([str(tmp_path / "run"), "--to", str(tmp_path / "again.html")]) == 0
    assert without_thumbnails((tmp_path / "again.html").read_text()) == without_thumbnails(complete)


def test_a_page_that_cannot_be_drawn_is_said_twice_and_costs_nothing(tmp_path):
    out = small_run.watched("p0 1/2", (tmp_path / "run" / "report.html").mkdir)
    directory, checkpoints = small_run.run(CONFIG, tmp_path / "run", out)
    said = out.file.getvalue()
    assert said.count("report.html could not be drawn (IsADirectoryError") == 2
    assert f"python -m jaxtl.report {tmp_path / 'run'}" in said
    assert directory.metadata().result is not None
    assert checkpoints.newest().epoch == 2


def test_drawing_takes_a_twentieth_of_short_epochs_and_shows_the_last_one(tmp_path, monkeypatch):
    ticks, drawn = itertools.count(), []

    def draw(run, *others):
        drawn.append(read_metrics(run.metrics)[-1]["epoch"])
        return write_page(run, *others)

    # Every look at the clock is a second later: drawing takes one, and so does an epoch without.
    clock = types.SimpleNamespace(monotonic=lambda: next(ticks))
    monkeypatch.setattr("jaxtl.training.report.time", clock)
    monkeypatch.setattr("jaxtl.training.report.write_page", draw)
    small_run.run(CONFIG.model_copy(update={"phases": LONG}), tmp_path / "run")
    assert drawn == [1, 21, 30, 30]  # the last once more, with what the result says


def test_what_was_not_drawn_is_drawn_before_a_run_ends_early(tmp_path, monkeypatch):
    clock = types.SimpleNamespace(monotonic=itertools.count().__next__)
    monkeypatch.setattr("jaxtl.training.report.time", clock)
    stop = small_run.watched("p0 5/30", lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted):
        small_run.run(CONFIG.model_copy(update={"phases": LONG}), tmp_path / "run", stop)
    logged = read_metrics(RunDirectory(tmp_path / "run").metrics)[-1]["epoch"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert logged in (4, 5)
    assert f"not complete: phase p0, epoch {logged} of 30" in page


@pytest.mark.parametrize("lr", [0.3, "auto"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_learning_rates_of_every_schedule_are_those_of_its_steps(name, lr):
    phase = CONFIG.phases[0].model_copy(
        update={"epochs": 9, "lr": lr, "schedule": name, **SCHEDULES[name]}
    )
    assert bool(_learning_rates(phase, 7, found=0)) == (lr != "auto")  # not found yet
    factor = schedule(phase, 7)
    assert _learning_rates(phase, 7, found=0.3) == [
        (pytest.approx((step + 1) / 7), pytest.approx(0.3 * float(factor(step)), abs=1e-7))
        for step in range(63)
    ]


def without_thumbnails(page):
    """Bits of probabilities depend on the batch, hence those of a Grad-CAM."""
    return re.sub(r"data:image/jpeg[^\"]*", "", page)

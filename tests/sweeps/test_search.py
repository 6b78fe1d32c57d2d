"""A search by Optuna: its trials, what it writes, and processes that share and lose a study."""

import contextlib
import csv
import io
import itertools
import json
import multiprocessing
import runpy
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import jax
import optuna
import pytest
from rich.console import Console

from jaxtl import sweep as command
from jaxtl.config import Config, Model, Phase, head_only
from jaxtl.config.config_file import load
from jaxtl.data.splits import OpenOnce
from jaxtl.errors import UserError
from jaxtl.runs.directory import RunDirectory
from jaxtl.runs.metrics_log import read_metrics
from jaxtl.sweeps import study as studies
from jaxtl.sweeps.search import load_search, search
from jaxtl.sweeps.study import IMAGES, METRIC, RUN, Study, study_name
from jaxtl.sweeps.together import Family, heads_may_differ_in, train_together
from jaxtl.sweeps.variations import Variation
from jaxtl.training.setup import open_data, plan_run, train

CONFIG = """
from jaxtl.config import Cache, Config, Data, Model, Phase

def get_config():
    return Config(
        model=Model(width=0.35, image_size=32, weights=None),
        data=Data(source="digits", batch_size=256),
        views=1,
        phases=(Phase(name="head", train={"head/.*": 1.0}, epochs=3),),
    )

def search(trial):
    return {
        "phases.head.lr": trial.suggest_float("phases.head.lr", 1e-6, 1e-1, log=True),
        "model.dropout": trial.suggest_categorical("model.dropout", [0.0, 0.3]),
        "phases.head.weight_decay": trial.suggest_float("phases.head.weight_decay", 0.0, 0.1),
        # more
    }
"""
MORE = '        "data.seed": trial.suggest_int("data.seed", 0, 9),\n'
VIEWS = "--cfg.views=1"
HEADS = CONFIG.partition('        "model.dropout"')[0] + "    }\n"
SMALL = {"model.name": "small", "model.width": "1"}
PHASE = Phase(name="head", train=head_only(), epochs=1)
QUIET = Console(quiet=True)
COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **names: COMPILED.append(event) if "backend_compile" in event else None
)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "wide.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def heads(tmp_path):
    """A config in which nothing is searched for that heads may not differ in."""
    path = tmp_path / "heads.py"
    path.write_text(HEADS)
    return path


def study_of(workdir):
    name = json.loads((workdir / "search.json").read_text())["study"]
    return optuna.load_study(study_name=name, storage=f"sqlite:///{workdir}/study.db")


def begin_study(workdir, path):
    """The study of a search for a config, as another process would open it."""
    return Study(f"sqlite:///{workdir}/study.db", study_name(workdir, load_search(path, {}).config))


@pytest.mark.slow
def test_a_search_ends_with_so_many_trials_and_writes_the_best_config(config, tmp_path):
    workdir = tmp_path / "search"
    out = Console(file=io.StringIO(), width=200)
    flags = {"phases.head.epochs": "2", "data.test_fraction": "0.2"}
    what = load_search(str(config), flags)
    assert search(what, workdir, 3, None, QUIET)
    assert search(what, workdir, 8, None, out)  # goes on
    study = study_of(workdir)
    assert len(study.trials) == 8
    states = {trial.state.name for trial in study.trials}
    assert "COMPLETE" in states <= {"COMPLETE", "PRUNED"}
    rows = list(csv.DictReader((workdir / "search.csv").open()))
    assert [int(row["trial"]) for row in rows] == list(range(8))
    best = max(rows, key=lambda row: float(row["val_accuracy"]))
    test = RunDirectory(workdir / best["run"]).metadata().result["test_accuracy"]
    assert f"its test: test_accuracy {test:.4f}" in out.file.getvalue()
    written = load(str(workdir / "best.py"), {})
    assert written.phases[0].lr == float(best["phases.head.lr"])
    assert written.phases[0].epochs == 2
    reported = study.trials[int(best["trial"])].intermediate_values
    measured = [
        m["accuracy"]
        for m in read_metrics(workdir / best["run"] / "metrics.jsonl")
        if m["split"] == "val"
    ]
    assert list(reported.values()) == pytest.approx(measured)
    assert runpy.run_path(str(workdir / "best.py"))["get_config"]() == written
    assert written.with_monitor("accuracy") == RunDirectory(workdir / best["run"]).config()
    for name in ("values", "importance"):
        plot = (workdir / f"search-{name}.svg").read_text()
        names = ("phases.head.lr", "model.dropout", "phases.head.weight_decay", "val_accuracy")
        assert all(f"<!-- {name} -->" in plot for name in names)
    config.write_text(CONFIG.replace("        # more\n", MORE))
    assert search(load_search(str(config), flags), workdir, 8, None, QUIET)
    assert load(str(workdir / "best.py"), {}) == written  # whatever is searched for now
    with pytest.raises(UserError, match=r"another search \(data\.batch_size: 256 -> 64\)"):
        search(load_search(str(config), flags | {"data.batch_size": "64"}), workdir, 8, None, QUIET)


@pytest.mark.slow
def test_heads_train_together_and_compile_as_much_as_one(small, heads, tmp_path):
    what, out, compiled = load_search(str(heads), SMALL), Console(file=io.StringIO(), width=200), []
    for count in (2, 8):
        before = len(COMPILED)
        assert search(what, tmp_path / str(count), count, None, out)
        compiled.append(len(COMPILED) - before)
    assert "8 runs train together" in out.file.getvalue()
    trials = study_of(tmp_path / "8").trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 8  # none to compare them with
    config = what.variation(optuna.trial.FixedTrial(trials[5].params))[1]
    before = len(COMPILED)
    alone = train(config, open_data(config), tmp_path / "alone", QUIET)
    # Eight alone would compile eight times as much as one.
    assert compiled[1] <= compiled[0] < 2 * (len(COMPILED) - before)
    assert trials[5].value == pytest.approx(alone["accuracy"], abs=1e-3)
    logged = read_metrics(tmp_path / "8" / trials[5].user_attrs["run"] / "metrics.jsonl")
    measured = [line["accuracy"] for line in logged if line["split"] == "val"]
    assert list(trials[5].intermediate_values.values()) == measured


@pytest.mark.slow
def test_a_head_that_is_ended_early_leaves_the_others_as_they_are(small, heads, tmp_path):
    what = load_search(str(heads), SMALL)
    rates = {"first": 1e-3, "ended": 1e-2, "last": 2e-2}
    variations = [
        Variation(name, {}, what.variation(optuna.trial.FixedTrial({"phases.head.lr": rate}))[1])
        for name, rate in rates.items()
    ]
    data = open_data(variations[0].config)
    family = Family(variations, data, *plan_run(variations[0].config, 10))
    asked, results = [], []
    for after_epoch in (
        None,
        lambda name, epochs, accuracy: asked.append((name, epochs)) or name != "ended",
    ):
        workdir = tmp_path / str(len(results))
        workdir.mkdir()
        train_together(family, workdir, QUIET, results.append, after_epoch)
    every, left = results
    assert [run.pruned for run in left] == [False, True, False]
    assert [run.result for run in left] == [every[0].result, None, every[2].result]
    assert asked.count(("ended", 1)) == 1
    assert len(asked) == 3 + 2 + 2
    assert sorted(path.name for path in workdir.iterdir()) == ["first", "heads", "last"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("together", [True, False])
def test_a_trial_below_the_median_of_five_ends_after_an_epoch(together, small, heads, tmp_path):
    workdir, url = tmp_path / "search", f"sqlite:///{tmp_path}/study.db"
    what, out = load_search(str(heads), SMALL), Console(file=io.StringIO(), width=200)
    if not together:
        what = load_search(str(heads), {**SMALL, "on_nan": "halve_lr"})
    study = Study(url, study_name(workdir, what.config, url))
    known = {RUN: "x", IMAGES: 9, METRIC: "accuracy", studies.CONFIG: what.config.model_dump()}
    for _ in range(5):
        right = dict.fromkeys((1, 2, 3), 1.0)
        study.optuna.add_trial(
            optuna.create_trial(value=1.0, intermediate_values=right, user_attrs=known)
        )
    begun = 2 if together else 1
    assert search(what, workdir, 5 + begun, url, out)
    ended = study.optuna.trials[5:]
    assert [trial.state.name for trial in ended] == ["PRUNED"] * begun
    assert [list(trial.intermediate_values) for trial in ended] == [[1]] * begun
    said = out.file.getvalue()
    assert said.count("ends: others did better after an epoch") == begun
    assert ("train together" in said) == together
    assert f"5 complete, {begun} pruned" in said


def test_heads_may_differ_in_what_one_program_takes_as_numbers():
    config, weighted = Config(phases=(PHASE,), model=Model(weights=None)), Config(phases=(PHASE,))
    free = ("phases.head.lr", "phases.head.weight_decay", "phases.head.label_smoothing")
    assert all(heads_may_differ_in(key, config) for key in free)
    assert heads_may_differ_in("seed", weighted)
    others = ("seed", "views", "model.dropout", "phases.head", "phases.head.epochs", "data.seed")
    assert not any(heads_may_differ_in(key, config) for key in others)


def ask(url, barrier, most, numbers):
    study = Study(url, "shared")
    barrier.wait()
    while (trial := study.ask(most)) is not None:
        numbers.put(trial.number)


@pytest.mark.slow
def test_processes_that_ask_at_once_get_as_many_trials_as_there_shall_be(tmp_path):
    context, url = multiprocessing.get_context("spawn"), f"sqlite:///{tmp_path}/study.db"
    barrier, numbers = context.Barrier(3), context.Queue()
    asking = [context.Process(target=ask, args=(url, barrier, 7, numbers)) for _ in range(3)]
    for process in asking:
        process.start()
    for process in asking:
        process.join()
    assert len({numbers.get(timeout=1) for _ in range(7)}) == 7
    assert numbers.empty()
    assert len(Study(url, "shared").begun()) == 7


class Opens(OpenOnce):
    """Opens images, and does something before."""

    def __init__(self, before):
        super().__init__()
        self.before = before

    def __call__(self, data):
        self.before()
        return super().__call__(data)


def beats(workdir):
    """When each trial was alive last, by its id."""
    with contextlib.closing(sqlite3.connect(workdir / "study.db")) as database:
        return dict(database.execute("SELECT trial_id, heartbeat FROM trial_heartbeats"))


def change(workdir, command):
    with contextlib.closing(sqlite3.connect(workdir / "study.db", timeout=60)) as database:
        database.execute(command)
        database.commit()


LONG_AGO = "UPDATE trial_heartbeats SET heartbeat = '2000-01-01 00:00:00'"


def beats_again(workdir):
    """Whether a process says within some time that its trials are alive, after a long silence."""
    change(workdir, LONG_AGO)
    until = time.monotonic() + 20
    while any(beat.startswith("2000") for beat in beats(workdir).values()):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


@pytest.fixture
def hasty(monkeypatch):
    """Heartbeats every second, in this process."""
    monkeypatch.setattr(studies, "_HEARTBEAT", 1)


def test_a_trial_is_alive_while_its_images_are_opened(hasty, heads, tmp_path):
    alive, workdir = [], tmp_path / "search"

    def fails():
        alive.append(beats_again(workdir))
        raise UserError("no images")

    with pytest.raises(UserError, match=r"no trial of .* has a result"):
        search(load_search(str(heads), {}), workdir, 1, None, QUIET, Opens(fails))
    assert alive == [True] * 2  # to see whether others can train with it, and to train


def with_a_heartbeat(study, workdir):
    study.ask(1)


def before_its_first_heartbeat(study, workdir):
    study.optuna.ask()


def begun_again_and_before_its_first_heartbeat(study, workdir):
    study.ask(1)
    change(workdir, LONG_AGO)
    study.begun()  # gives it up
    study.optuna.ask()


@pytest.mark.filterwarnings("ignore:Heartbeat of storage:UserWarning")
@pytest.mark.parametrize(
    "begin",
    [with_a_heartbeat, before_its_first_heartbeat, begun_again_and_before_its_first_heartbeat],
)
def test_a_process_waits_for_a_trial_that_was_killed_and_begins_it_again(
    hasty, heads, tmp_path, begin, monkeypatch
):
    workdir = tmp_path / "search"

    class Out(io.StringIO):
        def write(self, text):
            if "waiting for" in text:
                change(workdir, LONG_AGO)
            return super().write(text)

    def fails():
        raise UserError("no images")

    wait, waits = Study.wait, itertools.count()

    def wait_a_while(study):
        assert next(waits) < 30, "it waits for ever"
        wait(study)

    begin(begin_study(workdir, str(heads)), workdir)
    began = study_of(workdir).trials
    assert began[-1].state.name == "RUNNING"
    monkeypatch.setattr(Study, "wait", wait_a_while)
    out = Console(file=Out(), width=200)
    with pytest.raises(UserError, match=r"no trial of .* has a result"):
        search(load_search(str(heads), {}), workdir, 1, None, out, Opens(fails))
    assert out.file.getvalue().count("waiting for what other processes began: trials 0\n") == 1
    ended = [trial.state.name for trial in study_of(workdir).trials]
    assert ended == ["FAIL"] * (len(began) + 1)
    assert (workdir / "search.csv").read_text().count("fail") == len(ended)


def test_a_signal_ends_the_wait_for_other_processes(heads, tmp_path):
    workdir = tmp_path / "search"
    begin_study(workdir, str(heads)).ask(1)

    class Out(io.StringIO):
        def write(self, text):
            if "waiting for" in text:
                threading.Timer(0.5, signal.raise_signal, (signal.SIGINT,)).start()
            return len(text)

    with pytest.raises(KeyboardInterrupt):
        search(load_search(str(heads), {}), workdir, 1, None, Console(file=Out(), width=200))
    assert [trial.state.name for trial in study_of(workdir).trials] == ["RUNNING"]


def test_heartbeats_go_on_after_an_error_of_the_database(hasty, tmp_path, caplog):
    study = Study(f"sqlite:///{tmp_path}/study.db", "lost")
    study.ask(1)
    with study.alive():
        change(tmp_path, "ALTER TABLE trial_heartbeats RENAME TO gone")
        until = time.monotonic() + 20
        while "heartbeat of the trials: sqlite:///" not in caplog.text:
            assert time.monotonic() < until
            time.sleep(0.1)
        change(tmp_path, "ALTER TABLE gone RENAME TO trial_heartbeats")
        assert beats_again(tmp_path)
    assert not any("\n" in record.getMessage() for record in caplog.records)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_trial_that_was_given_back_may_still_be_killed_twice(tmp_path):
    study = Study(f"sqlite:///{tmp_path}/study.db", "given back")
    for _ in range(3):
        study.give_back(study.ask(1))
    for number in (3, 4, 5):
        assert study.ask(1).number == number
        change(tmp_path, LONG_AGO)
    assert study.ask(1) is None
    assert len(study.optuna.trials) == 6


@pytest.mark.slow
@pytest.mark.parametrize("together", [True, False])
def test_a_trial_that_another_process_took_over_is_dropped_alone(together, small, heads, tmp_path):
    opened, workdir = [], tmp_path / "search"

    def lose():
        if len(opened) == (0 if together else 1):  # alone, the first one looks for others
            study_of(workdir).tell(0, state=optuna.trial.TrialState.FAIL)
        opened.append(None)

    what, out = load_search(str(heads), SMALL), Console(file=io.StringIO(), width=200)
    if not together:
        what = load_search(str(heads), {**SMALL, "on_nan": "halve_lr"})
    assert not search(what, workdir, 2, None, out, Opens(lose))
    assert out.file.getvalue().count("trial 0 is dropped: another process took it over") == 1
    assert [trial.state.name for trial in study_of(workdir).trials] == ["FAIL", "COMPLETE"]


def wait_for_trials(workdir, count):
    """Waits until so many trials train."""
    until = time.monotonic() + 120
    while not (workdir / "study.db").exists() or len(running(workdir)) < count:
        assert time.monotonic() < until
        time.sleep(0.2)


def running(workdir):
    with contextlib.suppress(Exception):  # of a database that is being created
        return [t for t in study_of(workdir).trials if t.intermediate_values]
    return []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_heads_whose_process_is_stopped_begin_again(number, heads, tmp_path):
    workdir = tmp_path / "search"
    flags = ["--cfg", str(heads), "--workdir", str(workdir), "--trials", "4"]
    start = [sys.executable, "-m", "jaxtl.sweep", *flags]
    stopped = subprocess.Popen([*start, "--cfg.phases.head.epochs=300"], stdout=subprocess.DEVNULL)
    wait_for_trials(workdir, 4)
    stopped.send_signal(number)
    assert stopped.wait(timeout=60) == (143 if number == signal.SIGTERM else -number)
    if number == signal.SIGKILL:  # two minutes later
        change(workdir, LONG_AGO)
    flags = {"phases.head.epochs": "300"}
    assert search(load_search(str(heads), flags), workdir, 4, None, QUIET)
    states = [trial.state.name for trial in study_of(workdir).trials]
    assert states == ["FAIL"] * 4 + ["COMPLETE"] * 4
    for before, after in zip(
        study_of(workdir).trials[:4], study_of(workdir).trials[4:], strict=True
    ):
        assert after.params == before.params


def name_a_study(barrier, workdir, path, names):
    config = load_search(path, {}).config
    barrier.wait()
    names.put(study_name(workdir, config))


@pytest.mark.slow
def test_processes_that_begin_at_once_get_one_name(heads, tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, names = context.Barrier(3), context.Queue()
    for number in range(5):
        arguments = (barrier, tmp_path / f"search{number}", str(heads), names)
        began = [context.Process(target=name_a_study, args=arguments) for _ in range(3)]
        for process in began:
            process.start()
        for process in began:
            process.join()
        assert len({names.get(timeout=1) for _ in range(3)}) == 1


def test_a_search_goes_on_in_its_own_database_alone(heads, tmp_path):
    config = load_search(str(heads), {}).config
    one = study_name(tmp_path / "s", config, "postgresql+psycopg://me:secret@here/trials")
    assert study_name(tmp_path / "s", config, "postgresql://you@there:99/trials") == one
    assert "secret" not in (tmp_path / "s" / "search.json").read_text()
    for url, said in ((None, "study.db"), ("mysql://me@here/trials", "mysql trials")):
        with pytest.raises(UserError, match=rf"--storage: postgresql trials -> {said}"):
            study_name(tmp_path / "s", config, url)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_trial_begins_again_after_a_fault_of_the_database_that_was_short(heads, tmp_path):
    def breaks():
        raise optuna.exceptions.StorageInternalError("for a moment")

    workdir = tmp_path / "search"
    with pytest.raises(UserError, match=r"^--storage .* for a moment; .* goes on$"):
        search(load_search(str(heads), {}), workdir, 1, None, QUIET, Opens(breaks))
    assert [trial.state.name for trial in study_of(workdir).trials] == ["FAIL", "WAITING"]


@pytest.mark.slow
def test_a_trial_that_is_taken_over_at_its_end_is_dropped(small, heads, tmp_path):
    workdir = tmp_path / "search"

    class Out(io.StringIO):
        def write(self, text):
            if "correct, 95 % interval" in text and not self.getvalue().count("correct, 95"):
                study_of(workdir).tell(0, state=optuna.trial.TrialState.FAIL)
            return super().write(text)

    alone = load_search(str(heads), {**SMALL, "on_nan": "halve_lr"})
    out = Console(file=Out(), width=200)
    assert not search(alone, workdir, 2, None, out)
    assert out.file.getvalue().count("trial 0 is dropped: another process took it over") == 1
    assert not (workdir / "failed.log").exists()
    assert [trial.state.name for trial in study_of(workdir).trials] == ["FAIL", "COMPLETE"]


def test_searches_of_several_workdirs_share_a_database_and_no_trials(heads, tmp_path):
    url, config = f"sqlite:///{tmp_path}/shared.db", load_search(str(heads), {}).config
    names = [study_name(tmp_path / folder / "search", config) for folder in ("a", "b", "a")]
    assert names[0] == names[2] != names[1]
    asked = [Study(url, name).ask(1) for name in names]
    assert [trial is None for trial in asked] == [False, False, True]


def test_a_folder_with_other_files_is_no_workdir_of_a_search(heads, tmp_path):
    with pytest.raises(UserError, match="holds other files; name a new directory"):
        study_name(tmp_path, load_search(str(heads), {}).config)
    assert [path.name for path in tmp_path.iterdir()] == ["heads.py"]


def test_a_database_that_fails_ends_a_search_in_one_line(heads, tmp_path):
    workdir = tmp_path / "search"
    opens = Opens(lambda: change(workdir, "ALTER TABLE trial_user_attributes RENAME TO gone"))
    with pytest.raises(UserError, match=r"^--storage sqlite:.*no such table.* goes on$") as raised:
        search(load_search(str(heads), {}), workdir, 1, None, QUIET, opens)
    assert "\n" not in str(raised.value)


def test_a_trial_that_fails_unexpectedly_does_not_end_a_search(heads, tmp_path):
    def breaks():
        raise ZeroDivisionError("so it is")

    workdir, out = tmp_path / "search", Console(file=io.StringIO(), width=1000)
    with pytest.raises(UserError, match=r"no trial of .* has a result"):
        search(load_search(str(heads), {}), workdir, 2, None, out, Opens(breaks))
    assert [trial.state.name for trial in study_of(workdir).trials] == ["FAIL"] * 2
    log = (workdir / "failed.log").read_text()
    assert log.count("Traceback") == 4  # where it looks for others, and where it trains
    assert "in breaks" in log
    for number in (0, 1):
        assert f"trial {number} failed: ZeroDivisionError: so it is (the tr" in out.file.getvalue()


def create(url, barrier):
    Study("sqlite://", "imports")  # all that is imported late
    barrier.wait()
    Study(url, "shared")


@pytest.mark.slow
def test_processes_that_begin_a_search_at_once_share_it(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, url = context.Barrier(4), f"sqlite:///{tmp_path}/study.db"
    began = [context.Process(target=create, args=(url, barrier)) for _ in range(4)]
    for process in began:
        process.start()
    for process in began:
        process.join()
    assert [process.exitcode for process in began] == [0] * 4


@pytest.mark.slow
def test_two_processes_share_a_study_and_one_that_is_killed_is_made_up_for(config, tmp_path):
    workdir = tmp_path / "search"
    flags = ["--cfg", str(config), "--workdir", str(workdir), "--trials", "6"]
    start = [sys.executable, "-m", "jaxtl.sweep", *flags]
    said = tmp_path / "said"
    with said.open("w") as out:
        both = [subprocess.Popen(start, stdout=to) for to in (subprocess.DEVNULL, out)]
    until = time.monotonic() + 120
    while not list(workdir.glob("0*/metrics.jsonl")):
        assert time.monotonic() < until
        time.sleep(0.1)
    both[0].send_signal(signal.SIGKILL)
    assert both[0].wait() == -signal.SIGKILL
    while both[1].poll() is None and "waiting for" not in said.read_text():
        time.sleep(0.1)
    change(workdir, LONG_AGO)  # two minutes later
    assert both[1].wait(timeout=300) == 0
    trials = study_of(workdir).trials
    over = [t for t in trials if t.state.name in ("COMPLETE", "PRUNED")]
    assert len(over) == 6


@pytest.mark.slow
def test_a_trial_that_a_signal_stops_is_gone_on_with(config, tmp_path):
    workdir = tmp_path / "search"
    flags = ["--cfg", str(config), "--workdir", str(workdir), "--trials", "2"]
    start = [sys.executable, "-m", "jaxtl.sweep", *flags]
    stopped = subprocess.Popen([*start, "--cfg.phases.head.epochs=500"], stdout=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not list(workdir.glob("0*/metrics.jsonl")):
        assert time.monotonic() < until
        time.sleep(0.1)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(timeout=60) == 143
    states = [trial.state.name for trial in study_of(workdir).trials]
    assert states == ["FAIL", "WAITING"]
    (run,) = workdir.glob("0*-*")
    assert study_of(workdir).trials[1].user_attrs["run"] == run.name


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        (CONFIG, [], r"no sweep\(\): search by --trials 30"),
        (CONFIG, ["--storage", "sqlite://"], "a number of trials, at least 1: --trials 30"),
        (CONFIG.partition("def search")[0], ["--trials", "3"], "has no search"),
        (CONFIG, ["--trials", "2", "--storage", "nosql://x"], "--storage nosql://x: "),
    ],
)
def test_what_is_no_search_is_refused(text, flags, message, tmp_path):
    path = tmp_path / "wide.py"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        command.main(["--cfg", str(path), "--workdir", str(tmp_path / "search"), *flags])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CONFIG.replace('"model.dropout":', '"model.drop":'), "model.drop"),
        (CONFIG.replace("1e-6, 1e-1", "1e-1, 1e-6"), r"wide\.py cannot be read: ValueError"),
        (CONFIG.replace('"model.dropout":', '"views":'), r"--cfg\.views: search\(\) varies views"),
    ],
)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_mistake_in_the_config_ends_a_search_and_is_no_trial(text, message, tmp_path):
    path = tmp_path / "wide.py"
    path.write_text(text)
    workdir = tmp_path / "search"
    with pytest.raises(UserError, match=message):
        command.main(["--cfg", str(path), "--workdir", str(workdir), "--trials", "2", VIEWS])
    name = json.loads((workdir / "search.json").read_text())["study"]
    assert Study(f"sqlite:///{workdir}/study.db", name).begun() == []


@pytest.mark.parametrize("address", ["nosql://me:secret@host/x", "nosql://me:secret@host:port/x"])
def test_the_password_of_a_database_is_not_shown(address, config, tmp_path):
    workdir = tmp_path / "search"
    flags = ["--cfg", str(config), "--workdir", str(workdir), "--trials", "1"]
    with pytest.raises(UserError, match="--storage ") as raised:
        command.main([*flags, "--storage", address])
    assert "secret" not in str(raised.value)


def test_of_a_config_with_both_a_sweep_and_a_search_trials_decide(tmp_path):
    path = tmp_path / "wide.py"
    path.write_text(CONFIG + "\ndef sweep():\n    yield {'phases.none.lr': 0.1}\n")
    flags = ["--cfg", str(path), "--workdir", str(tmp_path / "runs")]
    with pytest.raises(UserError, match=r"variation 00-phases\.none"):
        command.main(flags)
    with pytest.raises(UserError, match="--storage nosql://x"):
        command.main([*flags, "--trials", "1", "--storage", "nosql://x"])

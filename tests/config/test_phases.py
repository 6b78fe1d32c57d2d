"""What a phase trains: the helpers, their place in configs, flags and files, and their guide."""

import functools
import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from jaxtl.config import Counts
from jaxtl.config.config_file import Config, differences, load, vary
from jaxtl.config.phases import Phase, Stages, everything, from_stage, gradual, head_only
from jaxtl.errors import UserError
from jaxtl.models import REGISTRY, batch_statistics, build, split
from jaxtl.sweeps.variations import load_sweep
from jaxtl.training.setup import plan_run
from jaxtl.training.stage_table import stage_table
from jaxtl.training.trainable import select_trainable

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "configs").glob("*.py"))
GUIDE = (ROOT / "docs" / "fine-tuning.md").read_text()
NETWORK = build("mobilenet_v2", num_classes=3, width=0.35)

CONFIG = """
from jaxtl.config import Config, Phase, everything, from_stage, gradual, head_only

def get_config() -> Config:
    return Config(phases=(
        Phase(name="head", train=head_only(), epochs=1),
        Phase(name="finetune", train=from_stage("block_14"), epochs=2),
        Phase(name="all", train=everything(decay=0.8), epochs=3),
    ))

def sweep():
    for stage in ("block_16", "block_7"):
        yield {"phases.finetune.train.from_stage": stage}
    yield {"phases.finetune.train": from_stage("block_3", decay=0.7)}
    yield {"phases.finetune.train": head_only()}
"""


@pytest.fixture
def write(tmp_path):
    """A function that writes a config and returns its path."""

    def write(text=CONFIG):
        path = tmp_path / "config.py"
        path.write_text(text)
        return str(path)

    return write


def phase(**changes):
    return {"name": "p", "train": {"head/.*": 1.0}, "epochs": 1} | changes


def refused(what, *arguments):
    with pytest.raises(UserError) as caught:
        what(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def frontiers(phases, network=NETWORK):
    return [select_trainable(network, p.train, p.batch_norm).frontier for p in phases]


def test_the_helpers_say_where_training_begins(write):
    loaded = load(write(), {})
    assert frontiers(loaded.phases) == ["head", "block_14", "stem"]
    trained = select_trainable(NETWORK, head_only(), "frozen").multipliers
    assert trained == {"head/kernel": 1.0, "head/bias": 1.0}


def test_gradual_unfreezing_begins_with_the_head_and_goes_left():
    phases = gradual(("top", "block_14", "block_7"), epochs=3, lr=1e-4, decay=0.5, patience=2)
    assert [p.name for p in phases] == ["head", "from_top", "from_block_14", "from_block_7"]
    assert frontiers(phases) == ["head", "top", "block_14", "block_7"]
    assert {(p.epochs, p.lr, p.patience) for p in phases} == {(3, 1e-4, 2)}
    rates = select_trainable(NETWORK, phases[-1].train, "frozen").multipliers
    assert rates["block_16/project/kernel"] == 0.25


def test_gradual_unfreezing_leaves_batch_norm_out_where_only_the_head_trains():
    settings = {"batch_norm": "train", "batch_norm_momentum": 0.9, "weight_decay": 0.1}
    phases = gradual(("block_16",), epochs=1, lr=1e-4, **settings)
    assert [p.batch_norm for p in phases] == ["frozen", "train"]
    assert [p.batch_norm_momentum for p in phases] == [None, 0.9]
    assert [p.weight_decay for p in phases] == [0.1, 0.1]
    assert frontiers(phases) == ["head", "block_16"]


def test_a_config_with_stages_comes_back_from_json_as_it_was(write):
    loaded = load(write(), {})
    restored = Config.model_validate_json(loaded.model_dump_json())
    assert restored == loaded
    assert isinstance(restored.phases[0].train, dict)
    assert restored.phases[1].train == Stages(from_stage="block_14", decay=0.9)
    assert restored.phases[2].train == Stages(from_stage=None, decay=0.8)
    assert differences(restored, loaded) == []
    assert Config.model_validate(loaded.model_dump()) == loaded


def test_flags_change_a_part_of_the_stages_or_what_trains_altogether(write):
    flags = {
        "phases.head.train": "{'from_stage': 'top', 'decay': 0.5}",
        "phases.finetune.train.from_stage": "block_7",
        "phases.finetune.train.decay": "1",
        "phases.all.train": "{'stem/.*': 0.5, 'head/.*': 1.0}",
    }
    head, finetune, everywhere = load(write(), flags).phases
    assert head.train == from_stage("top", decay=0.5)
    assert finetune.train == from_stage("block_7", decay=1.0)
    assert list(everywhere.train.items()) == [("stem/.*", 0.5), ("head/.*", 1.0)]
    whole = load(write(), {"phases.finetune.train.from_stage": "None"}).phases[1]
    assert whole.train == everything(decay=0.9)


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"from_stage": "top", "decay": 1.5}, "'phases.p.train.decay': Input should be less"),
        ({"from_stage": "top", "decay": 0.0}, "'phases.p.train.decay': Input should be greater"),
        ({"from_stage": 3, "decay": 0.5}, "'phases.p.train.from_stage': "),
        ({"from_stage": "top", "decy": 0.5}, "train.decy' is not known; did you mean 'decay'"),
        ({"from_stage": "top"}, "'phases.p.train.decay' is missing"),
        ({"top/.*": 1.0, "from_stage": "top"}, "phases.p.train': .*exclude each other"),
        ("top", "'phases.p.train': Input should be a valid dictionary, not 'top'"),
    ],
)
def test_stages_that_are_none_are_refused_by_their_key(train, words):
    assert re.search(words, refused(Config.model_validate, {"phases": (phase(train=train),)}))


@pytest.mark.parametrize(
    ("good", "bad", "words"),
    [
        (
            '"block_14")',
            '"block_14", decay=2)',
            "'train.decay': Input should be less than or equal to 1",
        ),
        ('"block_14")', '"block_14", decoy=2)', "decoy"),
        ("everything(decay=0.8)", "{'from_stage': None, 'deca': 1.0}", "did you mean 'decay'"),
    ],
)
def test_a_mistake_in_a_config_file_is_refused_with_its_path(write, good, bad, words):
    path = write(CONFIG.replace(good, bad))
    message = refused(load, path, {})
    assert path in message
    assert words in message


def test_a_stage_that_the_network_does_not_have_is_refused_before_anything_is_fetched(write):
    config = load(write(), {"phases.finetune.train.from_stage": "conv5_block1"})
    assert "no stage 'conv5_block1'" in refused(plan_run, config, 3)


def test_differences_tell_what_trained_and_what_trains():
    config, other, patterns = (
        Config(phases=(Phase(**phase(train=train)),))
        for train in (from_stage("top"), from_stage("block_9"), head_only())
    )
    (line,) = differences(config, other)
    assert line.startswith("phases.p.train: {'from_stage': 'top', 'decay': 0.9} -> ")
    assert "block_9" in line
    (line,) = differences(config, patterns)
    assert line.endswith(" -> [('head/.*', 1.0)]")


def test_a_sweep_varies_where_training_begins(write):
    runs = load_sweep(write(), {})
    trained = [run.config.phases[1].train for run in runs]
    whole = [from_stage("block_16"), from_stage("block_7"), from_stage("block_3", decay=0.7)]
    assert trained == [*whole, head_only()]
    assert runs[0].name == "00-phases.finetune.train.from_stage=block_16"
    decay = vary(runs[0].config, {"phases.finetune.train.decay": 0.6}).phases[1].train
    assert decay == from_stage("block_16", decay=0.6)


def test_the_table_of_a_run_shows_the_rate_of_each_stage():
    phases = [Phase(name="finetune", train=from_stage("block_16", 0.5), epochs=1, lr=1e-3)]
    frozen = [select_trainable(NETWORK, p.train, p.batch_norm) for p in phases]
    out = Console(file=io.StringIO(), width=300, no_color=True)
    out.print(stage_table(NETWORK, phases, frozen))
    rows = [re.split(r"\s*[│┃]\s*", line)[1:4:2] for line in out.file.getvalue().splitlines()]
    assert ["block_16", "trained, learning rate 0.00025"] in rows
    assert ["top", "trained, learning rate 0.0005"] in rows
    assert ["head", "trained, learning rate 0.001"] in rows
    assert ["stem ... block_15", "frozen"] in rows


def test_every_network_has_a_config():
    assert {load_shipped(path).model.name for path in SHIPPED} == set(REGISTRY)


def load_shipped(path):
    return load(str(path), {"data.source": "digits"}, lambda data: Counts(1438, 10, 32))


@functools.cache
def shipped(path):
    """The network of a config, and what trains in each of its phases."""
    return plan_run(load_shipped(path), 3)


@pytest.mark.slow
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_unfreezes_its_network_from_the_head_on(path):
    network, trainables = shipped(path)
    places = [network.stage_names.index(trainable.frontier) for trainable in trainables]
    assert places[0] == len(network.stage_names) - 1
    assert places == sorted(set(places), reverse=True)
    for trainable in trainables:
        assert trainable.multipliers["head/kernel"] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [p for p in SHIPPED if "million" in p.read_text()], ids=lambda path: path.stem
)
def test_what_a_config_says_of_its_parameters_is_so(path):
    network, trainables = plan_run(load_shipped(path), 1000)
    fixed, counts = batch_statistics(network), dict.fromkeys(network.stage_names, 0)
    for where, value in split(network)[1].items():
        if where not in fixed:
            counts[where.partition("/")[0]] += value.size
    trained = sum(counts[stage] for stage in network.between(trainables[-1].frontier, None))
    (said,) = re.findall(r"trains ([\d.]+) of ([\d.]+) million\s+parameters", path.read_text())
    assert said == (f"{trained / 1e6:.1f}", f"{sum(counts.values()) / 1e6:.1f}")


def test_the_excerpts_of_the_guide_are_a_config_of_mobilenet_v2():
    """They are one file: what the first imports, those after it use."""
    blocks = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    assert len(blocks) >= 5
    known = {}
    for block in blocks:
        exec(block, known)
        config = Config(phases=known["phases"])
        varied = known.pop("sweep")() if "sweep" in known else [{}]
        for values in varied:
            assert frontiers(vary(config, values).phases)


@pytest.mark.slow
def test_the_commands_and_flags_of_the_guide_fit_their_config():
    """A flag that stands alone is for the config that was named last."""
    flag = r"--cfg\.[\w.]+=(?:\"[^\"]*\"|[^\s`]+)"
    name, tried = "", 0
    for named, after, alone in re.findall(rf"--cfg (\w+\.py)((?:[\s\\]+{flag})*)|({flag})", GUIDE):
        name = named or name
        values = dict(
            one.removeprefix("--cfg.").split("=", 1) for one in re.findall(flag, after + alone)
        )
        values = {key: text.strip('"') for key, text in values.items()} | {"data.source": "digits"}
        plan_run(load(name, values, lambda data: Counts(5000, 10, 32)), 3)
        tried += len(values)
    assert tried >= 10


@pytest.mark.parametrize(
    "stages", ["top", (), ("head",), ("top", "top")], ids=["a string", "none", "head", "twice"]
)
def test_gradual_wants_different_stages_before_the_head(stages):
    assert "different stages after the head" in refused(lambda: gradual(stages, epochs=1, lr=1e-3))


@pytest.mark.parametrize("warmup", [2, 3.5])
def test_a_warmup_that_leaves_nothing_of_a_phase_is_refused(warmup):
    message = refused(
        Config.model_validate, {"phases": (phase(epochs=2, warmup_epochs=float(warmup)),)}
    )
    assert f"warmup_epochs {warmup:g} leaves nothing of the 2 epochs" in message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "one_cycle", "warmup_epochs": 1.0}, "one_cycle' rises by itself"),
        ({"schedule": "step"}, "needs step_epochs"),
        ({"step_epochs": (1,)}, "needs step_epochs"),
        ({"schedule": "step", "step_epochs": (3, 2)}, "do not ascend"),
        ({"schedule": "step", "step_epochs": (9,)}, "do not ascend"),
        ({"optimizer": "lamb", "momentum": 0.5}, "that of sgd and lars"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(settings, message):
    assert message in refused(Config.model_validate, {"phases": (phase(epochs=9, **settings),)})


@pytest.mark.parametrize(("rule", "lr"), [(None, 0.3), ("linear", 0.6), ("sqrt", 0.3 * 2**0.5)])
def test_the_learning_rate_is_scaled_from_batches_of_256(rule, lr):
    settings = {"phases": (phase(lr=0.3, lr_scaling=rule),), "data": {"batch_size": 512}}
    (scaled,) = Config.model_validate(settings).scaled_phases
    assert scaled.lr == pytest.approx(lr)
    of_256 = Config.model_validate(settings | {"data": {"batch_size": 256}}).scaled_phases
    assert of_256[0].lr == 0.3

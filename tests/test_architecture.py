"""The floors of the house: who may import whom, and how long a thing may be."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jaxtl"
MODULES = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}

# From the top floor down, one package a floor: a module imports from its own package and from the
# floors below it. The commands share the top floor and do not import each other.
FLOORS = [
    {"__init__", "__main__", "train", "evaluate", "predict", "sweep", "compare", "convert"},
    {"cli"},
    {"comparison"},
    {"sweeps"},
    {"training"},
    {"runs"},
    {"data"},
    {"weights"},
    {"models"},
    {"ops"},
    {"config"},
    {"console"},
    {"metrics"},
    {"files"},
    {"errors"},
]

every_module = pytest.mark.parametrize("name", sorted(MODULES))


def parsed(name):
    return ast.parse(MODULES[name].read_text())


def imports(name):
    """The full names of everything that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(parsed(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms(name):
    """The rooms of the house that a module imports from: `data` for `jaxtl.data.loader`."""
    inside = [full.split(".")[1:] for full in imports(name) if full.split(".")[0] == "jaxtl"]
    known = set.union(*FLOORS)
    return {parts[0] if parts and parts[0] in known else "__init__" for parts in inside}


def room(name):
    return name.split("/")[0].removesuffix(".py")


def floor(room_name):
    (number,) = [i for i, rooms_there in enumerate(FLOORS) if room_name in rooms_there]
    return number


def without_docstring(node):
    """The lines of a function from `def` on, its docstring left out."""
    lines = node.end_lineno - node.lineno + 1
    if ast.get_docstring(node) is not None:
        lines -= node.body[0].end_lineno - node.body[0].lineno + 1
    return lines


def test_every_room_is_on_a_floor_and_no_floor_has_another():
    assert set.union(*FLOORS) == {room(name) for name in MODULES}


@every_module
def test_imports_point_down(name):
    own = floor(room(name))
    assert [other for other in rooms(name) if floor(other) < own] == []


@pytest.mark.parametrize(
    ("upstairs", "strangers"),
    [
        ("data", {"models", "weights", "ops"}),
        ("weights", {"config"}),
        ("models", {"config", "metrics"}),
        ("ops", {"config", "metrics"}),
    ],
)
def test_neighbours_that_know_nothing_of_each_other(upstairs, strangers):
    mine = [name for name in MODULES if room(name) == upstairs]
    assert mine
    assert {name: rooms(name) & strangers for name in mine} == {name: set() for name in mine}


def test_networks_know_nothing_of_optimizers():
    for name in MODULES:
        if room(name) in ("models", "ops", "data", "weights"):
            assert {full for full in imports(name) if full.split(".")[0] == "optax"} == set()


@every_module
def test_no_module_is_longer_than_400_lines(name):
    assert len(MODULES[name].read_text().splitlines()) <= 400


@every_module
def test_no_function_is_longer_than_60_lines(name):
    functions = [n for n in ast.walk(parsed(name)) if isinstance(n, ast.FunctionDef)]
    long = {f.name: lines for f in functions if (lines := without_docstring(f)) > 60}
    assert long == {}


@every_module
def test_everything_public_says_what_it_is(name):
    tree = parsed(name)
    silent = [] if ast.get_docstring(tree) else [name]
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    public = [node for node in classes if not node.name.startswith("_")]
    for owner in [tree, *public]:
        for node in owner.body:
            named = isinstance(node, ast.FunctionDef | ast.ClassDef)
            if named and not node.name.startswith("_") and not ast.get_docstring(node):
                silent.append(f"{getattr(owner, 'name', name)}: {node.name}")
    assert silent == []


def test_only_one_module_says_pmap():
    saying = [name for name, path in MODULES.items() if re.search(r"\bpmap\(", path.read_text())]
    assert saying == ["training/parallel.py"]


def test_no_module_imports_itself_through_others():
    graph = {
        module_name(name): {
            other for other in map(nearest_module, imports(name)) if other != module_name(name)
        }
        for name in MODULES
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def module_name(name):
    parts = ("jaxtl", *Path(name).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def nearest_module(full):
    """The module that an imported name comes from: `jaxtl.data.loader` for its `Loader`."""
    known = {module_name(name) for name in MODULES}
    while full and full not in known:
        full = full.rpartition(".")[0]
    return full


@pytest.mark.parametrize(
    "module",
    [
        "training.setup",
        "training.predictor",
        "sweeps.sweep",
        "comparison.compare",
        "weights.conversion",
    ],
)
@pytest.mark.slow
def test_no_other_framework_is_imported(module):
    code = f"import sys, jaxtl.{module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"jax", "jaxtl"} <= loaded
    assert not {"tensorflow", "torch", "keras", "tf_keras", "tensorboard"} & loaded


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", "import jaxtl"],
        *(
            ["-m", f"jaxtl.{command}", "--help"]
            for command in ("train", "evaluate", "predict", "sweep", "compare")
        ),
    ],
    ids=lambda arguments: arguments[1],
)
def test_jax_is_not_imported_before_it_is_needed(arguments):
    code = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(code, capture_output=True, text=True, check=True)
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "jaxtl" in loaded
    assert not {"jax", "numpy", "flax"} & loaded

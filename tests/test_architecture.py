"""The layers of packages: what may import what, and how long modules and functions may be."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jaxtl"
MODULES = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}

COMMANDS = {
    "train",
    "evaluate",
    "predict",
    "report",
    "sweep",
    "lr_find",
    "compare",
    "convert",
    "export",
    "check",
    "pack",
}

# From the top down, one package a layer: a module imports from its own package and from the layers
# below it. The commands share the top layer and do not import each other.
LAYERS = [
    {"__init__", "__main__", *COMMANDS},
    {"cli"},
    {"comparison"},
    {"sweeps"},
    {"exporting"},
    {"training"},
    {"forecast"},
    {"reports"},
    {"runs"},
    {"data"},
    {"weights"},
    {"models"},
    {"ops"},
    {"config"},
    {"console"},
    {"accelerators"},
    {"tasks"},
    {"multilabel"},
    {"metrics"},
    {"labels"},
    {"files"},
    {"objects"},
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


def imported_packages(name):
    """The packages, or base modules, that a module imports: `data` for `jaxtl.data.loader`."""
    inside = [full.split(".")[1:] for full in imports(name) if full.split(".")[0] == "jaxtl"]
    known = set.union(*LAYERS)
    return {parts[0] if parts and parts[0] in known else "__init__" for parts in inside}


def package(name):
    return name.split("/")[0].removesuffix(".py")


def layer(package_name):
    (number,) = [i for i, packages in enumerate(LAYERS) if package_name in packages]
    return number


def without_docstring(node):
    """The lines of a function from `def` on, its docstring left out."""
    lines = node.end_lineno - node.lineno + 1
    if ast.get_docstring(node) is not None:
        lines -= node.body[0].end_lineno - node.body[0].lineno + 1
    return lines


def test_every_package_is_in_a_layer():
    assert set.union(*LAYERS) == {package(name) for name in MODULES}


@every_module
def test_imports_point_down(name):
    own = layer(package(name))
    assert [other for other in imported_packages(name) if layer(other) < own] == []


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_commands_do_not_import_each_other(command):
    assert imported_packages(f"{command}.py") & COMMANDS == set()


@pytest.mark.parametrize(
    ("importer", "independent"),
    [
        ("data", {"models", "weights", "ops"}),
        ("weights", {"config"}),
        ("models", {"config", "metrics", "tasks"}),
        ("ops", {"config", "metrics", "tasks"}),
    ],
)
def test_packages_that_do_not_import_a_lower_layer(importer, independent):
    modules = [name for name in MODULES if package(name) == importer]
    assert modules
    assert {name: imported_packages(name) & independent for name in modules} == {
        name: set() for name in modules
    }


def test_networks_know_nothing_of_optimizers():
    for name in MODULES:
        if package(name) in ("models", "ops", "data", "weights"):
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


def test_there_is_no_import_cycle():
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


def test_jax_is_not_imported_before_it_is_needed():
    code = [sys.executable, "-X", "importtime", "-c", "import jaxtl"]
    done = subprocess.run(code, capture_output=True, text=True, check=True)
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "jaxtl" in loaded
    assert not {"jax", "numpy", "flax"} & loaded

"""Which package may import which, and what stays out until it is needed."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ptune

PACKAGE = Path(ptune.__file__).parent
# A package imports those before it, and a command no other command.  `ptune` itself is not among
# them: its version is anybody's, and what it offers is imported when it is asked for.
ORDER = (  # noqa: SIM905
    "errors files base data config parallel device quantization models checkpoint"
    " generation training evaluation serving commands views cli __main__"
).split()
APART = {"tiny"}  # what made the built-in model; imported by nothing
LIGHT = [
    "ptune",
    "ptune.errors",
    "ptune.config.settings",
    "ptune.data.prompt",
    "ptune.data.records",
]
LIGHT += ["ptune.evaluation.metrics", "ptune.evaluation.predictions"]
HEAVY = ["torch", "transformers", "datasets", "accelerate", "jieba", "nltk", "sentencepiece"]


def modules():
    found = {}
    for file in PACKAGE.rglob("*.py"):
        parts = list(file.relative_to(PACKAGE).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        found[".".join(parts)] = file
    del found[""]
    return found


MODULES = modules()


def imported(name):
    """Modules of ptune that a module imports, inside functions too, with the line."""
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}, line {node.lineno}: relative import"
            assert all(alias.name != "*" for alias in node.names), f"{name}: import *"
            # `from ptune.models import chatglm2` imports a module, or a name of one.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for full in names:
            if not full.startswith("ptune."):
                continue
            inner = full.removeprefix("ptune.")
            while inner and inner not in MODULES:
                inner = inner.rpartition(".")[0]
            if inner:
                yield node.lineno, inner


def package(name):
    return name.partition(".")[0]


def test_the_top_is_small_and_in_order():
    names = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert len(names) <= 21
    assert {package(name) for name in MODULES} == {*ORDER, *APART}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_lead_to_earlier_packages(name):
    for line, other in imported(name):
        at = f"{MODULES[name]}:{line}: ptune.{name} imports ptune.{other}"
        if package(name) in APART or package(other) == package(name):
            # A command is a module or a package of its own.
            same = name.split(".")[:2] == other.split(".")[:2]
            assert package(name) != "commands" or same, f"{at}, another command"
        else:
            assert package(other) not in APART, at
            earlier = ORDER.index(package(other)) < ORDER.index(package(name))
            assert earlier, f"{at}, which is of a later package"


@pytest.mark.parametrize("name", sorted(n for n in ORDER if MODULES[n].name == "__init__.py"))
def test_a_package_says_what_it_may_import(name):
    said = ast.get_docstring(ast.parse(MODULES[name].read_text(encoding="utf-8")))
    allowed = set(re.findall(r"\w+", re.search(r"^May import (.*)\.$", said, re.M | re.S)[1]))
    found = {package(o) for n in MODULES if package(n) == name for _, o in imported(n)} - {name}
    assert found <= allowed, f"{MODULES[name]} does not allow {sorted(found - allowed)}"
    assert allowed <= {*ORDER[: ORDER.index(name)], "nothing", "of", "ptune"}


def test_no_import_cycle_inside_a_package():
    graph = {name: {other for _, other in imported(name)} for name in MODULES}
    list(graphlib.TopologicalSorter(graph).static_order())  # a CycleError names the circle


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_module_says_what_it_holds(name):
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    if MODULES[name].name == "__init__.py":
        assert len(tree.body) == 1, f"{MODULES[name]}: the docstring alone; code has modules"


def loaded_by(statement):
    code = f"import sys; {statement}; print(*sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_light_modules_load_nothing_heavy():
    loaded = loaded_by(f"import {', '.join(LIGHT)}")
    assert set(LIGHT) <= loaded
    assert not loaded & set(HEAVY)


def test_command_line_loads_nothing_heavy():
    assert not loaded_by("import ptune.cli") & set(HEAVY)


def test_public_names_are_loaded_when_asked_for():
    for name in ptune.__all__:
        assert getattr(ptune, name)
    with pytest.raises(AttributeError, match="module 'ptune' has no attribute 'train_model'"):
        _ = ptune.train_model

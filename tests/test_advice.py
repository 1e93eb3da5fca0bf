"""What messages advise exists: an option in a text is one of every command it can reach."""

import ast
import re
from pathlib import Path

import pytest

import ptune
from ptune.config import settings
from ptune.config.declaration import declared
from ptune.config.predict_settings import PredictSettings
from ptune.config.tune_settings import TuneSettings

PACKAGE = Path(ptune.__file__).parent
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")
TRAIN, EVAL, CHAT = settings.TrainSettings, settings.EvalSettings, settings.ChatSettings
MERGE, PREVIEW = settings.MergeSettings, settings.PreviewSettings
ESTIMATE = settings.EstimateSettings
# The commands whose users see the texts of a module; the longest path counts.
REACHES = {
    "data/": (TRAIN, EVAL, PREVIEW, PredictSettings),
    "quantization/": (TRAIN, EVAL, CHAT, PredictSettings),
    "models/": (TRAIN, EVAL, CHAT, PredictSettings),
    "training/": (TRAIN,),
    "evaluation/": (EVAL,),
    "evaluation/answering.py": (EVAL, PredictSettings),
    "commands/chat/": (CHAT,),
    "commands/merge.py": (MERGE,),
    "commands/preview.py": (PREVIEW,),
    "commands/predict/": (PredictSettings,),
    "commands/tune/": (TuneSettings,),
    "config/predict_settings.py": (PredictSettings,),
    "config/tune_settings.py": (TuneSettings,),
}
# What a text names on purpose although one of its commands has no such option: another command's,
# called so, those of other programs, and the beginning of one.
MEANT = {
    ("cli.py", "--no"),
    ("config/declaration.py", "--no"),
    ("commands/doctor/cards.py", "--gpus"),
    ("commands/doctor/driver.py", "--query-gpu"),
    ("commands/doctor/host.py", "--memory"),
    ("evaluation/evaluate.py", "--eval-data"),
    ("models/native.py", "--gradient-checkpointing"),  # training alone does it
    ("quantization/backends/nvrtc.py", "--std"),
    ("quantization/backends/nvrtc.py", "--gpu-architecture"),
    ("quantization/backends/probe.py", "--backend"),
}


def options(*kinds):
    """Names of the options that all of these commands have, with `_` for `-`."""
    names = [{field.name for field in declared(kind)} for kind in kinds]
    common = set.intersection(*names)
    return common | {f"no_{name}" for name in common}


def of_any():
    kinds = [kind for name, kind in vars(settings).items() if name.endswith("Settings")]
    kinds += [PredictSettings, TuneSettings]
    return set.union(*map(options, kinds)) | {"help", "version", "debug", "config"}


def texts(file):
    """Strings of a module with their lines, docstrings left out."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    documented = [n for n in ast.walk(tree) if isinstance(n, kinds) and ast.get_docstring(n)]
    docstrings = {id(node.body[0].value) for node in documented}
    for node in ast.walk(tree):
        value = getattr(node, "value", None)
        if isinstance(node, ast.Constant) and isinstance(value, str) and id(node) not in docstrings:
            yield node.lineno, value


MODULES = [f for f in sorted(PACKAGE.rglob("*.py")) if f.relative_to(PACKAGE).parts[0] != "tiny"]


@pytest.mark.parametrize("file", MODULES, ids=lambda f: f.relative_to(PACKAGE).as_posix())
def test_options_in_texts_exist(file):
    name = file.relative_to(PACKAGE).as_posix()
    scopes = sorted((s for s in REACHES if name.startswith(s)), key=len)
    known = options(*REACHES[scopes[-1]]) if scopes else of_any()
    for line, text in texts(file):
        for option in _OPTION.findall(text):
            exists = option[2:].replace("-", "_") in known
            assert exists or (name, option) in MEANT, f"{file}:{line}: {option} in {text!r}"

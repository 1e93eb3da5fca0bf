"""Which module may import which, and what stays out until it is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ptune

PACKAGE = Path(ptune.__file__).parent
# A module imports modules of earlier layers only.  The package itself, `ptune`, is not among them:
# its version is anybody's, and what it offers is imported when it is asked for.
LAYERS = [
    {"errors", "atomic", "cache_folder"},
    {"base_model", "records", "metrics", "predictions", "weights", "quantization"},
    {"architecture", "prefix_encoder", "prompt", "tokenizer", "train_log", "loss_scale"},
    {"config", "memory", "data", "finite_guard", "models.rotary", "models.tiny.phrases"},
    {"models.label_loss"},
    {"precision", "dev_loss", "models.chatglm", "models.chatglm2", "models.tiny.adverts"},
    {"micro_batch", "host_memory", "sampling", "step_graph", "decode_cache"},
    {"kernels.cache", "kernels.cuda_driver", "kernels.triton_kernels"},
    {"kernels.card", "kernels.nvrtc"},
    {"kernels.cuda_kernel"},
    {"kernels.cpm"},
    {"kernels.backends"},
    {"kernels.probe"},
    {"kernels"},
    {"frozen_linear"},
    {"nf4"},
    {"models.quantized"},
    {"models", "models.tiny", "models.tiny.corpus"},
    {"decoding"},
    {"checkpoint", "generate", "models.tiny.make"},
    {"streaming", "trainer", "train_output", "train_memory", "example_cache"},
    {"doctor.check", "doctor.driver", "doctor.torch_build"},
    {"doctor.host", "doctor.packages", "doctor.torch_probe"},
    {"doctor.cards", "doctor.dequantizing", "doctor.model_folder"},
    {"train", "evaluate", "merge", "preview", "chat", "estimate", "doctor"},
    {"views"},
    {"cli"},
]
LAYER_OF = {name: i for i, layer in enumerate(LAYERS) for name in layer}
LIGHT = ["ptune", "ptune.errors", "ptune.config", "ptune.prompt", "ptune.records", "ptune.metrics"]
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


def imported(tree):
    """Modules of ptune that a file imports, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            assert all(alias.name != "*" for alias in node.names), f"line {node.lineno}: import *"
            # `from ptune.models import chatglm2` imports a module, or a name of one.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if not name.startswith("ptune."):
                continue
            inner = name.removeprefix("ptune.")
            while inner and inner not in MODULES:
                inner = inner.rpartition(".")[0]
            if inner:
                yield node.lineno, inner


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_lead_to_earlier_layers(name):
    assert name in LAYER_OF, f"ptune.{name} is new; give it a place in LAYERS"
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    for line, other in imported(tree):
        assert LAYER_OF.get(other, 99) < LAYER_OF[name], (
            f"{MODULES[name]}:{line}: ptune.{name} imports ptune.{other}, which is not before it"
        )


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_module_says_what_it_holds(name):
    assert ast.get_docstring(ast.parse(MODULES[name].read_text(encoding="utf-8")))


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
    if "cli" not in MODULES:
        pytest.skip(f"no cli.py in {PACKAGE}")
    assert not loaded_by("import ptune.cli") & set(HEAVY)


def test_public_names_are_loaded_when_asked_for():
    for name in ptune.__all__:
        assert getattr(ptune, name)
    with pytest.raises(AttributeError, match="module 'ptune' has no attribute 'train_model'"):
        _ = ptune.train_model

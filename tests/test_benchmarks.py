"""The benchmarks run; how fast is not the business of a test."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ptune

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
# What a machine with torch and transformers may lack.
MISSING = ["datasets", "pyarrow", "pandas", "jieba", "nltk", "rouge_chinese", "sentencepiece"]
MISSING += ["prompt_toolkit", "cpm_kernels", "bitsandbytes"]
HIDE = f"""
import importlib.machinery, sys
find = importlib.machinery.PathFinder.find_spec
def hiding(name, path=None, target=None):
    return None if name.split(".")[0] in {MISSING} else find(name, path, target)
importlib.machinery.PathFinder.find_spec = staticmethod(hiding)
sys.path.insert(0, {str(BENCHMARKS)!r})
"""


@pytest.fixture
def run(capfd, monkeypatch):
    """Run a benchmark as `python benchmarks/SCRIPT.py` does, where everything is imported already.

    Returns its exit status, and what it and the processes that it starts say.
    """
    threads, loaded = torch.get_num_threads(), set(sys.modules)
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def run_one(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        try:
            runpy.run_path(str(BENCHMARKS / f"{script}.py"), run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
            print(end.code, file=sys.stderr)
        return code, *capfd.readouterr()

    yield run_one
    torch.set_num_threads(threads)
    for name in set(sys.modules) - loaded:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(BENCHMARKS)):
            del sys.modules[name]


def test_train_step(run, tmp_path):
    file = tmp_path / "found.json"
    command = ["train_step", "--size", "tiny-cpu", "--json", file]
    code, out, err = run(*command, "--steps", 1, "--warm-up", 0, "--baseline", ROOT, "--threads", 1)
    assert code == 0, err
    sides = json.loads(file.read_text(encoding="utf-8"))["sides"]
    assert [side["side"] for side in sides] == ["ptune", "baseline"]
    assert all(side["samples_per_second"] > 0 and side["peak_bytes"] > 10**8 for side in sides)
    assert "ptune is" in out


def test_serve(run, tmp_path):
    file = tmp_path / "found.json"
    command = ["serve", "--size", "tiny", "--json", file, "--threads", 1]
    code, out, err = run(
        *command, "--rows", 3, "--alone", 1, "--rounds", 1, "--prefixes", 3, "--cpu-time"
    )
    assert code == 0, err
    found = json.loads(file.read_text(encoding="utf-8"))
    assert len(found["tokens_per_second"]) == 6 and min(found["tokens_per_second"].values()) > 0
    assert found["load_seconds"] > 0 and found["first_token_seconds"]["warm"] > 0
    assert "3 prefixes take" in out


def test_serve_http(run, tmp_path):
    file = tmp_path / "found.json"
    command = ["serve_http", "--size", "tiny", "--json", file, "--threads", 1]
    code, out, err = run(*command, "--clients", 1, 3, "--seconds", 1, "--rounds", 1)
    assert code == 0, err
    sides = json.loads(file.read_text(encoding="utf-8"))["tiny"]
    assert [side["clients"] for side in sides] == [1, 3]
    assert all(0 < side["first_token"] <= side["first_token_99"] for side in sides)
    assert min(side["tokens_per_second"] for side in sides) > 0 and "3 clients" in out


def test_serve_http_wants_a_tokenizer(run, tmp_path):
    command = ["serve_http", "--size", "small", "--tokenizer", tmp_path / "none"]
    code, _, err = run(*command)
    assert code == 1 and f"no {tmp_path / 'none'}; pass --tokenizer FILE" in err


def test_generate(run, tmp_path):
    file = tmp_path / "found.json"
    command = ["generate", "--size", "tiny-cpu", "--json", file, "--threads", 1]
    code, _, err = run(*command, "--records", 3, "--alone", 1, "--batch-size", 2, "--rounds", 1)
    assert code == 0, err
    sides = json.loads(file.read_text(encoding="utf-8"))["evaluation"]
    assert [side["samples"] for side in sides] == [3, 1, 3, 1]
    assert all(side["tokens_per_second"] > 0 for side in sides)
    assert [side.get("of_limit", 0) > 0 for side in sides] == [True, True, False, False]


def test_score(run, tmp_path):
    file = tmp_path / "found.json"
    code, out, err = run("score", "--pairs", 20, "--runs", 1, "--lengths", 300, "--json", file)
    assert code == 0, err
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["short"].keys() == {"ptune", "original"}
    ptune, original, *_ = found["long"]
    assert (ptune["side"], original["side"]) == ("ptune", "original")
    assert ptune["scores"] == original["scores"]
    assert "times as fast" in out


@pytest.mark.parametrize("script", ["train_step", "generate"])
def test_real_size_wants_a_card(run, script):
    code, out, err = run(script, "--size", "6b")
    assert code == 1 and "card" in err and not out


def test_a_peer_must_be_there(run, tmp_path):
    code, _, err = run("train_step", "--peer", tmp_path)
    assert code == 2 and f"no modeling_chatglm.py in {tmp_path}" in err


def test_scale_prepares_records(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    scale = runpy.run_path(str(BENCHMARKS / "scale.py"))
    assert all(seconds > 0 for seconds in scale["prepare_seconds"](3))


def test_a_checkpoint_to_load_must_be_there(run, tmp_path):
    code, _, err = run("load", "--model", tmp_path)
    assert code == 2 and f"no weight files in {tmp_path}; --make some" in err


def test_those_for_a_card_need_torch_and_transformers_alone():
    names = "train_step_6b, generate_6b, memory, dequantize, quantized_decode"
    found = subprocess.run(
        [sys.executable, "-c", f"{HIDE}\nimport {names}"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr


def test_the_command_for_a_card_names_scripts_that_exist():
    script = (BENCHMARKS / "gpu.sh").read_text(encoding="utf-8")
    named = [word for word in script.split() if word.endswith(".py")]
    assert len(named) == 5
    assert all((ROOT / name).is_file() for name in named)
    assert subprocess.run(["bash", "-n", BENCHMARKS / "gpu.sh"], check=False).returncode == 0


def test_second_family_is_a_model_with_a_tokenizer(run, tmp_path):
    folder = tmp_path / "llama"
    code, out, err = run("second_family", "--output", folder, "--list-steps", 16, "--steps", 1)
    assert code == 0 and "step    17" in out, err
    tokenizer, model = ptune.load_tokenizer(folder), ptune.load_model(folder, device="cpu")
    assert model.config.model_type == "llama" and model.num_parameters() == 3758848
    text = "类型#裙*颜色#酒红色，好看吗？\n广告：<|end|>"
    assert tokenizer.decode(tokenizer.encode_text(text)) == text
    assert len(tokenizer.encode_text("衬衫，")) == 2
    ptune.chat(model, tokenizer, text, do_sample=False, max_length=60)

"""Every command on models that transformers has itself: data in, text out."""

import json
import shutil

import pytest
from fixtures.command_line import refused, run
from fixtures.native_models import FAMILIES, SIZES, TURNS, write_native
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient
from typer.testing import CliRunner

import ptune
from ptune import load_model, load_tokenizer
from ptune.cli import app
from ptune.config.settings import ServeSettings
from ptune.serving.build import build_app

QUESTION = "类型#裤"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "d.json"
    rows = [{"content": f"类型#裤{i}", "summary": f"好看的裤{i}。"} for i in range(8)]
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


@pytest.fixture(scope="module", params=["qwen3", "llama", "gpt2"])
def trained(request, data, tmp_path_factory):
    """A model's folder and a checkpoint, trained until the loss has fallen."""
    root = tmp_path_factory.mktemp(request.param)
    folder = write_native(root / "base", request.param)
    options = ["--max-steps", 12, "--pre-seq-len", 6, "--batch-size", 4, "--learning-rate", 0.3]
    options += ["--logging-steps", 1]
    run("train", "--model", folder, "--data", data, "--output", root / "out", *options)
    return folder, root / "out"


def ask(*options):
    return run("chat", *options, QUESTION, "--no-do-sample", "--max-new-tokens", 6)


def test_training_learns(trained):
    lines = (trained[1] / "train_log.jsonl").read_text("utf-8").splitlines()
    losses = [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]
    assert losses[-1] < losses[0] - 0.5


def test_eval(trained, data):
    out = json.loads(run("eval", "-c", trained[1], "-d", data, "--max-new-tokens", 5, "--json"))
    bare = json.loads(
        run("eval", "-c", trained[1], "-d", data, "--no-prefix", "--max-new-tokens", 5, "--json")
    )
    assert out["loss"] < bare["loss"]


def test_in_python(trained):
    """`ptune.chat`, as the original's `model.chat`."""
    folder, checkpoint = trained
    model, tokenizer = load_model(folder, checkpoint), load_tokenizer(folder)
    response, history = ptune.chat(model, tokenizer, QUESTION, max_length=40, do_sample=False)
    assert history == [(QUESTION, response)]


def test_merged_says_the_same(trained, tmp_path):
    folder, checkpoint = trained
    answer = ask("-c", checkpoint)
    assert answer != ask("--model", folder) or "gpt2" in str(folder)
    run("merge", "-c", checkpoint, "-o", tmp_path / "merged")
    assert ask("--model", tmp_path / "merged") == answer
    bare = load_model(folder).base_model.state_dict()
    library = {k: v for k, v in load_model(tmp_path / "merged").base_model.state_dict().items()}
    assert all((library[name] == weight).all() for name, weight in bare.items())
    run("merge", "-c", checkpoint, "-o", tmp_path / "bin", "--format", "bin")
    assert ask("--model", tmp_path / "bin") == answer
    message = "--quantization-bit 4 has no file format of its own here; leave it out, and pass it"
    output = tmp_path / "packed"
    assert message in refused("merge", "-c", checkpoint, "-o", output, "--quantization-bit", 4)


def test_exported_and_back(trained, tmp_path):
    folder, checkpoint = trained
    run("export", "-c", checkpoint, "-o", tmp_path / "peft", "--format", "peft")
    assert ask("--model", folder, "-c", tmp_path / "peft") == ask("-c", checkpoint)
    message = "is of transformers' own already, which other programs load as it is"
    assert message in refused("export", "--model", folder, "-o", tmp_path / "x", "--format", "glm")


def test_another_model_is_told(trained, tmp_path):
    other = "llama" if "qwen3" in str(trained[0]) else "qwen3"
    folder = write_native(tmp_path / other, other)
    assert "was trained on" in refused("chat", "-c", trained[1], "--model", folder, QUESTION)


def test_a_base_that_was_changed_is_told(trained, tmp_path):
    """As a merged LoRA changes it: in its matrices alone, or in its prompt."""
    folder, checkpoint = trained
    shutil.copytree(folder, tmp_path / "other")
    file = tmp_path / "other" / "model.safetensors"
    state = load_file(file)
    name = max(name for name, weight in state.items() if weight.dim() == 2)
    state[name] = state[name] + 0.1
    save_file(state, file, metadata={"format": "pt"})
    asked = ["chat", "-c", checkpoint, "--model", tmp_path / "other", QUESTION]
    assert "was trained on" in refused(*asked)
    shutil.copy(folder / "model.safetensors", file)
    about = tmp_path / "other" / "tokenizer_config.json"
    said = json.loads(about.read_text("utf-8"))
    said["chat_template"] = "Q {{ messages[-1].content }} A {{ messages[0].content }}" * 2
    if "gpt2" not in str(folder):
        said["chat_template"] = said.get("chat_template", "") and TURNS.replace("<bos>", "")
    about.write_text(json.dumps(said), "utf-8")
    assert "was trained on" in refused(*asked) or "leaves out" in refused(*asked)


def test_serve(trained, tmp_path):
    folder, checkpoint = trained
    settings = ServeSettings(model=str(folder), prefix=(f"own={checkpoint}",), device="cpu")
    with TestClient(build_app(settings, print)[0], base_url="http://127.0.0.1") as client:
        answers = {}
        for name in client.get("/v1/models").json()["data"]:
            body = {
                "model": name["id"],
                "messages": [{"role": "user", "content": QUESTION}],
                "max_tokens": 6,
                "temperature": 0,
            }
            reply = client.post("/v1/chat/completions", json=body).json()
            answers[name["id"]] = reply["choices"][0]["message"]["content"]
    assert answers["own"].strip() == ask("-c", checkpoint).strip()
    assert len(set(answers.values())) == 2


@pytest.mark.parametrize("bits", ["8", "4"])
def test_trained_in_bits(data, tmp_path, bits):
    folder = write_native(tmp_path / "base", "gpt2")
    options = ["--max-steps", 2, "--pre-seq-len", 4, "--batch-size", 2, "--quantization-bit", bits]
    run("train", "--model", folder, "--data", data, "--output", tmp_path / "out", *options)
    assert ask("-c", tmp_path / "out") == ask("-c", tmp_path / "out", "--quantization-bit", bits)


@pytest.mark.parametrize("family", FAMILIES)
def test_preview_and_doctor(family, data, tmp_path):
    folder = write_native(tmp_path, family)
    shown = json.loads(run("preview", "--model", folder, "-d", data, "--json").splitlines()[0])
    tokenizer = load_tokenizer(folder)
    assert "类型#裤0" in tokenizer.decode(shown["input_ids"])
    said = CliRunner().invoke(app, ["doctor", "--model", str(folder)]).stdout
    assert f"{family}, of transformers' own, in" in " ".join(said.split())
    assert "a text comes back as it was" in " ".join(said.split())


def test_estimate(tmp_path):
    sizes = SIZES | {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "vocab_size": 32000,
    }
    config = {"model_type": "llama", **sizes}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    out = json.loads(run("estimate", "--model", tmp_path, "--card", "P100-16GB", "--json"))
    assert out["parameters"] == 6_738_415_616  # of Llama-2-7B

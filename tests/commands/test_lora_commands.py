"""A LoRA in every command: trained, measured, talked with, folded, served, estimated."""

import json
import re

import pytest
import torch
from fixtures.checkpoints import small_ids, write_weights
from fixtures.command_line import refused, run
from fixtures.native_models import write_native
from fixtures.runs import Recorder, run_settings
from safetensors.torch import load_file
from starlette.testclient import TestClient
from transformers import GlmForCausalLM
from typer.testing import CliRunner

from ptune import load_model
from ptune.base.folder import find_base_model
from ptune.base.weights import WeightFiles
from ptune.checkpoint.metadata import CheckpointConfig
from ptune.cli import app
from ptune.commands.merge import folding_notice, merge
from ptune.config.settings import ServeSettings
from ptune.errors import ConfigError
from ptune.serving.build import build_app
from ptune.training.train import train

QUESTION = "类型#裙"
KINDS = [1, 2, 3, 4, "qwen3", "gpt2"]

pytestmark = pytest.mark.usefixtures("peft")


def learn(folder, base, **changes):
    given = {"method": "lora", "pre_seq_len": 128, "learning_rate": 2e-2, "max_steps": 12}
    settings = run_settings(folder, base, **given | changes)
    train(settings, Recorder())
    return settings.output


@pytest.fixture(scope="module", params=KINDS)
def trained(request, peft, toy_model, tmp_path_factory):
    """A base, and the LoRA that was trained beside it."""
    folder = tmp_path_factory.mktemp("lora")
    kind = request.param
    base = toy_model(kind) if isinstance(kind, int) else write_native(folder / kind, kind)
    return base, learn(folder, base)


def ids_of(model):
    case = {"generation": 1 if hasattr(model, "transformer") else 2}
    ids = small_ids(case, 20)
    if (gmask := getattr(model.config, "gmask_token_id", None)) is not None:
        ids[10:12] = torch.tensor([gmask, model.config.bos_token_id])
    return ids[None]


def logits(model):
    with torch.no_grad():
        return model(input_ids=ids_of(model)).logits


def ask(*options):
    return run("chat", *options, QUESTION, "--no-do-sample", "--max-new-tokens", 6)


def test_eval_with_it_and_without(trained):
    base, checkpoint = trained
    data = checkpoint.parent / "data.json"
    options = ("-d", data, "--max-new-tokens", 5, "--json")
    with_it = json.loads(run("eval", "-c", checkpoint, *options))
    bare = json.loads(run("eval", "-c", checkpoint, "--no-prefix", *options))
    base_alone = json.loads(run("eval", "-m", base, *options, "-o", checkpoint.parent / "bare"))
    assert with_it["loss"] < bare["loss"] - 0.3
    assert bare["loss"] == pytest.approx(base_alone["loss"], abs=1e-6)


def test_merged_is_base_and_lora(trained, tmp_path):
    base, checkpoint = trained
    merged = merge(find_base_model(base), checkpoint, tmp_path / base.name)
    expected, found = logits(load_model(base, checkpoint)), logits(load_model(merged))
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)
    assert (logits(load_model(base)) - expected).abs().max() > 1e-2
    before, after = (WeightFiles(folder).headers for folder in (base, merged))
    assert before == after  # names, shapes and precision are the base's
    assert "pre_seq_len" not in json.loads((merged / "config.json").read_text())
    assert not (merged / "adapter_config.json").exists()
    assert ask("--model", merged) == ask("-c", checkpoint)


def test_merged_is_told_from_its_base(trained, tmp_path):
    base, checkpoint = trained
    merged = merge(find_base_model(base), checkpoint, tmp_path / base.name)
    data = checkpoint.parent / "data.json"
    run("eval", "-m", base, "-d", data, "--max-new-tokens", 5, "-o", tmp_path / "eval")
    said = refused("eval", "-m", merged, "-d", data, "--max-new-tokens", 5, "-o", tmp_path / "eval")
    assert "base_model" in said


def test_serve(trained):
    _, checkpoint = trained
    settings = ServeSettings(checkpoint=checkpoint, device="cpu")
    with TestClient(build_app(settings, print)[0], base_url="http://127.0.0.1") as client:
        names = [one["id"] for one in client.get("/v1/models").json()["data"]]
        body = {"model": names[0], "messages": [{"role": "user", "content": QUESTION}]}
        body |= {"max_tokens": 6, "temperature": 0}
        reply = client.post("/v1/chat/completions", json=body).json()
    assert names == ["out"]
    assert reply["choices"][0]["message"]["content"].strip() == ask("-c", checkpoint).strip()


@pytest.fixture(scope="module")
def one(peft, toy_model, tmp_path_factory):
    """A LoRA beside a ChatGLM2, and a prefix."""
    folder, base = tmp_path_factory.mktemp("one"), toy_model(2)
    prefix = run_settings(folder, base, output=folder / "prefix", max_steps=1)
    train(prefix, Recorder())
    return base, learn(folder, base), prefix.output


def test_serve_refuses_prefixes_beside_it(one, tmp_path):
    base, checkpoint, prefix = one
    for options in ({"prefix": (f"p={prefix}",)}, {"prefix_folder": tmp_path}):
        flag = "--" + next(iter(options)).replace("_", "-")
        message = (
            f"{flag} does not go with --checkpoint {checkpoint}, whose LoRA changes the model for "
            "all requests; leave it out, or serve the prefixes in a process of their own"
        )
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            build_app(ServeSettings(checkpoint=checkpoint, device="cpu", **options), print)
    message = (
        f"{checkpoint} holds a LoRA, of which a server has one for all requests; pass it with "
        "--checkpoint in the place of prefixes"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        build_app(ServeSettings(model=str(base), prefix=(f"p={checkpoint}",)), print)


def test_export_says_that_it_is_one(one, tmp_path):
    said = refused("export", "-c", one[1], "-o", tmp_path / "x")
    assert "holds a LoRA, which is an adapter of peft already" in said


def test_the_library_loads_it_beside_an_exported_base(one, peft, tmp_path):
    base, checkpoint, _ = one
    run("export", "-m", base, "--format", "glm", "-o", tmp_path / "glm")
    library = GlmForCausalLM.from_pretrained(tmp_path / "glm")
    theirs = peft.PeftModel.from_pretrained(library, checkpoint).eval()
    ours = load_model(base, checkpoint)
    torch.testing.assert_close(logits(theirs), logits(ours), atol=1e-4, rtol=1e-4)


def test_on_and_off_in_a_conversation(one):
    answers = []
    for switch in ("", "/prefix off\n"):
        lines = f"{switch}{QUESTION}\n/prefix\n"
        result = CliRunner().invoke(
            app, ["chat", "-c", str(one[1]), "--no-do-sample", "--max-new-tokens", "6"], input=lines
        )
        assert result.exit_code == 0, result.output
        answers.append(result.output)
    assert "the LoRA of rank 8 is on" in answers[0]
    assert "the LoRA of rank 8 is off: answers are the bare model's" in answers[1]


@pytest.mark.parametrize("bits", ["8", "4"])
def test_folded_into_the_half_precision_weights(bits, toy_model, tmp_path):
    base = toy_model(2)
    checkpoint = learn(tmp_path, base, quantization_bit=bits)
    said = " ".join(
        CliRunner()
        .invoke(app, ["merge", "-c", str(checkpoint), "-o", str(tmp_path / "merged")])
        .output.split()
    )
    assert f"the LoRA was trained beside weights in {bits} bits and is folded into those" in said
    merged = tmp_path / "merged"
    assert WeightFiles(merged).headers == WeightFiles(base).headers
    assert CheckpointConfig.read(merged).settings["quantization_bit"] is None
    layer = "transformer.encoder.layers.0.mlp.dense_4h_to_h.weight"
    tensors = load_file(checkpoint / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.mlp.down_proj.lora_{}.weight"
    delta = 2 * tensors[name.format("B")] @ tensors[name.format("A")]
    before, after = (dict(WeightFiles(folder).items([layer]))[layer] for folder in (base, merged))
    torch.testing.assert_close(after, before + delta, atol=1e-6, rtol=1e-5)


def test_folded_and_packed_where_that_is_asked_for(one, tmp_path):
    base, checkpoint, _ = one
    assert folding_notice(checkpoint, "8") is None
    run("merge", "-c", checkpoint, "-o", tmp_path / "packed", "--quantization-bit", 8)
    whole = logits(load_model(base, checkpoint))
    packed = logits(load_model(tmp_path / "packed"))
    assert (packed - whole).abs().mean() < 0.2 * whole.abs().mean()
    said = refused("merge", "-c", checkpoint, "-m", tmp_path / "packed", "-o", tmp_path / "again")
    assert "have 8 bits, into which no LoRA can be folded; pass the half-precision model" in said


def test_merged_anew_drops_the_prefix_of_a_base(one, tmp_path):
    base, checkpoint, prefix = one
    with_prefix = merge(find_base_model(base), prefix, tmp_path / "chatglm2-6b")
    merged = merge(find_base_model(with_prefix), checkpoint, tmp_path / "chatglm2-6b-again")
    assert "pre_seq_len" not in json.loads((merged / "config.json").read_text())
    expected = logits(load_model(base, checkpoint))
    torch.testing.assert_close(logits(load_model(merged)), expected, atol=2e-4, rtol=1e-3)


def test_another_model_is_told(one, toy_model):
    said = refused("chat", "-c", one[1], "-m", toy_model(3), QUESTION)
    assert "the LoRA in" in said and "was trained" in said


def test_files_that_leave_out_the_name_of_the_decoder(tmp_path):
    """As the released GPT-2's do."""
    base = write_native(tmp_path / "base", "gpt2")
    state = {n.removeprefix("transformer."): t for n, t in WeightFiles(base).items()}
    (base / "model.safetensors").unlink()
    write_weights(base, {n: t.clone() for n, t in state.items()}, "safetensors")
    checkpoint = learn(tmp_path, base)
    merged = merge(find_base_model(base), checkpoint, tmp_path / "merged")
    expected = logits(load_model(base, checkpoint))
    torch.testing.assert_close(logits(load_model(merged)), expected, atol=2e-4, rtol=1e-3)


def test_estimate():
    out = run("estimate", "-m", "THUDM/chatglm2-6b", "--method", "lora", "--json")
    found = json.loads(out)
    hidden, inner, key = 4096, 13696, 256  # of its 28 layers
    layer = 2 * hidden + 2 * (hidden + key) + 2 * hidden + (hidden + 2 * inner) + (inner + hidden)
    assert found["trainable_parameters"] == 28 * 8 * layer
    assert found["method"] == "lora"
    shown = run("estimate", "-m", "THUDM/chatglm2-6b", "--method", "lora", "--card", "T4-16GB")
    assert "rank 8, all-linear" in " ".join(shown.split())
    assert "--method lora" in shown and "prefixes beside one" not in " ".join(shown.split())
    queries = ["--lora-target", "q_proj", "--lora-rank", 2, "--json"]
    small = json.loads(run("estimate", "-m", "THUDM/chatglm2-6b", "--method", "lora", *queries))
    assert small["trainable_parameters"] == 28 * 2 * 2 * hidden
    assert "--pre-seq-len has no effect with --method lora" in refused(
        "estimate", "--method", "lora", "--pre-seq-len", 4
    )

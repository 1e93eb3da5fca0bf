"""Prefix checkpoints, ptune's and the original's, and the models they are put in front of."""

import json
import shutil
from dataclasses import asdict, replace

import pytest
import torch
from fixtures.checkpoints import (
    GOLDEN,
    PREFIX,
    base_state,
    changed,
    prefix_state,
    small_case,
    small_ids,
    write_json,
    write_model,
    write_prefix,
    write_weights,
)
from safetensors.torch import load_file, save_file

from ptune import __version__, load_model
from ptune.base.folder import Generation, find_base_model
from ptune.checkpoint.base import check_fingerprint, find_base, fingerprint, resolve_base
from ptune.checkpoint.folder import (
    ADAPTER_CONFIG,
    ADAPTER_FILE,
    PREFIX_FILE,
    find_checkpoint,
    numbered_checkpoints,
)
from ptune.checkpoint.metadata import CONFIG_FILE, CheckpointConfig
from ptune.checkpoint.prefix import (
    attach_prefix,
    build_prefix,
    has_prefix,
    load_prefix,
    read_prefix,
    save_prefix,
)
from ptune.errors import CheckpointError, ConfigError, ModelError
from ptune.quantization.layers import bits_of

GENERATIONS = (1, 2, 3, 4)
CASE = small_case(1)
HELD_OUT = {"data": ["data.json"], "eval_fraction": 0.3, "seed": 42, "skip_bad_records": False}
HELD_OUT |= {"max_source_length": 64, "max_target_length": 64, "truncation": "turns"}


def config_of(base, **values):
    values = {
        "base_model": base.name,
        "fingerprint": fingerprint(base),
        "prompt_format": base.generation.value,
        "pre_seq_len": 5,
        "prefix_projection": False,
    } | values
    return CheckpointConfig(**values)


@pytest.fixture
def base(model_folder):
    return find_base_model(model_folder(CASE))


@pytest.fixture
def own(base, tmp_path):
    """A checkpoint as ptune writes it."""
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    save_prefix(load_model(base.path, base.path / "prefix"), folder)
    config_of(base).write(folder)
    return folder


def refused(folder, checkpoint, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(folder, checkpoint=checkpoint)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("prefix_projection", [True, False])
def test_saved_and_loaded(model_folder, tmp_path, generation, prefix_projection):
    case = small_case(generation, prefix_projection)
    folder = model_folder(case)
    model = load_model(folder, checkpoint=folder / "prefix")
    save_prefix(model, tmp_path)
    saved = load_file(tmp_path / PREFIX_FILE)
    official = prefix_state(case)
    assert saved.keys() == official.keys()
    assert all(torch.equal(saved[name], official[name]) for name in official)
    ids = small_ids(case, 20)[None]
    again = load_model(folder, checkpoint=tmp_path)
    assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
    assert not torch.allclose(load_model(folder)(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("prefix_projection", [True, False])
@pytest.mark.parametrize("format", ["bin", "safetensors"])
def test_length_and_projection_follow_from_the_tensors(tmp_path, base, prefix_projection, format):
    """Not from a config.json, which may be absent or of the base."""
    case = small_case(1, prefix_projection)
    write_prefix(tmp_path, case, format)
    (tmp_path / "config.json").unlink()
    encoder = load_model(base.path, checkpoint=tmp_path).base_model.prefix_encoder
    assert (encoder.pre_seq_len, encoder.prefix_projection) == (5, prefix_projection)
    expected = {name.removeprefix(PREFIX): t for name, t in prefix_state(case).items()}
    assert all(torch.equal(t, expected[name]) for name, t in encoder.state_dict().items())


def test_prefix_is_float32_whatever_the_base_and_the_file(tmp_path, base):
    half = {name: tensor.half() for name, tensor in prefix_state(CASE).items()}
    write_weights(tmp_path, half)
    model = load_model(base.path, checkpoint=tmp_path, dtype="bfloat16")
    encoder = model.base_model.prefix_encoder
    assert encoder.embedding.weight.dtype == torch.float32
    assert encoder.embedding.weight.requires_grad
    assert torch.equal(encoder.embedding.weight, half[PREFIX + "embedding.weight"].float())


def test_attached_prefix_is_where_the_model_is_and_in_float32(base):
    model = load_model(base.path)
    prefix = build_prefix(model.base_model.prefix_shape, base.path / "prefix", base).half()
    attach_prefix(model.to("meta"), prefix)
    weight = model.base_model.prefix_encoder.embedding.weight
    assert (weight.device.type, weight.dtype, weight.requires_grad) == ("meta", torch.float32, True)
    assert (model.config.pre_seq_len, model.config.prefix_projection) == (5, False)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_prefix_inside_a_whole_model(tmp_path, model_folder, generation):
    case = small_case(generation)
    ids = small_ids(case, 20)[None]
    folder = model_folder(case)
    expected = load_model(folder, checkpoint=folder / "prefix")(input_ids=ids).logits

    write_weights(tmp_path, base_state(case) | prefix_state(case), "safetensors", shards=2)
    write_json(tmp_path / "config.json", case["config"] | case["prefix"])
    assert has_prefix(find_base_model(tmp_path)) and not has_prefix(find_base_model(folder))
    as_checkpoint = load_model(folder, checkpoint=tmp_path)
    merged = load_model(tmp_path)
    for model in (as_checkpoint, merged):
        assert torch.equal(model(input_ids=ids).logits, expected)


def test_dropout(base):
    model = load_model(base.path)
    assert load_prefix(model, base.path / "prefix", base, dropout=0.3).dropout.p == 0.3
    assert load_model(base.path, base.path / "prefix").base_model.prefix_encoder.dropout.p == 0
    assert build_prefix(model.base_model.prefix_shape, base.path / "prefix", base).dropout.p == 0


def test_checkpoint_of_the_original_training(model_folder):
    """What main.py of ChatGLM-6B left, in half precision; the greedy continuations are its own."""
    run = json.loads((GOLDEN / "official-run.json").read_text())
    model = load_model(model_folder(run["case"]), checkpoint=GOLDEN / "official-run")
    for prompt, expected in zip(run["prompt_ids"], run["new_ids"], strict=True):
        ids = torch.tensor([prompt])
        new = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=len(expected),
            do_sample=False,
            eos_token_id=None,
        )
        assert new[0, len(prompt) :].tolist() == expected


class TestRecord:
    def test_there_and_back(self, base, tmp_path):
        config = config_of(base, settings={"seed": 42, "data": ["数据.json"]})
        assert config.ptune_version == __version__
        config.write(tmp_path)
        assert CheckpointConfig.read(tmp_path) == config
        text = (tmp_path / CONFIG_FILE).read_text(encoding="utf-8")
        expected = json.dumps(asdict(config), indent=2, sort_keys=True, ensure_ascii=False)
        assert "数据.json" in text and text == expected + "\n"
        assert [p.name for p in tmp_path.iterdir()] == [CONFIG_FILE]

    def test_keys_of_a_later_version_are_ignored(self, base, tmp_path):
        write_json(tmp_path / CONFIG_FILE, asdict(config_of(base)) | {"later": 1})
        assert CheckpointConfig.read(tmp_path) == config_of(base)

    def test_absent(self, tmp_path):
        assert CheckpointConfig.read(tmp_path) is None

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe", b"3"])
    def test_damaged(self, own, base, content):
        (own / CONFIG_FILE).write_bytes(content)
        refused(base.path, own, rf"{CONFIG_FILE} is damaged \(.+\); restore it, or train again")

    @pytest.mark.parametrize(
        ("name", "value", "said"),
        [
            ("settings", [], r"settings \[\] are no JSON object"),
            ("settings", "x", "settings 'x' are no JSON object"),
            ("base_model", "", "base_model '' is no text"),
            ("base_model", 3, "base_model 3 is no text"),
            ("fingerprint", None, "fingerprint None is no text"),
            ("ptune_version", 1, "ptune_version 1 is no text"),
            ("prompt_format", ["chatglm"], r"prompt_format \['chatglm'\] is no text"),
            ("pre_seq_len", "5", "pre_seq_len '5' is no whole number above 0"),
            ("pre_seq_len", 0, "pre_seq_len 0 is no whole number above 0"),
            ("pre_seq_len", True, "pre_seq_len True is no whole number above 0"),
            ("prefix_projection", 0, "prefix_projection 0 is not true or false"),
            ("prefix_projection", None, "prefix_projection None is not true or false"),
            ("settings", {"pre_seq_len": 6}, "pre_seq_len is 5, and 6 in its settings"),
            (
                "settings",
                {"prefix_projection": True},
                "prefix_projection is False, and True in its settings",
            ),
        ],
    )
    def test_wrong_value(self, own, base, name, value, said):
        write_json(own / CONFIG_FILE, asdict(config_of(base)) | {name: value})
        refused(base.path, own, rf"{CONFIG_FILE} is damaged \({said}\); restore it, or train again")

    @pytest.mark.parametrize(
        ("questions", "said"),
        [
            ("裙", "example_questions '裙' are no list"),
            (["裙"], "'裙' in example_questions is no question with its context"),
            ([{"question": "裙"}], r"\{'question': '裙'\} in example_questions is no question.*"),
            ([{"question": "裙", "context": 7}], ".* in example_questions is no question.*"),
            ([{"question": "裙", "context": "", "more": ""}], ".* is no question with its context"),
            (
                [{"question": "\ud83d", "context": ""}],
                ".* in example_questions holds half a chara.*",
            ),
        ],
    )
    def test_wrong_example_questions(self, own, base, questions, said):
        config_of(base, example_questions=questions).write(own)
        with pytest.raises(CheckpointError, match=rf"config.json is damaged \({said}\); restore"):
            CheckpointConfig.read(own)

    @pytest.mark.parametrize(
        ("name", "changes", "said"),
        [
            ("held_out", [], r"held_out \[\] in its inputs is no JSON object"),
            ("held_out", 3, "held_out 3 in its inputs is no JSON object"),
            ("examples", "x", "examples 'x' in its inputs is no JSON object"),
            ("eval_examples", True, "eval_examples True in its inputs is no JSON object"),
            (
                "held_out",
                {"of": None},
                "of None of held_out in its inputs is no whole number of at least 2",
            ),
            ("held_out", {"of": 1}, "of 1 of held_out in its inputs is no whole number of at l.*"),
            ("held_out", {"of": True}, "of True of held_out in its inputs is no whole number.*"),
            ("held_out", {"of": "10"}, "of '10' of held_out in its inputs is no whole number.*"),
            (
                "examples",
                {"records": 0},
                "records 0 of examples in its inputs is no whole number of at least 1",
            ),
            ("held_out", {"sha256": ""}, "sha256 '' of held_out in its inputs is no text"),
            ("held_out", {"sha256": 7}, "sha256 7 of held_out in its inputs is no text"),
            ("eval_examples", {"sha256": None}, "sha256 None of eval_examples in its .*"),
        ],
    )
    def test_wrong_inputs(self, own, base, name, changes, said):
        whole = {"records": 3, "sha256": "0" * 64}
        inputs = {"examples": whole, "held_out": {**whole, "of": 10}, "eval_examples": whole}
        config_of(base, settings=HELD_OUT, inputs=inputs).write(own)
        assert CheckpointConfig.read(own).inputs == inputs
        inputs[name] = inputs[name] | changes if isinstance(changes, dict) else changes
        config_of(base, settings=HELD_OUT, inputs=inputs).write(own)
        refused(base.path, own, rf"{CONFIG_FILE} is damaged \({said}\); restore it, or train again")

    @pytest.mark.parametrize("value", [None, "missing"])
    @pytest.mark.parametrize("name", HELD_OUT)
    def test_held_out_by_settings_that_are_missing(self, own, base, name, value):
        inputs = {"held_out": {"records": 3, "of": 10}}
        settings = {**HELD_OUT, name: value}
        if value == "missing":
            del settings[name]
        config_of(base, settings=settings, inputs=inputs).write(own)
        said = rf"\((records were held out, and its settings lack {name}|{name} None in .*)\)"
        refused(base.path, own, rf"{CONFIG_FILE} is damaged {said}; restore it, or train again")

    def test_missing_value(self, own, base):
        written = asdict(config_of(base))
        del written["fingerprint"], written["pre_seq_len"], written["settings"]
        write_json(own / CONFIG_FILE, written)
        said = r"\(it lacks fingerprint, pre_seq_len\)"
        refused(base.path, own, rf"{CONFIG_FILE} is damaged {said}; restore it, or train again")

    def test_key_that_occurs_twice(self, own, base):
        text = json.dumps(asdict(config_of(base)))
        (own / CONFIG_FILE).write_text(text.replace("{", '{"pre_seq_len": 5, ', 1))
        said = r"\(is not JSON \(key 'pre_seq_len' occurs twice\)\)"
        refused(base.path, own, rf"{CONFIG_FILE} is damaged {said}; restore it, or train again")

    def test_wrong_setting(self, own, base):
        config_of(base, settings={"max_source_length": -64}).write(own)
        said = r"\(max_source_length -64 is out of range\)"
        refused(base.path, own, rf"{CONFIG_FILE} is damaged {said}; restore it, or train again")

    @pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999"])
    def test_numbers_that_are_none(self, own, base, literal):
        text = json.dumps(asdict(config_of(base))).replace(": 5,", f": {literal},")
        (own / CONFIG_FILE).write_text(text)
        refused(base.path, own, rf"{CONFIG_FILE} is damaged \(is not JSON \({literal} is ")

    def test_unknown_prompt(self, own, base):
        replace(config_of(base), prompt_format="chatglm9").write(own)
        with pytest.raises(CheckpointError, match=r"damaged .*chatglm9.*; restore it"):
            find_base(str(base.path), own)

    def test_prompt_of_another_generation(self, own, base):
        replace(config_of(base), prompt_format="chatglm3").write(own)
        refused(
            base.path,
            own,
            f"the prefix in {own} was trained with the prompt of chatglm3, but {base.name} is of "
            "chatglm; pass the model it was trained on with --model",
        )

    def test_prompt_decides_where_the_folder_does_not_say(self, tmp_path):
        """And what the user says comes before it, where the two agree."""
        folder = write_model(tmp_path / "model", changed(small_case(2), _name_or_path=None))
        checkpoint = tmp_path / "checkpoint-3"
        checkpoint.mkdir()
        found = find_base_model(folder, prompt_format="chatglm3")
        save_prefix(load_model(folder, folder / "prefix", prompt_format="chatglm3"), checkpoint)
        config_of(found).write(checkpoint)
        for said in (None, "chatglm3"):
            assert find_base(None, checkpoint, said).generation is Generation.CHATGLM3
        model = load_model(folder, checkpoint)
        assert 64795 in model.generation_config.eos_token_id
        with pytest.raises(CheckpointError, match=r"the prompt of chatglm3, but .*lm2;"):
            find_base(None, checkpoint, "chatglm2")
        with pytest.raises(ModelError, match="say it with --prompt-format"):
            load_model(folder, folder / "prefix")

    def test_weights_are_fetched_unless_they_come_later(self, base, monkeypatch):
        asked = []

        def find(name, weights, *formats):
            asked.append(weights)
            return find_base_model(name, weights, *formats)

        monkeypatch.setattr("ptune.checkpoint.base.find_base_model", find)
        find_base(str(base.path), None)
        find_base(str(base.path), None, weights=False)
        assert asked == [True, False]

    def test_base_model(self, own, base):
        assert resolve_base("given", own) == "given"
        assert resolve_base(None, own) == base.name
        with pytest.raises(CheckpointError, match=r"no ptune_config.json in .*pass it with"):
            resolve_base(None, base.path / "prefix")
        with pytest.raises(
            CheckpointError, match=r"^no model is given; pass --model DIR or --checkpoint DIR$"
        ):
            resolve_base(None, None)


class TestFingerprint:
    @pytest.mark.parametrize("generation", GENERATIONS)
    def test_same_in_every_format_and_precision(self, model_folder, tmp_path, generation):
        case = small_case(generation)
        expected = fingerprint(find_base_model(model_folder(case)))
        assert len(expected) == 64
        others = [model_folder(case, "safetensors", 3)]
        others.append(model_folder(changed(case, quantization_bit=4)))
        half = {name: tensor.half() for name, tensor in base_state(case).items()}
        write_weights(tmp_path, half)
        write_json(tmp_path / "config.json", case["config"])
        brain = tmp_path / "bfloat16"  # made of the official float16, as people make it
        brain.mkdir()
        write_weights(brain, {name: tensor.bfloat16() for name, tensor in half.items()})
        write_json(brain / "config.json", case["config"])
        for folder in (*others, tmp_path, brain):
            assert fingerprint(find_base_model(folder)) == expected

    def test_another_model(self, own, base, tmp_path):
        check_fingerprint(base, own)
        other = write_model(tmp_path / "other", CASE | {"seed": 99})
        refused(
            other,
            own,
            rf"the prefix in {own} was trained on {base.name} \(fingerprint "
            rf"{fingerprint(base)[:12]}\), not on {other} \([0-9a-f]{{12}}\); pass the model",
        )

    def test_checkpoints_of_the_original_have_none(self, base):
        check_fingerprint(base, base.path / "prefix")


class TestFinding:
    def test_last_of_a_training_output(self, own, base):
        output = own.parent
        own.rename(output / "checkpoint-10")
        for name in ("checkpoint-8", "checkpoint-9"):
            write_prefix(output / name, CASE)
        for name in ("checkpoint-20", "checkpoint-x", "other"):
            (output / name).mkdir()
        (output / "checkpoint-20" / "half-written.tmp").write_text("")
        names = [path.name for path in numbered_checkpoints(output)]
        assert names == ["checkpoint-8", "checkpoint-9", "checkpoint-10"]
        assert find_checkpoint(output) == output / "checkpoint-10"
        model = load_model(base.path, checkpoint=output)
        assert model.base_model.prefix_encoder.pre_seq_len == 5

    def test_own_file_comes_first(self, own):
        """Over weights without a prefix that the folder holds, too."""
        write_weights(own, base_state(CASE))
        assert read_prefix(own)["embedding.weight"].shape == (5, 128)

    def test_no_folder(self, base, tmp_path):
        refused(base.path, tmp_path / "x", "checkpoint .*/x is not a folder here; pass what `ptune")

    def test_nothing_in_it(self, base, tmp_path):
        def said(found):
            return (
                rf"^no checkpoint in {tmp_path} \(found {found}\); pass a folder with "
                f"{PREFIX_FILE}, {ADAPTER_CONFIG} and {ADAPTER_FILE}, pytorch_model.bin or "
                "model.safetensors$"
            )

        refused(base.path, tmp_path, said("nothing"))
        for number in range(10):
            (tmp_path / f"notes{number}").write_text("")
        refused(base.path, tmp_path, said(", ".join(f"notes{number}" for number in range(8))))


class TestRefused:
    def test_weights_without_a_prefix(self, base, tmp_path):
        refused(
            base.path,
            base.path,
            rf"^{base.path} holds weights but no transformer\.prefix_encoder\.\*; it is no "
            "P-Tuning checkpoint, pass a folder that training wrote, or pass this one with "
            "--model$",
        )

    @pytest.mark.parametrize(
        "keys", [["embedding.weight"], ["trans.2.weight"], ["trans.2.bias", "trans.2.weight"]]
    )
    def test_missing_keys(self, base, tmp_path, keys):
        state = prefix_state(small_case(1, prefix_projection=True))
        for key in keys:
            del state[PREFIX + key]
        write_weights(tmp_path, state)
        refused(
            base.path,
            tmp_path,
            f"^the prefix in {tmp_path} lacks {', '.join(keys)}; the checkpoint is incomplete, "
            "take another one$",
        )

    def test_prefix_of_another_generation(self, base, tmp_path):
        write_prefix(tmp_path, small_case(2))
        refused(
            base.path,
            tmp_path,
            rf"embedding.weight \[5, 64\] of the prefix in {tmp_path} does not fit {base.name}, "
            r"which takes \[5, 128\]; pass the base model that this prefix was trained on",
        )

    def test_prefix_of_a_larger_model(self, base, tmp_path):
        write_prefix(tmp_path, small_case(1, prefix_projection=True, num_layers=3))
        refused(base.path, tmp_path, r"trans.2.\w+ \[192.*\] of the prefix .* takes \[128")

    def test_wrong_shape_names_the_model_of_training(self, own, base):
        save_file({PREFIX + "embedding.weight": torch.zeros(5, 64)}, own / PREFIX_FILE)
        refused(base.path, own, rf"\[5, 64\] .* \(trained on {base.name}\) does not fit")

    @pytest.mark.parametrize(("shape", "length"), [((), 1), ((7,), 7)])
    def test_tensor_of_another_rank(self, base, tmp_path, shape, length):
        write_weights(tmp_path, {PREFIX + "embedding.weight": torch.zeros(shape)})
        takes = (
            rf"embedding.weight .* does not fit {base.name}, which takes \[{length}, 128\]; pass"
        )
        refused(base.path, tmp_path, takes)

    @pytest.mark.parametrize("keep", [0, 100, 0.9])
    def test_truncated(self, own, base, keep):
        file = own / PREFIX_FILE
        content = file.read_bytes()
        file.write_bytes(content[: int(keep if keep > 1 else keep * len(content))])
        refused(base.path, own, f"{PREFIX_FILE} .* is truncated or damaged .*; download it again")

    def test_prefix_of_no_tokens(self, base, tmp_path):
        write_weights(tmp_path, {PREFIX + "embedding.weight": torch.zeros(0, 128)})
        message = (
            rf"^the prefix in {tmp_path} is empty \(embedding.weight \[0, 128\]\); take another"
        )
        refused(base.path, tmp_path, message)

    def test_tensor_that_no_prefix_has(self, base, tmp_path):
        extra = {PREFIX + "trans.4.weight": torch.zeros(1), PREFIX + "gate": torch.zeros(1)}
        write_weights(tmp_path, prefix_state(CASE) | extra)
        refused(
            base.path,
            tmp_path,
            f"the prefix in {tmp_path} holds gate, trans.4.weight, which no part of a prefix takes",
        )

    def test_tensor_of_something_else_in_the_file_of_a_prefix(self, base, own):
        save_file(load_file(own / PREFIX_FILE) | {"foo": torch.zeros(1)}, own / PREFIX_FILE)
        message = f"^{own / PREFIX_FILE} holds foo, which no part of a prefix takes; take another"
        refused(base.path, own, message)

    @pytest.mark.parametrize("shards", [1, 2])
    def test_two_files_with_a_prefix(self, base, own, shards):
        write_weights(own, base_state(CASE) | prefix_state(CASE), "bin", shards)
        message = (
            rf"^{own} holds two prefixes, in {PREFIX_FILE} and in pytorch_model\S*; take one of"
        )
        refused(base.path, own, message)
        for file in own.glob("pytorch_model*"):
            file.unlink()
        write_weights(own, base_state(CASE), "bin", shards)
        assert load_model(base.path, own).base_model.prefix_encoder.pre_seq_len == 5

    def test_two_prefixes(self, base, tmp_path):
        state = prefix_state(small_case(1, prefix_projection=True))
        write_weights(tmp_path, state | {f"module.{name}": t for name, t in state.items()})
        refused(
            base.path,
            tmp_path,
            rf"^{tmp_path} holds more than one prefix \({', '.join([*state][:3])} \.\.\.\); take a "
            "checkpoint with one$",
        )

    def test_integers(self, base, tmp_path):
        state = {name: tensor.to(torch.int8) for name, tensor in prefix_state(CASE).items()}
        write_weights(tmp_path, state)
        refused(
            base.path,
            tmp_path,
            f"^embedding.weight of the prefix in {tmp_path} holds torch.int8, not numbers in "
            "floating point; take another checkpoint$",
        )

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
    @pytest.mark.parametrize("prefix_projection", [True, False])
    def test_prefix_that_is_not_finite(self, base, tmp_path, value, prefix_projection):
        state = prefix_state(small_case(1, prefix_projection))
        name = list(state)[-1]
        state[name] = state[name].double()
        state[name].view(-1)[7] = value
        write_weights(tmp_path, state)
        refused(
            base.path,
            tmp_path,
            f"{name.removeprefix(PREFIX)} of the prefix in {tmp_path} holds NaN or infinity, its "
            "training failed; take an earlier checkpoint",
        )

    @pytest.mark.parametrize("file", [CONFIG_FILE, "config.json"])
    @pytest.mark.parametrize(
        ("name", "value"), [("pre_seq_len", 6), ("pre_seq_len", 1), ("prefix_projection", True)]
    )
    def test_claims_that_the_tensors_deny(self, base, own, file, name, value):
        claims = asdict(config_of(base)) if file == CONFIG_FILE else {"pre_seq_len": 5}
        write_json(own / file, claims | {name: value})
        held = 5 if name == "pre_seq_len" else False
        refused(
            base.path,
            own,
            f"{name} {value} in {own / file} does not go with the prefix beside it, which has "
            f"{held}; take all files of one checkpoint",
        )

    def test_claims_of_a_merged_model(self, tmp_path):
        folder = write_model(tmp_path / "model", CASE)
        write_weights(folder, base_state(CASE) | prefix_state(CASE))
        write_json(folder / "config.json", CASE["config"] | {"pre_seq_len": 6})
        refused(
            folder, None, "pre_seq_len 6 in .*config.json does not go with the prefix beside it"
        )

    def test_damaged_config_beside_a_prefix(self, base, own):
        (own / "config.json").write_text("{")
        refused(base.path, own, r"config.json is not JSON \(.*\); restore it")

    def test_config_that_names_a_prefix_which_is_not_there(self, tmp_path):
        folder = write_model(tmp_path / "model", CASE, prefix=False)
        write_json(folder / "config.json", CASE["config"] | CASE["prefix"])
        refused(
            folder,
            None,
            f"^pre_seq_len 5 in {folder / 'config.json'} tells of a prefix, but the weights beside "
            r"it hold no transformer.prefix_encoder.\*; take all files of one merged folder, or "
            r"the config.json of the base model$",
        )

    def test_base_is_checked_first(self, tmp_path, own):
        with pytest.raises(ModelError, match=r"no config\.json"):
            load_model(tmp_path / "checkpoint-3", checkpoint=own)


def test_checkpoint_is_found_after_moving(own, base, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.move(own, moved)
    ids = small_ids(CASE, 20)[None]
    expected = load_model(base.path, base.path / "prefix")(input_ids=ids).logits
    assert torch.equal(load_model(base.path, moved)(input_ids=ids).logits, expected)


def test_a_model_that_the_card_does_not_hold(own, base, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB. GPU 0 has")

    monkeypatch.setattr("ptune.checkpoint.load.build_model", full)
    message = "memory is full .*use --quantization-bit 8 or 4, which `ptune estimate` compares"
    with pytest.raises(ConfigError, match=message):
        load_model(base.path, own)


def test_device_precision_and_backend_are_those_asked_for(base):
    assert load_model(base.path, dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="device 'meta' is not supported"):
        load_model(base.path, device="meta")
    with pytest.raises(ConfigError, match="quantization_backend torch has no effect"):
        load_model(base.path, quantization_backend="torch")


@pytest.mark.parametrize(
    ("trained", "wanted", "held"),
    [(None, None, None), ("8", None, "8"), ("8", 4, "4"), ("8", "none", None), (None, "8", "8")],
)
def test_bits_are_those_of_the_training_unless_others_are_wanted(
    base, tmp_path, trained, wanted, held
):
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    save_prefix(load_model(base.path, base.path / "prefix"), folder)
    config_of(base, settings={"quantization_bit": trained} if trained else {}).write(folder)
    assert bits_of(load_model(base.path, folder, quantization_bit=wanted)) == held

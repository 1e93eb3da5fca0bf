"""Evaluations: the files, resuming after an interruption, and that the numbers are right."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from fixtures.runs import Recorder, run_settings, write_records, write_toy_model
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from ptune import load_model, load_tokenizer
from ptune.base.folder import Generation, find_base_model
from ptune.commands.merge import merge
from ptune.config.settings import EvalSettings
from ptune.data.examples import conversation
from ptune.data.held_out import split_records
from ptune.data.prompt import Lengths, render
from ptune.data.records import read_records
from ptune.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    EvaluationError,
    ModelError,
)
from ptune.evaluation.evaluate import evaluate
from ptune.evaluation.metrics import mean_scores
from ptune.evaluation.predictions import read_predictions
from ptune.files.lock import holding
from ptune.training.train import train

SAMPLES = 7
ROUGES = ("rouge-1", "rouge-2", "rouge-l", "bleu-4")
KEYS = {*ROUGES, "loss", "samples", "empty_predictions"}
KEYS |= {"samples_per_second", "new_tokens_per_second"}
IDENTITY = {"base_model", "quantization_bit", "prefix", "data", "prompt_format", "truncation"}
IDENTITY |= {"max_source_length", "generation", "seed"}
# They differ from run to run.
TIMES = ("samples_per_second", "new_tokens_per_second")


class Progress:
    """Remembers what is reported; Ctrl-C comes when `stop_at` records of a phase are done."""

    def __init__(self, stop_at=None, stop_in="Generating"):
        self.stop_at, self.stop_in = stop_at, stop_in
        self.phases = []
        self.done = []

    def phase(self, name, total, done):
        self.phases.append((name, total, done))

    def advanced(self, done):
        self.done.append(done)
        if self.stop_at is not None and done >= self.stop_at and self.phases[-1][0] == self.stop_in:
            raise KeyboardInterrupt


@pytest.fixture(scope="module", params=[1, 3, 4])
def trained(request, toy_folder, tmp_path_factory):
    """A folder with a small model, a training on it in out/, and dev.json that it names."""
    root = tmp_path_factory.mktemp("trained")
    source = toy_folder(request.param)
    model = write_toy_model(root / source.name, source, request.param)
    dev = write_records(root / "dev.json", SAMPLES)
    changes = {"learning_rate": 0.5, "max_source_length": 24, "max_target_length": 8}
    changes |= {"eval_data": (dev,), "max_steps": 3, "init_prefix": (model / "prefix",)}
    train(run_settings(root, model, **changes), Recorder())
    return root


@pytest.fixture
def settings(trained, tmp_path):
    def make(**changes):
        values = {"checkpoint": trained / "out", "output": tmp_path / "eval", "batch_size": 2}
        return EvalSettings(**values | {"device": "cpu"} | changes)

    return make


def predictions(output):
    text = (output / "generated_predictions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def predicted(output):
    return [entry["predict"] for entry in predictions(output)]


def without_times(scores):
    return {key: value for key, value in scores.items() if key not in TIMES}


class TestFiles:
    def test_predictions_and_results(self, settings, trained):
        progress = Progress()
        result = evaluate(settings(), progress)
        entries = predictions(result.output)
        assert [list(entry) for entry in entries] == [
            ["index", "prompt", "labels", "predict"]
        ] * SAMPLES
        assert [entry["index"] for entry in entries] == list(range(SAMPLES))
        records = read_records([trained / "dev.json"]).records
        said = [[message["content"] for message in row["messages"]] for row in records]
        assert [entry["prompt"] for entry in entries] == [texts[-2] for texts in said]
        tokenizer = load_tokenizer(find_base_model(next(trained.glob("*glm*"))).path)
        for entry, texts in zip(entries, said, strict=True):
            assert entry["labels"] == tokenizer.decode(tokenizer.encode_text(texts[-1])).strip()

        for name in ("eval_results.json", "eval_config.json"):
            text = (result.output / name).read_text(encoding="utf-8")
            written = json.loads(text)
            assert text == json.dumps(written, indent=2, sort_keys=True) + "\n"
        generation = find_base_model(next(trained.glob("*glm*"))).generation.value
        assert written["prompt_format"] == generation and written.keys() == IDENTITY
        written = json.loads((result.output / "eval_results.json").read_text(encoding="utf-8"))
        assert written == result.scores
        assert written.keys() == KEYS
        assert written["samples"] == SAMPLES
        assert written["new_tokens_per_second"] > 0 < written["samples_per_second"]
        names = {"generated_predictions.jsonl", "eval_results.json", "eval_config.json", ".lock"}
        assert {path.name for path in result.output.iterdir()} == names
        assert progress.phases == [
            ("Generating", SAMPLES, 0),
            ("Measuring the loss", SAMPLES, 0),
        ]
        assert progress.done == [2, 4, 6, 7, 2, 4, 6, 7]

    def test_predictions_are_the_models(self, settings, trained):
        result = evaluate(settings(), Progress())
        base = find_base_model(next(trained.glob("*glm*")))
        tokenizer = load_tokenizer(base.path)
        model = load_model(base.path, trained / "out", device="cpu")
        records = read_records([trained / "dev.json"]).records
        for row, predict in zip(records, predicted(result.output), strict=True):
            asked = conversation(row, with_response=False)
            ids = render(tokenizer, base.generation, asked, Lengths(24, 8)).input_ids
            new = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)
            new = new[0, len(ids) :].tolist()
            assert predict == tokenizer.decode(new, skip_special_tokens=True).strip()

    def test_scores_are_those_of_the_file(self, settings):
        result = evaluate(settings(), Progress())
        scores = mean_scores(read_predictions(result.output / "generated_predictions.jsonl"))
        assert {name: result.scores[name] for name in ROUGES} == scores.means
        assert result.scores["empty_predictions"] == scores.empty_predictions

    def test_loss_is_the_mean_over_label_tokens(self, settings, trained):
        result = evaluate(settings(), Progress())
        base = find_base_model(next(trained.glob("*glm*")))
        tokenizer = load_tokenizer(base.path)
        model = load_model(base.path, trained / "out", device="cpu")
        losses = []
        for row in read_records([trained / "dev.json"]).records:
            example = render(tokenizer, base.generation, conversation(row), Lengths(24, 8))
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([example.input_ids])).logits[0, :-1]
            labels = torch.tensor(example.labels[1:])
            losses.append(cross_entropy(logits, labels, reduction="none")[labels >= 0])
        assert result.scores["loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)

    def test_default_output_and_data(self, settings, trained):
        result = evaluate(settings(output=None, max_new_tokens=1), Progress())
        assert result.output == trained / "out" / "eval-dev"
        bare = evaluate(settings(output=None, prefix=False, max_new_tokens=1), Progress())
        assert bare.output == trained / "out" / "eval-dev-no-prefix"
        for folder in (result.output, bare.output):
            shutil.rmtree(folder)

    def test_speeds(self, settings, monkeypatch):
        clock = SimpleNamespace(perf_counter=iter([10.0, 13.0]).__next__)
        monkeypatch.setattr("ptune.evaluation.evaluate.time", clock)
        scores = evaluate(settings(), Progress()).scores
        assert scores["samples_per_second"] == round(SAMPLES / 3, 3)
        assert scores["new_tokens_per_second"] in [round(n / 3, 3) for n in range(8 * SAMPLES + 1)]

    def test_defaults_and_bits(self, settings, trained):
        """Where no training says another length or way to cut, and where bits are asked for."""
        changes = {"checkpoint": None, "model": str(next(trained.glob("*glm*")))}
        changes |= {"data": (trained / "dev.json",), "max_samples": 1, "quantization_bit": "8"}
        output = evaluate(settings(max_new_tokens=1, **changes), Progress()).output
        identity = json.loads((output / "eval_config.json").read_text("utf-8"))
        assert (identity["max_source_length"], identity["truncation"]) == (64, "turns")
        assert identity["quantization_bit"] == "8"

    def test_columns_of_the_training(self, settings, trained, tmp_path):
        copy, data = tmp_path / "copy", tmp_path / "data.json"
        shutil.copytree(trained / "out", copy)
        (copy / "ptune_manifest.json").unlink()
        record = json.loads((copy / "ptune_config.json").read_text("utf-8"))
        names = {"prompt_column": "q", "response_column": "a", "history_column": "before"}
        names["context_column"] = "about"
        record["settings"] |= names | {"truncation": "original"}
        (copy / "ptune_config.json").write_text(json.dumps(record))
        rows = [{"q": "类型#裙", "a": "黑色", "before": [["类型#裤", "白色"]], "about": "裙子"}] * 3
        data.write_text(json.dumps(rows), encoding="utf-8")
        changes = {"checkpoint": copy, "data": (data,), "max_new_tokens": 2}
        result = evaluate(settings(**changes), Progress())
        assert result.notices == ()  # no column is left unused
        identity = json.loads((result.output / "eval_config.json").read_text("utf-8"))
        assert identity["truncation"] == "original"
        assert [entry["labels"] for entry in predictions(result.output)] == ["黑色"] * 3
        # What is asked for now comes before it.
        changes |= {"prompt_column": "a", "response_column": "q", "output": tmp_path / "turned"}
        turned = evaluate(settings(**changes), Progress())
        assert {entry["prompt"] for entry in predictions(turned.output)} == {"黑色"}

    def test_max_samples(self, settings, tmp_path):
        some = evaluate(settings(max_samples=3), Progress())
        assert some.scores["samples"] == 3
        everything = evaluate(settings(max_samples=99, output=tmp_path / "all"), Progress())
        assert everything.scores["samples"] == SAMPLES
        assert predictions(some.output) == predictions(everything.output)[:3]

    def test_bad_records_are_counted(self, settings, tmp_path):
        data = write_records(tmp_path / "bad.json", 3)
        data.write_text(data.read_text(encoding="utf-8") + '\n{"content": ""}', encoding="utf-8")
        with pytest.raises(DataError, match="1 of 4 records are bad"):
            evaluate(settings(data=(data,)), Progress())
        result = evaluate(settings(data=(data,), skip_bad_records=True), Progress())
        assert result.scores["samples"] == 3
        assert len(result.skipped) == 1

    def test_tools_where_there_is_a_prompt_for_them(self, settings, trained, tmp_path):
        """Answers that are calls; what is not used; the first generation leaves them out."""
        asked = {"role": "user", "content": "裙"}
        called = {"role": "tool", "name": "find", "parameters": {"x": "裙"}}
        answer = {"role": "assistant", "content": "黑色"}
        rows = [
            {"messages": [asked, called], "id": 1},
            {"messages": [asked, {**called, "observation": "黑"}, answer], "id": 2},
            {"messages": [asked, answer], "id": 3},
        ]
        data = tmp_path / "tools.json"
        data.write_text(json.dumps(rows), encoding="utf-8")
        common = {"data": (data,), "skip_bad_records": True, "max_source_length": 200}
        result = evaluate(settings(**common), Progress())
        base = find_base_model(next(trained.glob("*glm*")))
        has_roles = base.generation.has_roles
        assert len(result.skipped) == (0 if has_roles else 2)
        count = 3 if has_roles else 1
        assert result.notices == (f"not used: 'id' ({count} record{'s' * has_roles})",)
        entries = [(entry["prompt"], entry["labels"]) for entry in predictions(result.output)]
        tokenizer = load_tokenizer(base.path)
        call = "find\n```python\ntool_call(x='裙')\n```"
        if base.generation is Generation.GLM4:
            call = 'find\n{"x": "裙"}'
        call = tokenizer.decode(tokenizer.encode_text(call))
        expected = [("裙", call), ("黑", "黑色"), ("裙", "黑色")]
        assert entries == (expected if has_roles else expected[2:])


class TestResume:
    def test_after_an_interruption(self, settings, tmp_path):
        straight = evaluate(settings(), Progress())
        broken = settings(output=tmp_path / "broken")
        with pytest.raises(KeyboardInterrupt):
            evaluate(broken, Progress(stop_at=4))
        assert len(predictions(broken.output)) == 4
        assert not (broken.output / "eval_results.json").exists()
        progress = Progress()
        result = evaluate(broken, progress)
        assert progress.phases[0] == ("Generating", SAMPLES, 4)
        assert progress.done[:2] == [6, 7]
        assert without_times(result.scores) == without_times(straight.scores)
        file = "generated_predictions.jsonl"
        assert (broken.output / file).read_bytes() == (straight.output / file).read_bytes()

    @pytest.mark.parametrize("inside", [b'"predict', "类".encode()], ids=["word", "character"])
    def test_after_half_a_line(self, inside, settings):
        first = evaluate(settings(), Progress())
        file = first.output / "generated_predictions.jsonl"
        whole = file.read_bytes()
        lines = whole.splitlines(keepends=True)
        cut = lines[4].index(inside) + 2  # of three bytes of the character, one is missing
        file.write_bytes(b"".join(lines[:4]) + lines[4][:cut])
        progress = Progress()
        evaluate(settings(), progress)
        assert progress.phases[0] == ("Generating", SAMPLES, 4)
        assert file.read_bytes() == whole

    def test_sampled_and_stopped_inside_a_batch(self, settings, tmp_path, monkeypatch):
        def load(*arguments):
            model = load_model(*arguments)
            model.generation_config.eos_token_id = list(range(0, 600, 4))  # answers end apart
            return model

        monkeypatch.setattr("ptune.evaluation.answering.load_model", load)
        sampled = {"do_sample": True, "temperature": 3.0, "top_p": 1.0, "batch_size": 4}
        straight = evaluate(settings(**sampled), Progress())
        broken = settings(output=tmp_path / "broken", **sampled)
        counts = []
        for stop_at in (1, 3, 5):
            with pytest.raises(KeyboardInterrupt):
                evaluate(broken, Progress(stop_at=stop_at))
            counts.append(len(predictions(broken.output)))
        assert counts[0] < 4, "a part of the first batch"
        assert counts == sorted(counts) and counts[1] < SAMPLES
        result = evaluate(broken, Progress())
        assert predictions(broken.output) == predictions(straight.output)
        assert without_times(result.scores) == without_times(straight.scores)

    def test_half_a_line_and_stopped_again(self, settings, tmp_path):
        straight = evaluate(settings(), Progress())
        broken = settings(output=tmp_path / "broken")
        file = broken.output / "generated_predictions.jsonl"
        with pytest.raises(KeyboardInterrupt):
            evaluate(broken, Progress(stop_at=4))
        for stop_at, whole in ((4, 3), (5, 4)):
            file.write_bytes(file.read_bytes()[:-9])
            with pytest.raises(KeyboardInterrupt):
                evaluate(broken, progress := Progress(stop_at=stop_at))
            assert progress.phases[0] == ("Generating", SAMPLES, whole)
            assert len(predictions(broken.output)) > whole
        file.write_bytes(file.read_bytes().splitlines(keepends=True)[0][:-9])  # nothing whole
        with pytest.raises(KeyboardInterrupt):
            evaluate(broken, Progress(stop_at=2))
        evaluate(broken, Progress())
        assert predictions(broken.output) == predictions(straight.output)

    @pytest.mark.parametrize("sampled", [False, True])
    def test_after_an_interruption_while_the_loss_is_measured(self, sampled, settings, tmp_path):
        straight = evaluate(settings(do_sample=sampled), Progress())
        broken = settings(do_sample=sampled, output=tmp_path / "broken")
        with pytest.raises(KeyboardInterrupt):
            evaluate(broken, Progress(stop_at=2, stop_in="Measuring the loss"))
        result = evaluate(broken, Progress())
        assert without_times(result.scores) == without_times(straight.scores)
        # Nothing was answered in this run, so that there is no speed.
        assert [result.scores[name] for name in TIMES] == [None, None]
        assert json.loads((broken.output / "eval_results.json").read_text()) == result.scores

    def test_results_of_other_answers_are_gone(self, settings):
        """The file of answers was deleted, as the error for other settings advises."""
        first = evaluate(settings(), Progress())
        (first.output / "generated_predictions.jsonl").unlink()
        with pytest.raises(KeyboardInterrupt):
            evaluate(settings(max_new_tokens=2), Progress(2, "Measuring the loss"))
        assert not (first.output / "eval_results.json").exists()
        again = evaluate(settings(max_new_tokens=2), Progress())
        assert again.scores["samples_per_second"] is None

    def test_with_damaged_results(self, settings):
        first = evaluate(settings(), Progress())
        for text in ('{"loss"', "[]", ""):
            (first.output / "eval_results.json").write_text(text)
            with pytest.raises(DataError, match=r"eval_results\.json is damaged .*; delete it"):
                evaluate(settings(), Progress())

    def test_when_everything_is_there(self, settings):
        first = evaluate(settings(), Progress())
        again = Progress()
        assert evaluate(settings(), again).scores == first.scores  # the times of then included
        assert again.phases[0] == ("Generating", SAMPLES, SAMPLES)

    def test_not_with_a_damaged_eval_config(self, settings):
        first = evaluate(settings(), Progress())
        (first.output / "eval_config.json").write_text('{"seed"')
        with pytest.raises(ConfigError, match=r"eval_config\.json is missing or damaged"):
            evaluate(settings(), Progress())

    def test_not_with_a_damaged_file(self, settings):
        first = evaluate(settings(), Progress())
        file = first.output / "generated_predictions.jsonl"
        file.write_bytes(b"no prediction\n" + file.read_bytes())
        with pytest.raises(DataError, match=r"predictions\.jsonl:1 is no prediction .*; delete"):
            evaluate(settings(), Progress())

    def test_with_unusual_line_ends_in_the_text(self, settings, tmp_path):
        data = tmp_path / "odd.json"
        record = {"content": "类型\u2028裙\x85", "summary": "黑色\u2029裙"}
        data.write_text(json.dumps([record, record]), encoding="utf-8")
        first = evaluate(settings(data=(data,)), Progress())
        again = Progress()
        assert evaluate(settings(data=(data,)), again).scores == first.scores
        assert again.phases[0] == ("Generating", 2, 2)

    def test_not_behind_a_damaged_line(self, settings):
        first = evaluate(settings(), Progress())
        file = first.output / "generated_predictions.jsonl"
        lines = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(b"".join([lines[0], b"oops\n", *lines[2:]]))
        with pytest.raises(DataError, match=r"predictions\.jsonl:2 is no prediction .*; delete"):
            evaluate(settings(), Progress())

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"max_new_tokens": 5}, "generation differ"),
            ({"do_sample": True}, "generation, seed differ"),
            ({"prefix": False}, "prefix differ"),
            ({"max_samples": 2}, "data differ"),
            ({"max_source_length": 9, "truncation": "original"}, "max_source_length, truncation"),
        ],
    )
    def test_not_with_other_settings(self, changes, named, settings):
        first = evaluate(settings(), Progress())
        before = (first.output / "generated_predictions.jsonl").read_bytes()
        with pytest.raises(ConfigError, match=rf"holds another evaluation \({named}.*; pass"):
            evaluate(settings(**changes), Progress())
        assert (first.output / "generated_predictions.jsonl").read_bytes() == before

    def test_not_with_other_records(self, settings, tmp_path):
        data = write_records(tmp_path / "data.json", 3)
        evaluate(settings(data=(data,)), Progress())
        data.write_text(data.read_text("utf-8").replace("裙", "裤"), encoding="utf-8")
        with pytest.raises(ConfigError, match=r"another evaluation \(data differ\)"):
            evaluate(settings(data=(data,)), Progress())

    def test_not_with_a_prefix_that_was_trained_on(self, settings, trained, tmp_path):
        copy = tmp_path / "copy"
        shutil.copytree(trained / "out", copy)
        evaluate(settings(checkpoint=copy), Progress())
        evaluate(settings(checkpoint=copy, batch_size=3), Progress())  # changes no prediction
        with pytest.raises(ConfigError, match=r"another evaluation \(prefix differ\)"):
            model = next(trained.glob("*glm*"))
            evaluate(
                settings(
                    checkpoint=model / "prefix",
                    model=str(model),
                    data=(trained / "dev.json",),
                    max_source_length=24,
                    max_new_tokens=8,
                ),
                Progress(),
            )


class TestModels:
    def test_no_prefix_is_the_bare_model(self, settings, trained, tmp_path):
        bare = evaluate(settings(prefix=False), Progress())
        model = next(trained.glob("*glm*"))
        changes = {"max_source_length": 24, "max_new_tokens": 8, "data": (trained / "dev.json",)}
        base = evaluate(
            settings(checkpoint=None, model=str(model), output=tmp_path / "base", **changes),
            Progress(),
        )
        assert predicted(base.output) == predicted(bare.output)
        with_prefix = evaluate(settings(output=tmp_path / "prefix"), Progress())
        assert predicted(with_prefix.output) != predicted(bare.output)
        assert with_prefix.scores["loss"] != bare.scores["loss"]

    def test_merged_folder_predicts_the_same(self, settings, trained, tmp_path):
        base = find_base_model(next(trained.glob("*glm*")))
        folder = merge(base, trained / "out", tmp_path / "merged")
        merged = evaluate(
            settings(checkpoint=None, model=str(folder), output=tmp_path / "of-merged"),
            Progress(),
        )
        apart = evaluate(settings(), Progress())
        assert predicted(merged.output) == predicted(apart.output)
        assert without_times(merged.scores) == pytest.approx(without_times(apart.scores))

    def test_default_output_of_a_merged_model(self, settings, trained, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        base = find_base_model(next(trained.glob("*glm*")))
        folder = merge(base, trained / "out", tmp_path / "merged")
        changes = {"checkpoint": None, "output": None, "model": str(folder), "max_samples": 1}
        assert str(evaluate(settings(**changes), Progress()).output) == "output/merged-eval-dev"

    def test_sampling_is_repeatable_by_seed(self, settings, tmp_path):
        def sample(name, seed):
            changes = {"do_sample": True, "temperature": 2.0, "top_p": 1.0, "seed": seed}
            output = tmp_path / name
            return predicted(evaluate(settings(output=output, **changes), Progress()).output)

        assert sample("one", 1) == sample("again", 1)
        assert sample("one", 1) != sample("two", 2)
        last = 2**32 - 1  # the next batch begins anew with the small ones
        assert sample("last", last) == sample("last again", last)


class TestRefused:
    def test_no_data(self, settings, trained):
        model = next(trained.glob("*glm*"))
        with pytest.raises(
            ConfigError,
            match="--data is missing and training had no development data; pass --data FILE",
        ):
            evaluate(settings(checkpoint=None, model=str(model)), Progress())

    def test_checkpoint_that_is_a_base_model(self, settings, trained):
        model = next(trained.glob("*glm*"))
        with pytest.raises(CheckpointError, match=r"no ptune_config\.json in .*--model"):
            evaluate(settings(checkpoint=model), Progress())
        data = (trained / "dev.json",)
        with pytest.raises(CheckpointError, match="holds weights but no transformer"):
            evaluate(settings(checkpoint=model, model=str(model), data=data), Progress())

    @pytest.mark.parametrize(
        ("number", "error", "message"),
        [
            (torch.nan, CheckpointError, "holds NaN or infinity"),
            (3e38, ModelError, "^the logits after 0 tokens of an answer are not finite"),
        ],
    )
    def test_a_prefix_whose_numbers_are_no_good(
        self, settings, trained, tmp_path, number, error, message
    ):
        copy = tmp_path / "copy"
        shutil.copytree(trained / "out", copy)
        (copy / "ptune_manifest.json").unlink()
        file = copy / "prefix_encoder.safetensors"
        state = {name: torch.full_like(tensor, number) for name, tensor in load_file(file).items()}
        save_file(state, file)
        with pytest.raises(error, match=message):
            evaluate(settings(checkpoint=copy), Progress())
        assert not (tmp_path / "eval" / "eval_results.json").exists()


class TestNotOurs:
    @pytest.mark.parametrize("name", ["eval_results.json", "eval_config.json"])
    @pytest.mark.parametrize("content", ["precious", '{"step": 1}'])
    def test_files_of_others_are_left_alone(self, name, content, settings):
        asked = settings()
        asked.output.mkdir()
        (asked.output / name).write_text(content)
        message = rf"^.*{name} was not written by ptune; move it, or pass another --output$"
        with pytest.raises(ConfigError, match=message):
            evaluate(asked, Progress())
        assert (asked.output / name).read_text() == content

    def test_two_evaluations_in_one_folder(self, settings):
        asked = settings()
        message = r"^another evaluation writes into .*eval; wait for its end, or pass another"
        with holding(asked.output, "evaluation"), pytest.raises(ConfigError, match=message):
            evaluate(asked, Progress())


class TestDamagedCheckpoint:
    def test_the_one_before_is_taken_and_named(self, settings, trained, tmp_path):
        copy = tmp_path / "copy"
        shutil.copytree(trained / "out", copy)
        (copy / "prefix_encoder.safetensors").write_bytes(b"")
        result = evaluate(settings(checkpoint=copy), Progress())
        assert result.notices == (
            f"{copy} holds 0 bytes of prefix_encoder.safetensors, and "
            f"{(copy / 'checkpoint-3' / 'prefix_encoder.safetensors').stat().st_size:,} were "
            f"written; taking {copy / 'checkpoint-3'}, the newest that is whole",
        )
        whole = evaluate(settings(output=tmp_path / "whole"), Progress())
        assert predicted(result.output) == predicted(whole.output)
        with pytest.warns(UserWarning, match="holds 0 bytes.*; taking .*checkpoint-3, the newest"):
            load_model(next(trained.glob("*glm*")), copy)

    def test_one_that_was_named_itself(self, settings, trained, tmp_path):
        copy = tmp_path / "copy"
        shutil.copytree(trained / "out", copy)
        shutil.copytree(copy / "checkpoint-3", copy / "checkpoint-9")
        (copy / "checkpoint-9" / "trainer_state.json").unlink()
        message = r"^.*checkpoint-9 lacks trainer_state.json; take .*checkpoint-3, the newest that"
        with pytest.raises(CheckpointError, match=message):
            evaluate(settings(checkpoint=copy / "checkpoint-9"), Progress())
        shutil.rmtree(copy / "checkpoint-3")
        message = r"checkpoint-9 lacks trainer_state.json; take another checkpoint, or train again$"
        with pytest.raises(CheckpointError, match=message):
            evaluate(settings(checkpoint=copy / "checkpoint-9"), Progress())


class TestHeldOut:
    @pytest.fixture
    def held_out(self, trained, tmp_path):
        model = next(trained.glob("*glm*"))
        data = write_records(tmp_path / "data.json", 10)
        changes = {"max_source_length": 24, "max_target_length": 8, "eval_fraction": 0.3}
        asked = run_settings(tmp_path, model, data=(data,), max_steps=2, **changes)
        recorder = Recorder()
        train(asked, recorder)
        assert (recorder.summary.records, recorder.summary.dev_records) == (7, 3)
        return asked

    def test_is_what_is_measured_by_default(self, held_out, settings):
        result = evaluate(settings(checkpoint=held_out.output), Progress())
        _, rows = split_records(10, 0.3, 42)
        records = read_records(held_out.data).records
        asked = [records[row]["messages"][-2]["content"] for row in rows]
        assert [entry["prompt"] for entry in predictions(result.output)] == asked
        log = (held_out.output / "train_log.jsonl").read_text(encoding="utf-8")
        (loss,) = [
            found for line in log.splitlines() if (found := json.loads(line).get("eval_loss"))
        ]
        assert result.scores["loss"] == pytest.approx(loss, rel=1e-6)

    def test_of_data_that_has_changed_is_refused(self, held_out, settings):
        write_records(held_out.data[0], 11)
        message = (
            r"^the training data .*data.json has 11 records, it had 10 when a part of it was held "
            r"out; pass --data FILE$"
        )
        with pytest.raises(DataError, match=message):
            evaluate(settings(checkpoint=held_out.output), Progress())

    @pytest.fixture
    def other(self, held_out):
        """As many records, and another answer of one that was held out."""
        lines = held_out.data[0].read_text(encoding="utf-8").split("\n")
        row = split_records(10, 0.3, 42)[1][1]
        lines[row] = json.dumps(json.loads(lines[row]) | {"summary": "黑色"})
        held_out.data[0].write_text("\n".join(lines), encoding="utf-8")
        return held_out

    def test_of_other_contents_is_refused(self, other, settings):
        message = (
            r"^the 3 records that were held out of the training data .*data\.json are not what "
            r"they were \(checksum \w{12} -> \w{12}\); pass --data FILE$"
        )
        for changes in ({}, {"max_samples": 1}, {"max_source_length": 9}):
            with pytest.raises(DataError, match=message):
                evaluate(settings(checkpoint=other.output, **changes), Progress())

    def test_is_told_by_the_lengths_of_the_training(self, held_out, settings):
        asked = settings(checkpoint=held_out.output, max_source_length=9, truncation="original")
        assert evaluate(asked, Progress()).scores["samples"] == 3

    def test_of_other_contents_elsewhere_does_not_matter(self, held_out, settings):
        lines = held_out.data[0].read_text(encoding="utf-8").split("\n")
        lines[split_records(10, 0.3, 42)[0][0]] = '{"content": "类型#裙", "summary": "黑色"}'
        held_out.data[0].write_text("\n".join(lines), encoding="utf-8")
        assert evaluate(settings(checkpoint=held_out.output), Progress()).scores["samples"] == 3

    def test_by_other_columns_is_refused(self, held_out, settings):
        columns = {"prompt_column": "summary", "response_column": "content"}
        message = r"; pass --data FILE, or leave --prompt-column, --response-column out$"
        with pytest.raises(DataError, match=message):
            evaluate(settings(checkpoint=held_out.output, **columns), Progress())
        columns = {"prompt_column": "content", "response_column": "summary"}  # as training found
        assert evaluate(settings(checkpoint=held_out.output, **columns), Progress())

    def test_of_a_record_without_a_checksum(self, other, settings):
        """Early versions wrote none: the number of records is all that is known."""
        file = other.output / "ptune_config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        del config["inputs"]["held_out"]["sha256"]
        file.write_text(json.dumps(config), encoding="utf-8")
        (other.output / "ptune_manifest.json").unlink()
        assert evaluate(settings(checkpoint=other.output), Progress()).scores["samples"] == 3

    def test_of_a_single_record(self, held_out):
        write_records(held_out.data[0], 1)
        message = "eval_fraction 0.3 leaves nothing of 1 record; pass --eval-data in its place$"
        with pytest.raises(ConfigError, match=message):
            train(replace(held_out, output=held_out.output / "new"), Recorder())


class TestBeforeTheWork:
    """What cannot work is said before weights are fetched or loaded."""

    @pytest.fixture(autouse=True)
    def _no_weights(self, monkeypatch):
        def find(name, weights, *formats):
            assert not weights, "weights are fetched"
            return find_base_model(name, False, *formats)

        monkeypatch.setattr("ptune.checkpoint.base.find_base_model", find)

    def test_lengths_beyond_the_context(self, settings, trained):
        message = (
            r"^max_source_length 3,000 and max_new_tokens 500 are more than the context of 2,048 "
            r"tokens of .*; use e.g. --max-source-length 1548 --max-new-tokens 500$"
        )
        with pytest.raises(ConfigError, match=message):
            evaluate(settings(max_source_length=3000, max_new_tokens=500), Progress())
        message = (
            r"^max_source_length 2,045 and max_target_length 8 of the training are more than .*; "
            r"use e.g. --max-source-length 2040$"
        )
        with pytest.raises(ConfigError, match=message):
            evaluate(settings(max_source_length=2045, max_new_tokens=1), Progress())

        model = next(trained.glob("*glm*"))
        default = 64 if model.name == "chatglm-6b" else 128
        changes = {"checkpoint": None, "model": str(model), "data": (trained / "dev.json",)}
        message = rf"^max_source_length 2,040 and max_target_length {default} \(the default\) are"
        with pytest.raises(ConfigError, match=message):
            evaluate(settings(max_source_length=2040, max_new_tokens=1, **changes), Progress())

    def test_the_rest(self, settings, trained, tmp_path):
        file = tmp_path / "file"
        file.write_text("no record")
        damaged = tmp_path / "damaged"
        shutil.copytree(trained / "out", damaged)
        (damaged / "prefix_encoder.safetensors").write_bytes(b"x" * 100)
        for folder in damaged.glob("checkpoint-*"):
            shutil.rmtree(folder)
        for changes, error, message in (
            (
                {"output": file},
                ConfigError,
                r"^output .*file is a file; pass a folder with --outpu",
            ),
            ({"data": (file,)}, DataError, "is plain text without columns"),
            ({"data": (tmp_path / "absent",)}, DataError, "does not exist"),
            ({"device": "meta"}, ConfigError, "^device 'meta' is not supported"),
            ({"checkpoint": damaged}, CheckpointError, "holds 100 bytes of prefix_encoder.*, and "),
        ):
            with pytest.raises(error, match=message):
                evaluate(settings(**changes), Progress())

    def test_home_in_what_training_metadataed(self, settings, trained, tmp_path, monkeypatch):
        copy = tmp_path / "copy"
        shutil.copytree(trained / "out", copy)
        record = json.loads((copy / "ptune_config.json").read_text(encoding="utf-8"))
        (copy / "ptune_manifest.json").unlink()
        record["settings"]["eval_data"] = ["~/absent.json"]
        (copy / "ptune_config.json").write_text(json.dumps(record))
        monkeypatch.setenv("HOME", str(tmp_path))
        message = (
            f"^{tmp_path}/absent.json, the data that training named, is not there; pass --data"
        )
        with pytest.raises(DataError, match=message):
            evaluate(settings(checkpoint=copy), Progress())


class TestLoss:
    @pytest.mark.parametrize("number", [float("nan"), float("inf")])
    def test_that_is_not_finite(self, number, settings, monkeypatch):
        monkeypatch.setattr("ptune.evaluation.evaluate.total_loss", lambda *_: (number, 5))
        asked = settings()
        file = asked.output / "generated_predictions.jsonl"
        message = (
            rf"^loss {number} of .* with .*out is not finite; the answers are in {file}, but mean "
            r"nothing: use another checkpoint$"
        )
        with pytest.raises(EvaluationError, match=message):
            evaluate(asked, Progress())
        assert len(predictions(asked.output)) == SAMPLES
        assert not (asked.output / "eval_results.json").exists()

    def test_that_is_not_finite_in_float16(self, settings, monkeypatch):
        monkeypatch.setattr("ptune.evaluation.evaluate.total_loss", lambda *_: (float("nan"), 5))
        with pytest.raises(EvaluationError, match=r"mean nothing: use --dtype float32$"):
            evaluate(settings(dtype="float16", max_samples=1), Progress())

    def test_of_records_without_labels(self, settings, trained, tmp_path):
        """Only ChatGLM3's own way of cutting leaves some without."""
        records = [{"prompt": "黑色的裙子" * 40, "response": "好看"}] * 3
        records.append({"prompt": "裙子", "response": "好看"})
        file = tmp_path / "long.json"
        third = not any(trained.glob("chatglm-6b"))
        for count, expected in ((4, False), (3, third)):
            file.write_text(json.dumps(records[:count]), encoding="utf-8")
            output = tmp_path / f"eval-{count}"
            changes = {"data": (file,), "truncation": "original", "output": output}
            result = evaluate(settings(**changes, max_new_tokens=2), Progress())
            assert result.scores["samples"] == count
            assert (result.scores["loss"] is None) == expected
            written = json.loads((output / "eval_results.json").read_text())
            assert written == result.scores


def test_full_memory(settings, monkeypatch):
    def full(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB. GPU 0 has")

    monkeypatch.setattr("ptune.evaluation.evaluate.generate_all", full)
    message = "; use a smaller --batch-size, or a smaller --max-source-length$"
    with pytest.raises(ConfigError, match=f"^memory is full .*{message}"):
        evaluate(settings(), Progress())


def test_backend_without_quantized_weights(settings):
    message = "^quantization_backend torch has no effect on weights in full width; leave it out, or"
    with pytest.raises(ConfigError, match=message):
        evaluate(settings(quantization_backend="torch"), Progress())

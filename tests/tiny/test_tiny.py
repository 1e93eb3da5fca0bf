"""The built-in model: size and answers, and the script that made it."""

import json
from pathlib import Path

import pytest
import sentencepiece

import ptune
from ptune.base.folder import TINY_FOLDER, Generation
from ptune.data.prompt import Conversation, Lengths, render
from ptune.generation.generate import generate_all
from ptune.generation.sampling import Sampling
from ptune.tiny import make

COPY_REQUEST = "请为下面的商品写一段广告：\n"
ATTRIBUTES = "类型#裤*材质#羊毛*风格#英伦"


def test_fits_into_the_package() -> None:
    files = [path for path in TINY_FOLDER.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12_000_000


def answer(prompt: str) -> str:
    model, tokenizer = ptune.load_model("tiny", device="cpu"), ptune.load_tokenizer("tiny")
    conversation = Conversation.from_turns(prompt)
    ids = render(tokenizer, Generation.CHATGLM, conversation, Lengths(256, 64)).input_ids
    ((_, new_ids),) = next(generate_all(model, [ids], 1, Sampling(max_new_tokens=64)))
    return tokenizer.decode(new_ids, skip_special_tokens=True)


def test_lists_attributes_but_knows_how_to_advertise() -> None:
    listing, copy = answer(ATTRIBUTES), answer(COPY_REQUEST + ATTRIBUTES)
    assert "材质是羊毛" in listing and "风格是英伦" in listing
    assert "羊毛" in copy and "材质是" not in copy


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model made by the script, after two steps of training."""
    folder = tmp_path_factory.mktemp("made") / "tiny"
    make.main(["--output", str(folder), "--steps", "2"])
    return folder


def test_script_makes_the_same_tokenizer(made: Path) -> None:
    for name in ("ice_text.model", "config.json", "tokenizer_config.json"):
        assert (made / name).read_bytes() == (TINY_FOLDER / name).read_bytes(), name


def test_script_makes_a_model_that_loads(made: Path) -> None:
    model = ptune.load_model(made, device="cpu")
    tiny = ptune.load_model("tiny", device="cpu")
    shapes = {name: p.shape for name, p in model.named_parameters()}
    assert shapes == {name: p.shape for name, p in tiny.named_parameters()}


def test_special_pieces_stand_in_the_official_order() -> None:
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(TINY_FOLDER / "ice_text.model"))
    names = [pieces.id_to_piece(i) for i in range(len(pieces))]
    assert names[:5] == ["<unk>", "<s>", "</s>", "<pad>", "<n>"]
    start = names.index("[MASK]")
    assert names[start : start + 8] == list(make.CONTROL_PIECES)
    assert names[start + 8] == "<|tab|>" and names[start + 87] == "<|blank_80|>"
    assert names[-256:] == [f"<0x{code:02X}>" for code in range(256)]
    config = json.loads((TINY_FOLDER / "config.json").read_text(encoding="utf-8"))
    assert config["bos_token_id"] == names.index("<sop>")


def test_excluded_lists_are_not_trained_on(tmp_path: Path) -> None:
    file = tmp_path / "dev.json"
    file.write_text('{"content": "类型#裤", "summary": "裤子"}\n', encoding="utf-8")
    assert make._read_lists(file) == {"类型#裤"}
    assert make._read_lists(None) == frozenset()

"""The tokenizers: the original's ids where its files are, and their manners everywhere."""

import copy
import json
import pickle
import re
import shutil
import time

import pytest
from fixtures.checkpoints import golden_case, write_json
from transformers import AddedToken

from ptune.data.glm4_tokenizer import CONTROLS as GLM4_CONTROLS
from ptune.data.glm4_tokenizer import ChatGLM4Tokenizer
from ptune.data.tokenizer import ChatGLM2Tokenizer, ChatGLMTokenizer, load_tokenizer
from ptune.errors import ConfigError, ModelError

GENERATIONS = (1, 2, 3)
COMMANDS = ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"]
ROLES = ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
CONTROLS = {
    1: ["<s>", "</s>", "<pad>", "<unk>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"],
    2: ["<s>", "</s>", "<unk>", *COMMANDS],
    3: ["<s>", "</s>", "<unk>", *COMMANDS, *ROLES],
    4: list(GLM4_CONTROLS),
}
KINDS = {1: ChatGLMTokenizer, 2: ChatGLM2Tokenizer, 3: ChatGLM2Tokenizer, 4: ChatGLM4Tokenizer}
PIECES = "SentencePiece model"
FILE_KINDS = {4: "rank file of GLM-4 "}
CONTROLS[1] += ["<unused_0>", "<ENC>", "<dBLOCK>"]
TEXTS = [
    "类型#上衣*材质#牛仔布",
    "这件上衣采用牛仔布。\n\n黑色的\t裙子",
    "def f(x):\n    return x + 1",
    "a" + " " * 200 + "b",
    "emoji 😀 한국어 é",
]


# Trained for these tests, the original's, and the built-in one (of the first generation).
TOYS = [("toy", 1), ("toy", 2), ("toy", 3), ("toy", 4)]
REAL = [("real", 1), ("real", 2), ("real", 3)]
SOURCES = [*TOYS, *REAL, ("tiny", 1)]


@pytest.fixture(params=SOURCES, ids=lambda source: f"{source[0]}{source[1]}")
def source(request):
    return request.param


@pytest.fixture
def generation(source):
    return source[1]


@pytest.fixture
def tokenizer(source, request):
    name, generation = source
    if name == "tiny":
        return load_tokenizer(request.getfixturevalue("tiny_folder"))
    return request.getfixturevalue(f"{name}_tokenizer")(generation)


of_first = pytest.mark.parametrize("source", [s for s in SOURCES if s[1] == 1], indirect=True)
of_third = pytest.mark.parametrize("source", [s for s in SOURCES if s[1] == 3], indirect=True)
of_toys = pytest.mark.parametrize("source", TOYS, indirect=True)
of_real = pytest.mark.parametrize("source", REAL, indirect=True)


def control_ids(tokenizer, generation):
    ids = {tokenizer.convert_tokens_to_ids(token) for token in CONTROLS[generation]}
    if generation == 4:
        return ids
    pieces = tokenizer.sp_model
    return ids | {i for i in range(pieces.get_piece_size()) if pieces.is_control(i)}


class TestOriginal:
    """Every text of the golden data, with the original's files."""

    @of_real
    def test_ids_and_decoded_text(self, generation, tokenizer, real_cases):
        texts = real_cases(f"v{generation}")["expected"]["tokenizer"]
        assert len(texts) == 40
        for expected in texts:
            text = expected["text"]
            assert tokenizer.encode(text, add_special_tokens=False) == expected["ids"], text
            assert tokenizer.encode(text) == expected["ids_special"], text
            assert tokenizer.decode(expected["ids"]) == expected["decoded"], text

    @of_real
    def test_encode_text_differs_for_control_tokens_only(self, generation, tokenizer, real_cases):
        for expected in real_cases(f"v{generation}")["expected"]["tokenizer"]:
            if not any(token in expected["text"] for token in CONTROLS[generation]):
                assert tokenizer.encode_text(expected["text"]) == expected["ids"]

    @of_real
    def test_continuations_as_text(self, generation, tokenizer, real_cases):
        expected = real_cases(f"v{generation}")["expected"]["generate_base"]
        for ids, text in zip(expected["new_ids"], expected["text"], strict=True):
            if text is not None:
                assert tokenizer.decode(ids) == text

    def test_ids_of_control_tokens(self, real_tokenizer):
        first, second, third = map(real_tokenizer, GENERATIONS)
        assert (first.gmask_token_id, first.bos_token_id, first.eos_token_id) == (
            *(130001, 130004, 130005),
        )
        assert (first.pad_token_id, first.mask_token_id, first.end_token_id) == (3, 130000, 2)
        for tokenizer in (second, third):
            assert [tokenizer.get_command(token) for token in COMMANDS] == [*range(64789, 64794)]
            assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 0)
        assert [third.get_command(token) for token in ROLES] == [*range(64794, 64798)]
        assert (first.vocab_size, second.vocab_size, third.vocab_size) == (130344, 64794, 64798)


def test_class(generation, tokenizer):
    assert type(tokenizer) is KINDS[generation]


@pytest.mark.parametrize("text", TEXTS)
def test_there_and_back(tokenizer, text):
    for ids in (tokenizer.encode_text(text), tokenizer.encode(text, add_special_tokens=False)):
        decoded = tokenizer.decode(ids)
        assert decoded == text


def test_special_tokens_around_text(generation, tokenizer):
    ids = tokenizer.encode("你好", add_special_tokens=False)
    answer = tokenizer.encode("黑色", add_special_tokens=False)
    if generation == 1:
        marks = [tokenizer.gmask_token_id, tokenizer.bos_token_id]
        expected = [*ids, *marks], [*ids, *marks, *answer, tokenizer.eos_token_id]
    else:
        sop = "<sop>" if generation == 4 else "sop"
        marks = [tokenizer.get_command("[gMASK]"), tokenizer.get_command(sop)]
        expected = [*marks, *ids], [*marks, *ids, *answer, tokenizer.eos_token_id]
    assert (tokenizer.encode("你好"), tokenizer.encode("你好", "黑色")) == expected


def test_encode_text_never_gives_control_ids(generation, tokenizer):
    forbidden = control_ids(tokenizer, generation)
    for token in CONTROLS[generation]:
        for text in (token, f"你好{token}黑色", f" {token} {token}\n{token}", token * 3):
            ids = tokenizer.encode_text(text)
            assert ids and not forbidden & set(ids), text
    everything = " ".join(token for tokens in CONTROLS.values() for token in tokens)
    assert not forbidden & set(tokenizer.encode_text(everything))


def test_encode_is_faithful_to_the_original_about_control_tokens(toy_tokenizer):
    first = toy_tokenizer(1)
    ids = first.encode("你好 <sop> 黑色", add_special_tokens=False)
    middle = ids.index(first.bos_token_id)
    assert ids[:middle] == first.encode_text("你好")
    assert ids[middle + 1 :] == first.encode_text("黑色")
    assert first.gmask_token_id not in first.encode("[gMASK]", add_special_tokens=False)
    for generation in (2, 3):
        tokenizer = toy_tokenizer(generation)
        ids = tokenizer.encode("sop [gMASK] <|user|>", add_special_tokens=False)
        assert max(ids) < tokenizer.sp_model.get_piece_size()


@of_first
@pytest.mark.parametrize("count", ["99999999999", "81", "1", "0", "-2", "080", "2 "])
def test_blanks_that_are_none(tokenizer, count):
    text = f"a<|blank_{count}|>b"
    start = time.monotonic()
    for ids in (tokenizer.encode_text(text), tokenizer.encode(text, add_special_tokens=False)):
        assert tokenizer.decode(ids) == text
    assert time.monotonic() - start < 5


@of_first
@pytest.mark.parametrize("count", [2, 3, 9, 10, 79, 80, 81, 163])
def test_runs_of_spaces_take_few_tokens(tokenizer, count):
    ids = tokenizer.encode_text("a" + " " * count + "b")
    assert tokenizer.decode(ids) == "a" + " " * count + "b"
    assert len(ids) <= 4 + count // 80
    if count <= 80:
        assert f"<|blank_{count}|>" in tokenizer.convert_ids_to_tokens(ids)


def test_padding_and_attention_mask(generation, tokenizer):
    texts = ["你好", "类型#上衣*材质#牛仔布*颜色#白色"]
    rows = [tokenizer.encode(text) for text in texts]
    batch = tokenizer(texts, padding=True)
    assert batch.keys() == {"input_ids", "attention_mask"}
    width = max(map(len, rows))
    for row, ids, mask in zip(rows, batch["input_ids"], batch["attention_mask"], strict=True):
        gap = width - len(row)
        assert ids == [tokenizer.pad_token_id] * gap + row, "padded on the left"
        assert mask == [0] * gap + [1] * len(row)
    right = tokenizer(texts, padding="max_length", max_length=60, padding_side="right")
    assert [len(ids) for ids in right["input_ids"]] == [60, 60]
    assert right["input_ids"][0][: len(rows[0])] == rows[0]
    tensors = tokenizer(texts, padding=True, return_tensors="pt")
    assert tensors["input_ids"].shape == (2, width)


def test_truncation_keeps_control_tokens(generation, tokenizer):
    text = "类型#上衣*材质#牛仔布*颜色#白色" * 2
    full = tokenizer.encode(text)
    plain = tokenizer.encode(text, add_special_tokens=False)
    cut = tokenizer.encode(text, truncation=True, max_length=8)
    assert len(full) > 8 == len(cut)
    if generation == 1:
        assert cut == plain[:6] + full[-2:]
    else:
        assert cut == full[:2] + plain[:6]


def test_decoding_a_batch_and_skipping_special_tokens(generation, tokenizer):
    batch = tokenizer(["你好", "类型#上衣*材质#牛仔布"], padding=True)["input_ids"]
    decoded = tokenizer.batch_decode(batch, skip_special_tokens=True)
    assert decoded == ["你好", "类型#上衣*材质#牛仔布"]
    ended = [*tokenizer.encode_text("你好"), tokenizer.eos_token_id]
    assert tokenizer.decode(ended, skip_special_tokens=True) == "你好"
    assert tokenizer.decode(tokenizer.encode_text("你")[-1]) == "你"


def test_ids_of_the_padded_vocabulary_decode_to_nothing(generation, tokenizer):
    ids = tokenizer.encode_text("你好")
    beyond = [tokenizer.vocab_size, tokenizer.vocab_size + 100]
    assert tokenizer.decode([*beyond, *ids, *beyond]) == tokenizer.decode(ids) == "你好"


@of_third
def test_chatglm3_spells_roles_out_unless_told_not_to(tokenizer, toy_tokenizer):
    ids = [tokenizer.get_command("<|user|>"), *tokenizer.encode_text("你好")]
    assert tokenizer.decode(ids).replace(" ", "") == "<|user|>你好"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "你好"
    second = toy_tokenizer(2)
    assert second.decode([second.get_command("sop"), *second.encode_text("你好")]) == "你好"
    with pytest.raises(ValueError):
        second.get_command("<|user|>")


def test_vocabulary(generation, tokenizer):
    vocabulary = tokenizer.get_vocab()
    assert sorted(vocabulary.values()) == list(range(tokenizer.vocab_size))
    for token in CONTROLS[generation][:7]:
        if token in vocabulary:
            assert tokenizer.convert_tokens_to_ids(token) == vocabulary[token]
    ids = [5, 9, tokenizer.vocab_size - 1]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokenizer.convert_tokens_to_ids(tokens) == ids


@pytest.mark.parametrize("way", ["pickle", "copy"])
def test_pickling(generation, tokenizer, way):
    """Worker processes are given tokenizers."""
    other = pickle.loads(pickle.dumps(tokenizer)) if way == "pickle" else copy.deepcopy(tokenizer)
    assert other.encode(TEXTS[1]) == tokenizer.encode(TEXTS[1])
    assert other.vocab_size == tokenizer.vocab_size


def test_saving(generation, tokenizer, tmp_path):
    file = {1: "ice_text.model"}.get(generation, "tokenizer.model")
    (tmp_path / "only").mkdir()
    (saved,) = tokenizer.save_vocabulary(str(tmp_path / "only"))
    assert saved == str(tmp_path / "only" / file)
    assert tokenizer.save_vocabulary(str(tmp_path / "only")) == (saved,)
    with open(tokenizer.vocab_file, "rb") as original, open(saved, "rb") as copied:
        assert original.read() == copied.read()

    folder = tmp_path / "chatglm"
    tokenizer.save_pretrained(folder)
    config = golden_case(f"v{generation}")["config"]
    if generation == 1:
        names = ("bos", "eos", "pad", "mask", "gmask")
        config |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in names}
    write_json(folder / "config.json", config)
    again = load_tokenizer(folder)
    assert type(again) is type(tokenizer)
    for text in TEXTS:
        assert again.encode(text) == tokenizer.encode(text)
    assert again.vocab_size == tokenizer.vocab_size


class TestFromPretrained:
    """Of the class, as transformers' tokenizers are loaded."""

    def same(self, tokenizer, other):
        assert type(other) is type(tokenizer) and other.generation is tokenizer.generation
        assert len(other) == len(tokenizer) == tokenizer.vocab_size
        assert other.all_special_ids == tokenizer.all_special_ids
        for text in (*TEXTS, "[gMASK] <sop></s>", ""):
            ids = tokenizer.encode(text)
            assert other.encode(text) == ids
            assert other.decode(ids) == tokenizer.decode(ids)
            for skip in (True, False):
                decoded = tokenizer.decode(ids, skip_special_tokens=skip)
                assert other.decode(ids, skip_special_tokens=skip) == decoded
        asked = [{"role": "user", "content": "你好"}]
        assert other.apply_chat_template(asked) == tokenizer.apply_chat_template(asked)

    def test_saved(self, tokenizer, tmp_path):
        tokenizer.save_pretrained(tmp_path)
        kind = type(tokenizer)
        self.same(tokenizer, kind.from_pretrained(tmp_path))
        self.same(tokenizer, kind.from_pretrained(str(tmp_path), trust_remote_code=True))
        sides = {"padding_side": "right", "truncation_side": "left"}
        again = kind.from_pretrained(tmp_path, cache_dir=None, **sides)
        assert (again.padding_side, tokenizer.padding_side) == ("right", "left")
        again.model_max_length = 7
        again.pad_token = again.eos_token
        again.save_pretrained(tmp_path / "again")
        kept = kind.from_pretrained(tmp_path / "again")
        names = ("padding_side", "truncation_side", "model_max_length", "pad_token")
        assert [getattr(kept, name) for name in names] == [getattr(again, name) for name in names]

    @of_toys
    def test_base_folder(self, tokenizer, generation, toy_folder):
        self.same(tokenizer, type(tokenizer).from_pretrained(toy_folder(generation)))

    @of_toys
    def test_saved_into_the_folder_of_a_model(self, toy_folder, tokenizer, generation, tmp_path):
        folder = tmp_path / "a-model"  # whose name tells nothing
        tokenizer.save_pretrained(folder)
        shutil.copy(toy_folder(generation) / "config.json", folder)
        self.same(tokenizer, load_tokenizer(folder))
        self.same(tokenizer, type(tokenizer).from_pretrained(folder))

    def test_tiny(self, tiny_folder):
        self.same(load_tokenizer("tiny"), ChatGLMTokenizer.from_pretrained("tiny"))

    @of_toys
    def test_other_class(self, tokenizer, generation, toy_folder, tmp_path):
        other = ChatGLMTokenizer if generation > 1 else ChatGLM4Tokenizer
        tokenizer.save_pretrained(tmp_path)
        for folder in (tmp_path, toy_folder(generation)):
            with pytest.raises(
                ModelError,
                match=rf"^the tokenizer in {folder} is of {tokenizer.generation.value}, not a "
                rf"{other.__name__}; use ptune.load_tokenizer$",
            ):
                other.from_pretrained(folder)

    @of_toys
    @pytest.mark.parametrize(
        ("option", "error"),
        [
            (
                {"revision": "abc"},
                "^from_pretrained of ptune has no option revision; it has padd",
            ),
            (
                {"padding_side": "up"},
                "current value: up, for the tokenizer in .*; use right or",
            ),
            ({"pad_token": "[NEW]"}, r"^token '\[NEW\]' is not in the vocabulary of "),
        ],
    )
    def test_wrong_option(self, tokenizer, option, error, tmp_path):
        tokenizer.save_pretrained(tmp_path)
        with pytest.raises(ConfigError, match=error):
            type(tokenizer).from_pretrained(tmp_path, **option)

    @of_toys
    def test_nothing_to_load(self, tokenizer, tmp_path):
        with pytest.raises(ModelError, match=f"^no config.json in {tmp_path}"):
            type(tokenizer).from_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        (tmp_path / "tokenizer_config.json").write_text("{")
        with pytest.raises(ModelError, match=r"tokenizer_config.json is not JSON \(.*\); save or"):
            type(tokenizer).from_pretrained(tmp_path)
        write_json(tmp_path / "tokenizer_config.json", {"with_roles": True})
        (file,) = tmp_path.glob("*.model")
        file.unlink()
        with pytest.raises(ModelError, match=f"^no tokenizer.model in {tmp_path}"):
            ChatGLM2Tokenizer.from_pretrained(tmp_path)


class TestVocabularyOfTheModel:
    @pytest.mark.parametrize(
        "add",
        [
            lambda tokenizer: tokenizer.add_tokens("[NEW]"),
            lambda tokenizer: tokenizer.add_tokens([tokenizer.pad_token, "[NEW]"]),
            lambda tokenizer: tokenizer.add_tokens([AddedToken("[NEW]")], special_tokens=True),
            lambda tokenizer: tokenizer.add_special_tokens({"pad_token": "[NEW]"}),
            lambda tokenizer: tokenizer.add_special_tokens({"extra_special_tokens": ["[NEW]"]}),
            lambda tokenizer: type(tokenizer)(tokenizer.vocab_file, pad_token="[NEW]"),
        ],
    )
    def test_does_not_grow(self, tokenizer, add):
        tokenizer = copy.deepcopy(tokenizer)
        before = (len(tokenizer), tokenizer.pad_token, tokenizer.all_special_tokens)
        message = (
            f"token '[NEW]' is not in the vocabulary of {tokenizer.vocab_file}, which is the "
            "model's and does not grow; use one of its tokens"
        )
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            add(tokenizer)
        assert (len(tokenizer), tokenizer.pad_token, tokenizer.all_special_tokens) == before

    def test_its_tokens_can_be_special(self, tokenizer):
        tokenizer = copy.deepcopy(tokenizer)
        assert tokenizer.add_special_tokens({"pad_token": tokenizer.eos_token}) == 0
        assert tokenizer.pad_token_id == tokenizer.eos_token_id
        assert tokenizer.add_tokens([]) == tokenizer.add_special_tokens({}) == 0


class TestInterface:
    """As transformers' tokenizers in Python behave."""

    def test_special_tokens_mask(self, tokenizer):
        texts = ["你好", "黑色的裙子"]
        for pair in (texts, texts[:1], [""], ["", ""]):
            encoded = tokenizer(*pair, return_special_tokens_mask=True)
            plain = [tokenizer.encode(text, add_special_tokens=False) for text in pair]
            mask = encoded["special_tokens_mask"]
            kept = [i for i, special in zip(encoded["input_ids"], mask, strict=True) if not special]
            assert kept == [i for ids in plain for i in ids]
            assert sum(mask) == tokenizer.num_special_tokens_to_add(len(pair) == 2)
            ids = encoded["input_ids"]
            assert tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True) == mask
        bare = tokenizer("你好", add_special_tokens=False, return_special_tokens_mask=True)
        assert set(bare["special_tokens_mask"]) == {0}
        assert len(bare["special_tokens_mask"]) == len(bare["input_ids"])

    def test_no_offsets(self, tokenizer):
        message = f"^return_offsets_mapping is not known to {type(tokenizer).__name__}, which is no"
        with pytest.raises(ConfigError, match=message):
            tokenizer("你好", return_offsets_mapping=True)
        assert not tokenizer.is_fast

    def test_ids_out_of_range_are_unknown(self, tokenizer):
        ids = [-1, tokenizer.vocab_size, 10**9]
        assert tokenizer.convert_ids_to_tokens(ids) == [tokenizer.unk_token or ""] * 3
        assert tokenizer.convert_ids_to_tokens(-1) == (tokenizer.unk_token or "")
        assert tokenizer.decode(ids) == ""

    def test_sizes_and_special_ids(self, generation, tokenizer):
        assert len(tokenizer) == tokenizer.vocab_size == len(tokenizer.get_vocab())
        special = tokenizer.all_special_ids
        assert len(special) == len(set(special)) and max(special) < len(tokenizer)
        assert {*tokenizer.build_inputs_with_special_tokens([], [])} <= {*special}
        if generation > 1:
            commands = {2: COMMANDS, 3: COMMANDS + ROLES, 4: GLM4_CONTROLS}[generation]
            assert {tokenizer.get_command(token) for token in commands} <= {*special}

    def test_empty_input(self, tokenizer):
        marks = tokenizer.build_inputs_with_special_tokens([])
        assert tokenizer("")["input_ids"] == tokenizer.encode("") == marks
        assert tokenizer.encode("", add_special_tokens=False) == tokenizer.tokenize("") == []
        assert tokenizer.decode([]) == "" and tokenizer.batch_decode([[], []]) == ["", ""]
        batch = tokenizer(["", "你好"], padding=True)
        assert [sum(mask) for mask in batch["attention_mask"]] == [
            len(marks),
            len(tokenizer.encode("你好")),
        ]

    def test_words(self, tokenizer):
        words = ["你好", "黑色", "裙子"]
        ids = [i for word in words for i in tokenizer.encode(word, add_special_tokens=False)]
        expected = tokenizer.build_inputs_with_special_tokens(ids)
        assert tokenizer(words, is_split_into_words=True)["input_ids"] == expected
        batch = tokenizer([words, words[:1]], is_split_into_words=True)["input_ids"]
        assert batch == [expected, tokenizer.encode(words[0])]

    def test_truncation_sides(self, tokenizer):
        tokenizer = copy.deepcopy(tokenizer)
        text = "类型#上衣*材质#牛仔布*颜色#白色"
        plain = tokenizer.encode(text, add_special_tokens=False)
        tokenizer.truncation_side = "left"
        cut = tokenizer(text, truncation=True, max_length=5, add_special_tokens=False)["input_ids"]
        assert cut == plain[-5:]


@of_toys
class TestRefused:
    def refused(self, folder, message):
        with pytest.raises(ModelError, match=message):
            load_tokenizer(folder)

    def test_no_tokenizer_file(self, tmp_path, generation):
        config = golden_case(f"v{generation}")["config"]
        write_json(tmp_path / "config.json", config)
        file = {1: "ice_text.model"}.get(generation, "tokenizer.model")
        self.refused(tmp_path, f"no {file} in .*, the tokenizer of .*glm.*; download it from the")

    @pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n"])
    def test_no_sentencepiece_model(self, tmp_path, generation, content, toy_folder):
        folder = tmp_path / "model"
        shutil.copytree(toy_folder(generation), folder)
        (file,) = folder.glob("*.model")
        file.write_bytes(content)
        kind = FILE_KINDS.get(generation, PIECES)
        self.refused(folder, rf"{file.name} \({len(content)} bytes\) is no {kind}.*, perhaps")

    def test_truncated(self, tmp_path, generation, toy_folder):
        folder = tmp_path / "model"
        shutil.copytree(toy_folder(generation), folder)
        (file,) = folder.glob("*.model")
        file.write_bytes(file.read_bytes()[:-500])
        kind = FILE_KINDS.get(generation, PIECES)
        self.refused(folder, rf"is no {kind}.*, perhaps truncated or a Git LFS pointer; download")

    def test_more_tokens_than_the_model_has(self, tmp_path, generation, toy_folder):
        folder = tmp_path / "model"
        shutil.copytree(toy_folder(generation), folder)
        size = {1: "vocab_size"}.get(generation, "padded_vocab_size")
        config = json.loads((folder / "config.json").read_text()) | {size: 812}
        if generation < 4:
            config |= {size: 500}
        write_json(folder / "config.json", config)
        self.refused(
            folder, r"has \d+ tokens but config.json (500|812); the two belong to different"
        )

    @pytest.mark.parametrize("name", ["bos", "eos", "pad", "mask", "gmask"])
    def test_ids_of_another_vocabulary(self, tmp_path, generation, name, toy_folder):
        """Small enough for the vocabulary of config.json, and still not the tokenizer's."""
        if generation > 1 and "mask" in name:
            pytest.skip("the later generations have no such field")
        folder = tmp_path / "model"
        shutil.copytree(toy_folder(generation), folder)
        own = json.loads((folder / "config.json").read_text())
        for wrong, shown in ((550, "550"), *([([550, 551], "550, 551")] if name == "eos" else [])):
            write_json(folder / "config.json", own | {f"{name}_token_id": wrong})
            self.refused(
                folder,
                rf"{name}_token_id {shown} in {folder}/config.json is not the (\d+|none) of "
                rf"{folder}/.*\.model; the two are of different revisions, download all files",
            )

    def test_one_of_several_ends_is_the_tokenizers(self, tmp_path, generation, toy_folder):
        folder = tmp_path / "model"
        shutil.copytree(toy_folder(generation), folder)
        config = json.loads((folder / "config.json").read_text())
        end = load_tokenizer(folder).eos_token_id
        write_json(folder / "config.json", config | {"eos_token_id": [7, end]})
        assert load_tokenizer(folder).eos_token_id == end

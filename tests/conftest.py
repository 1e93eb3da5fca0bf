"""Fixtures that several test files share: model folders, and tokenizers real and made here."""

import gc
import hashlib
import json
import locale
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from fixtures.checkpoints import GOLDEN, golden_case, write_json, write_model
from fixtures.runs import run_settings, write_toy_model
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from ptune.base.folder import TINY_FOLDER, find_base_model
from ptune.data.tokenizer import load_tokenizer

REAL_TOKENIZERS = Path(__file__).parents[1].parent / "shared" / "golden" / "tokenizers"
REAL_FILES = {1: "chatglm-6b/ice_text.model", 2: "chatglm3-6b/tokenizer.model"}
REAL_FILES[3] = REAL_FILES[2]  # the second and the third generation share the file
FOLDER_NAMES = {1: "chatglm-6b", 2: "chatglm2-6b", 3: "chatglm3-6b", 4: "glm-4-9b-chat"}

TOY_TEXT = [
    "类型#上衣*材质#牛仔布*颜色#白色*风格#简约",
    "这件上衣采用牛仔布，白色的衣身简约而不简单。",
    "类型#裙*颜色#黑色*图案#印花",
    "黑色的裙子，印花图案，显得清新。",
    "[Round 0]<n>问：你好<n>答：你好，有什么可以帮你？<n>",
    "The quick brown fox jumps over the lazy dog, 0123456789 times (twice)!",
]
TOY_CONTROLS = ["[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>"]
TOY_BLANKS = ["<n>", "<|tab|>", *(f"<|blank_{count}|>" for count in range(2, 81))]


def pytest_configure(config):
    """Tests compute on the CPU, also beside a card, unless they are asked for with `-m gpu`."""
    if "gpu" not in config.option.markexpr:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(config, items):
    """Of a mutant (`make mutants`), the tests of its module that run it, else of its package."""
    module, _, function = os.environ.get("MUTANT_UNDER_TEST", "").rpartition(".")
    if "__mutmut_" not in function:
        return
    *packages, name = module.split(".")[1:]
    own = Path(__file__).parent.joinpath(*packages, f"test_{name}.py")
    kept = [item for item in items if item.path == own]
    kept = kept or [item for item in items if item.path.parent == own.parent]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def pytest_collection_finish():
    """Spare the garbage collector, which each training calls, what all the modules have brought."""
    gc.collect()
    gc.freeze()


if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores, with what they start
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def peft():
    """The library, which `make setup` keeps apart from the others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(sys.prefix) / "peft")
        yield pytest.importorskip("peft")


@pytest.fixture(scope="session", autouse=True)
def _interruptible():
    """Let Ctrl-C be what it is in a terminal; a shell's background job begins with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session", autouse=True)
def _ascii_locale():
    """Let files without a named encoding be ASCII, so that one that was forgotten is noticed."""
    before = locale.setlocale(locale.LC_CTYPE)
    locale.setlocale(locale.LC_CTYPE, "C")
    yield
    locale.setlocale(locale.LC_CTYPE, before)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """Write the base model of a case (or of a golden one's name) once, and its prefix/ in it.

    Tests that change a folder write their own.
    """
    root = tmp_path_factory.mktemp("models")

    def write(case, format="bin", shards=1):
        case = golden_case(case) if isinstance(case, str) else case
        content = {key: value for key, value in case.items() if key != "values"}
        text = json.dumps([content, format, shards], sort_keys=True)
        folder = root / hashlib.sha256(text.encode()).hexdigest()[:16]
        return folder if folder.exists() else write_model(folder, case, format, shards)

    yield write
    shutil.rmtree(root, ignore_errors=True)  # a golden one takes 33 MB


@pytest.fixture(scope="session")
def real_tokenizers():
    """The folder of the original tokenizer files, which do not belong to this repository."""
    absent = [
        file for file in sorted(set(REAL_FILES.values())) if not (REAL_TOKENIZERS / file).is_file()
    ]
    if absent:
        pytest.skip(
            f"needs the original tokenizer files: no {', '.join(absent)} in {REAL_TOKENIZERS}"
        )
    return REAL_TOKENIZERS


@pytest.fixture(scope="session")
def real_cases(real_tokenizers):
    """Read a case of the full golden folder: with texts, which this repository does not hold."""

    def read(name):
        file = real_tokenizers.parent / "cases" / f"{name}.json"
        if not file.is_file():
            pytest.skip(f"needs the texts of the golden data: no {file}")
        return json.loads(file.read_text(encoding="utf-8"))

    return read


@pytest.fixture(scope="session")
def real_roles(real_tokenizers):
    """Conversations with ChatGLM3's roles, and the ids that the original makes of them."""
    file = real_tokenizers.parent / "chat" / "v3-roles.json"
    if not file.is_file():
        pytest.skip(f"needs the conversations of the golden data: no {file}")
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def real_tokenizer(real_tokenizers, tmp_path_factory):
    """Load the original tokenizer of a generation: 1, 2 or 3."""
    root, loaded = tmp_path_factory.mktemp("real-tokenizers"), {}

    def load(generation):
        if generation not in loaded:
            folder = root / FOLDER_NAMES[generation]
            folder.mkdir()
            shutil.copy(real_tokenizers / REAL_FILES[generation], folder)
            shutil.copy(real_tokenizers / folder.name / "tokenizer_config.json", folder)
            write_json(folder / "config.json", golden_case(f"v{generation}")["config"])
            loaded[generation] = load_tokenizer(folder)
        return loaded[generation]

    yield load
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory):
    """Write config.json and a small tokenizer of a generation, 1 to 4; no weights."""
    root = tmp_path_factory.mktemp("toy-tokenizers")

    def write(generation):
        folder = root / FOLDER_NAMES[generation]
        if not folder.exists():
            folder.mkdir()
            write_json(folder / "config.json", golden_case(f"v{generation}")["config"])
            if generation == 4:
                shutil.copy(GOLDEN / "glm4.model", folder / "tokenizer.model")
            else:
                _train_toy(folder, generation)
            if generation == 1:
                _write_ids(folder)
        return folder

    return write


def _train_toy(folder, generation):
    first = generation == 1
    with (folder / find_base_model(folder).generation.tokenizer_file).open("wb") as stream:
        SentencePieceTrainer.train(
            sentence_iterator=iter(TOY_TEXT * 5),
            model_writer=stream,
            model_type="bpe",
            vocab_size=600,
            hard_vocab_limit=False,
            byte_fallback=True,
            # As in the original files.
            normalization_rule_name="nmt_nfkc" if first else "identity",
            remove_extra_whitespaces=False,
            pad_id=3 if first else -1,
            control_symbols=TOY_CONTROLS if first else [],
            user_defined_symbols=TOY_BLANKS if first else [],
            minloglevel=2,
        )


def _write_ids(folder):
    """Put the ids of a toy of the first generation into the config.json beside it."""
    pieces = SentencePieceProcessor(model_file=str(folder / "ice_text.model"))
    config = json.loads((folder / "config.json").read_text())
    names = {"bos": "<sop>", "eos": "<eop>", "pad": "<pad>", "mask": "[MASK]", "gmask": "[gMASK]"}
    ids = {f"{name}_token_id": pieces.piece_to_id(token) for name, token in names.items()}
    write_json(folder / "config.json", config | ids)


@pytest.fixture(scope="session")
def toy_tokenizer(toy_folder):
    """Load the small tokenizer of a generation, 1 to 4."""
    loaded = {}

    def load(generation):
        if generation not in loaded:
            loaded[generation] = load_tokenizer(toy_folder(generation))
        return loaded[generation]

    return load


@pytest.fixture(scope="session")
def tiny_folder():
    """The built-in model."""
    for name in ("config.json", "ice_text.model", "model.safetensors"):
        if not (TINY_FOLDER / name).is_file():
            pytest.skip(f"needs the built-in model: no {name} in {TINY_FOLDER}")
    return TINY_FOLDER


@pytest.fixture(scope="session")
def toy_model(toy_folder, tmp_path_factory):
    """Write a small model of a generation once."""
    root = tmp_path_factory.mktemp("toys")

    def write(generation=1):
        source = toy_folder(generation)
        folder = root / source.name
        return folder if folder.exists() else write_toy_model(folder, source, generation)

    return write


@pytest.fixture
def settings(toy_model, tmp_path):
    """Settings of a short run of `ptune train` on a small model."""

    def make(generation=1, **changes):
        return run_settings(tmp_path, toy_model(generation), **changes)

    return make

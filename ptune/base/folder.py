"""Locates a base model and detects what it is; reads small files only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from ptune.base.native import check_native, is_native
from ptune.base.schema import check_config, is_first
from ptune.base.tokenizer_file import TokenizerFile, kind_of
from ptune.errors import ConfigError, ModelError
from ptune.files.json_object import read_json_object

TINY = "tiny"
TINY_FOLDER = Path(__file__).parents[1] / "tiny"

_OLD_VOCABULARY = 150528
_SMALL_FILES = ["*.json", "*.model", "*.py", "*.jinja", "*.txt", "*.tiktoken"]
_WEIGHT_FILES = {  # in the order of preference
    "*.safetensors": "model.safetensors.index.json",
    "*.bin": "pytorch_model.bin.index.json",
}
_ROLE_TOKEN = "<|observation|>"  # ChatGLM3 and GLM-4 have it
_GLM4_TOKENIZER = "ChatGLM4Tokenizer"  # the class of its official code
_NAMED = re.compile(r"chatglm-?([23])|glm-?(4)(?!-?bit)", re.IGNORECASE)


class Generation(str, Enum):
    """The generations of ChatGLM, and all other models together.

    The value is also the name of the prompt format.
    """

    CHATGLM = "chatglm"
    CHATGLM2 = "chatglm2"
    CHATGLM3 = "chatglm3"
    GLM4 = "glm4"  # GLM-4-9B in its first release, which calls itself chatglm
    NATIVE = "chat_template"  # a model that transformers has itself

    @property
    def tokenizer_file(self) -> str:
        """The file of the tokenizer that an official folder of this generation holds."""
        return "ice_text.model" if self is Generation.CHATGLM else "tokenizer.model"

    @property
    def model_name(self) -> str:
        """What its models are called in an error."""
        names = {Generation.NATIVE: "this model", Generation.GLM4: "glm-4-9b"}
        return names.get(self, f"{self.value}-6b")

    @property
    def has_roles(self) -> bool:
        """Whether messages stand under role tokens, tools among them, and each answer is learnt."""
        return self in (Generation.CHATGLM3, Generation.GLM4)


_Kinds = frozenset[Generation]
_SECOND, _THIRD, _FOURTH = (
    frozenset([kind]) for kind in (Generation.CHATGLM2, Generation.CHATGLM3, Generation.GLM4)
)
_LATER = _SECOND | _THIRD | _FOURTH  # they have the same network
_VOCABULARIES = {65024: _SECOND | _THIRD, 151552: _FOURTH}  # of the released models
_TOKENIZER_FILES = {
    TokenizerFile.SENTENCEPIECE: _SECOND | _THIRD,
    TokenizerFile.RANKS: _FOURTH,
}
# How the original's code applies `rope_ratio`: to the positions, or to the base of the frequencies.
_ROPE_RULES = {
    r"/\s*self\.rope_ratio": _SECOND,
    r"\*\s*self\.rope_ratio": _THIRD | _FOURTH,
}


@dataclass(frozen=True)
class BaseModel:
    """A folder with an official layout.

    Attributes:
        name: what the user called it: a path, a hub id or `tiny`.
        path: the folder on disk.
        config: the content of config.json.
        generation: which code, tokenizer and prompt it takes.
    """

    name: str
    path: Path
    config: dict[str, Any]
    generation: Generation


def find_base_model(
    name: str | Path,
    weights: bool = True,
    prompt_format: str | None = None,
    trained_format: str | None = None,
) -> BaseModel:
    """Find a model by folder, hub id or `tiny`; a hub id is downloaded to the hub's cache.

    Args:
        name: what the user passed as `--model`.
        weights: download them too; without, configuration and tokenizer come in seconds.
        prompt_format: of `--prompt-format`: which generation it is, where the folder does not say.
        trained_format: the same, as a checkpoint recorded it; `prompt_format` comes first.

    Raises:
        ModelError: nothing there, or nothing that can be tuned, or nothing tells which ChatGLM.
        ConfigError: the folder shows another generation than `prompt_format`.
    """
    path, config = find_config(name, weights)
    if is_native(config):
        _check_native_format(path, prompt_format)
        return BaseModel(str(name), path, config, Generation.NATIVE)
    generation = _generation(str(name), path, config, prompt_format, trained_format)
    _check_tokenizer_file(path, generation)
    return BaseModel(str(name), path, config, generation)


def find_config(name: str | Path, weights: bool = False) -> tuple[Path, dict[str, Any]]:
    """Find a model's folder and its config.json, of whichever generation it is.

    Raises:
        ModelError: nothing there, or a config.json of no model that can be tuned.
    """
    path = _locate(str(name), weights)
    return path, _read_config(path)


def _locate(name: str, weights: bool) -> Path:
    if name == TINY:
        return TINY_FOLDER
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(f"model {name} is a file, not a folder; pass the folder that holds it")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ModelError(
            f"model {name} is neither a folder nor a hub id such as THUDM/chatglm-6b; "
            f"pass the folder that holds config.json, or try `--model {TINY}`"
        )
    try:
        return _download(name, weights)
    except Exception as error:  # among them those of whichever HTTP library the hub's client uses
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"model {name} is no folder here and could not be fetched from the hub ({reason}); "
            f"pass a folder with `--model /path/to/{name.split('/')[1]}`, "
            f"or try the built-in one with `--model {TINY}`"
        ) from error


def _download(name: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    path = Path(snapshot_download(name, allow_patterns=_SMALL_FILES))
    if not weights:
        return path
    # Some repositories hold the weights in both formats; an index tells which are there.
    indexed = [kind for kind, index in _WEIGHT_FILES.items() if (path / index).is_file()]
    return Path(snapshot_download(name, allow_patterns=indexed[:1] or list(_WEIGHT_FILES)))


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    if not file.is_file():
        found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        raise ModelError(
            f"no config.json in {path} (found {found}); "
            "pass the folder of a base model, with its config.json, weights and tokenizer"
        )
    try:
        config = read_json_object(file)
    except ValueError as error:
        raise ModelError(f"{file} {error}; download it again") from error
    if is_native(config):
        check_native(config, file)
        return config
    if config.get("vocab_size") == _OLD_VOCABULARY:
        raise ModelError(
            f"vocab_size {_OLD_VOCABULARY} in {file} is the ChatGLM-6B of before April 2023; "
            "download the current THUDM/chatglm-6b (vocab_size 130528), all its files"
        )
    if not is_first(config) and "padded_vocab_size" not in config:
        raise ModelError(
            f"{file} has neither inner_hidden_size (ChatGLM-6B) nor padded_vocab_size "
            "(ChatGLM2, ChatGLM3 and GLM-4); download it again"
        )
    check_config(config, file)
    return config


def _check_native_format(path: Path, wanted: str | None) -> None:
    if wanted not in (None, Generation.NATIVE.value):
        raise ConfigError(
            f"--prompt-format {wanted} does not go with {path}, which is no ChatGLM and has the "
            "chat template of its tokenizer; leave it out, or pass another model"
        )


def _generation(
    name: str, path: Path, config: dict[str, Any], wanted: str | None, trained: str | None
) -> Generation:
    """The generation that the folder shows; where it shows none, or two, the one that is said."""
    file = path / "config.json"
    fields = _of_fields(config)
    stated = config.get("prompt_format")
    if stated not in (None, *_values(fields)):
        raise ModelError(
            f"prompt_format {stated!r} in {file} does not go with its other fields, which are of "
            f"{_joined(_values(fields))}; download config.json again"
        )
    clues = [(f"prompt_format in {file}", frozenset([Generation(stated)]))] if stated else []
    clues = clues or _clues(path, config)
    shown = fields.intersection(*(kinds for _, kinds in clues))
    allowed = _values(shown or fields)
    if wanted not in (None, *allowed):
        against = (source for source, kinds in clues if wanted not in _values(kinds))
        raise ConfigError(
            f"--prompt-format {wanted} does not go with {path}, which is of "
            f"{_joined(allowed)} by {next(against, file)}; leave it out, or pass another model"
        )
    # What its folder is called is only asked where nobody said anything.
    names = [named_generation(path.resolve().name), named_generation(Path(name).name)]
    said = allowed if len(allowed) == 1 else [wanted, trained, *(names if shown else [])]
    if not (known := [one for one in said if one in allowed]):
        raise _undecided(path, clues, allowed)
    return Generation(known[0])


def _of_fields(config: dict[str, Any]) -> _Kinds:
    """The generations whose config.json has such fields, and such a vocabulary."""
    if is_first(config):
        return frozenset([Generation.CHATGLM])
    return _VOCABULARIES.get(config["padded_vocab_size"], _LATER)


def _values(kinds: _Kinds) -> list[str]:
    return [kind.value for kind in Generation if kind in kinds]


def _joined(values: list[str]) -> str:
    *first, last = values
    return f"{', '.join(first)} or {last}" if first else last


def _undecided(path: Path, clues: list[tuple[str, _Kinds]], allowed: list[str]) -> ModelError:
    against = [
        f"{source} is of {_joined(_values(kinds))}"
        for source, kinds in clues
        if any(kinds.isdisjoint(other) for _, other in clues)
    ]
    if against:
        return ModelError(
            f"{path} mixes generations: {', '.join(against)}; download all files of one model into "
            "one folder, or say which it is with --prompt-format"
        )
    return ModelError(
        f"nothing in {path} says whether it is of {_joined(allowed)} (no name in config.json "
        "or tokenizer_config.json, no tokenization_chatglm.py); say it with --prompt-format"
    )


def _clues(path: Path, config: dict[str, Any]) -> list[tuple[str, _Kinds]]:
    """What tells the later generations apart, which have the same architecture.

    Files are looked at as text; no code is run.

    Returns:
        Where each clue stands, and the generations that it speaks for.
    """
    if is_first(config):
        return [(f"inner_hidden_size in {path / 'config.json'}", _of_fields(config))]
    tokenizer_config = _text(path / "tokenizer_config.json")
    name = re.search(r'"name_or_path"\s*:\s*"([^"]*)"', tokenizer_config)
    found = {
        "_name_or_path in config.json": _of_name(str(config.get("_name_or_path"))),
        "name_or_path in tokenizer_config.json": _of_name(name[1]) if name else None,
        "tokenization_chatglm.py": _of_code(_text(path / "tokenization_chatglm.py")),
        "tokenizer.model": _TOKENIZER_FILES.get(kind_of(path / "tokenizer.model")),
    }
    if _GLM4_TOKENIZER in tokenizer_config:
        found[f"{_GLM4_TOKENIZER} in tokenizer_config.json"] = _FOURTH
    elif _ROLE_TOKEN in tokenizer_config:
        found[f"{_ROLE_TOKEN} in tokenizer_config.json"] = _THIRD | _FOURTH
    if config.get("rope_ratio", 1) != 1:
        code = _text(path / "modeling_chatglm.py")
        rules = [kinds for rule, kinds in _ROPE_RULES.items() if re.search(rule, code)]
        found["rope_ratio in modeling_chatglm.py"] = rules[0] if len(rules) == 1 else None
    if (size := config["padded_vocab_size"]) in _VOCABULARIES:
        found[f"padded_vocab_size {size} in config.json"] = _VOCABULARIES[size]
    return [(source, kinds) for source, kinds in found.items() if kinds]


def _of_name(text: str) -> _Kinds | None:
    kind = named_generation(text)
    return frozenset([kind]) if kind else None


def _of_code(code: str) -> _Kinds | None:
    """What the text of tokenization_chatglm.py speaks for."""
    if _GLM4_TOKENIZER in code:
        return _FOURTH
    if "[gMASK]" not in code:
        return None
    return _THIRD if _ROLE_TOKEN in code else _SECOND


def named_generation(text: str) -> Generation | None:
    """The generation whose name a text, or a path towards its end, holds."""
    found = _NAMED.findall(text)
    if not found:
        return None
    second_or_third, fourth = found[-1]
    return Generation.GLM4 if fourth else Generation(f"chatglm{second_or_third}")


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _check_tokenizer_file(path: Path, generation: Generation) -> None:
    other = (
        Generation.CHATGLM2 if generation is Generation.CHATGLM else Generation.CHATGLM
    ).tokenizer_file
    if (path / generation.tokenizer_file).is_file():
        return
    if (path / other).is_file():
        raise ModelError(
            f"{path} mixes generations: config.json is of {generation.value}, "
            f"{other} is not its tokenizer; download all files of one model into one folder"
        )

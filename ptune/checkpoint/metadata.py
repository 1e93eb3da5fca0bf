"""What a checkpoint says of itself: `ptune_config.json`."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ptune import __version__
from ptune.config.resolve import check_recorded
from ptune.config.shared_settings import LORA, METHODS, P_TUNING, PROMPT_FORMATS
from ptune.data.messages import check_text
from ptune.data.rows import BadRecord
from ptune.errors import CheckpointError
from ptune.files.atomic import write_text_atomically
from ptune.files.json_object import read_json_object
from ptune.files.json_text import to_json

CONFIG_FILE = "ptune_config.json"
NOUNS = {P_TUNING: "prefix", LORA: "LoRA"}  # what each method trains
_OF_PREFIX = ("pre_seq_len", "prefix_projection")
# Settings by which the records that were held out are found again, and rendered as they were.
_FOR_HELD_OUT = (
    *("data", "skip_bad_records", "eval_fraction", "seed"),
    *("max_source_length", "max_target_length", "truncation"),
)


@dataclass(frozen=True)
class CheckpointConfig:
    """What ptune_config.json records, so that nothing has to be said twice.

    Attributes:
        base_model: what training was given as `--model`.
        fingerprint: of the base model's weights, see `fingerprint`.
        prompt_format: name of the generation whose prompt training used.
        pre_seq_len: number of prefix tokens; None where there is no prefix.
        prefix_projection: whether an MLP stands behind the embedding.
        method: as `--method` has it.
        settings: the resolved settings of the training.
        inputs: what the training was computed from, by contents: `examples`, `eval_examples` and
            `held_out` with their numbers of records and SHA-256, `init_prefix` with its SHA-256,
            `beginning` with that of the tokens whose keys and values the prefix began as,
            `distilled` that of the text that it is to stand for.
        example_questions: `question` and `context` of some records, to try the prefix with.
        environment: versions, device and precision that it was computed with.
        ptune_version: which ptune wrote this.
    """

    base_model: str
    fingerprint: str
    prompt_format: str
    pre_seq_len: int | None = None
    prefix_projection: bool | None = None
    method: str = P_TUNING
    settings: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    example_questions: list[dict[str, str]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    ptune_version: str = __version__

    @staticmethod
    def read(folder: Path) -> CheckpointConfig | None:
        """Read a checkpoint's metadata; None for one that the original code left.

        Raises:
            CheckpointError: the file is damaged.
        """
        file = folder / CONFIG_FILE
        if not file.is_file():
            return None
        try:
            values = read_json_object(file)
            known = fields(CheckpointConfig)
            needed = [f.name for f in known if f.default is MISSING is f.default_factory]
            needed += _OF_PREFIX if values.get("method", P_TUNING) == P_TUNING else ()
            if missing := [name for name in needed if name not in values]:
                raise ValueError(f"it lacks {', '.join(missing)}")
            config = CheckpointConfig(**{f.name: values[f.name] for f in known if f.name in values})
            config._check()
        except ValueError as error:
            raise CheckpointError(
                f"{file} is damaged ({error}); restore it, or train again"
            ) from error
        return config

    def _check(self) -> None:
        """Raise a ValueError for a value that `ptune train` never records."""
        for name in ("base_model", "fingerprint", "prompt_format", "ptune_version"):
            if not (isinstance(getattr(self, name), str) and getattr(self, name)):
                raise ValueError(f"{name} {getattr(self, name)!r} is no text")
        if self.prompt_format not in PROMPT_FORMATS:
            raise ValueError(f"prompt_format {self.prompt_format!r} is unknown")
        if self.method not in METHODS:
            raise ValueError(f"method {self.method!r} is unknown")
        for name in ("settings", "inputs", "environment"):
            if not isinstance(getattr(self, name), dict):
                raise ValueError(f"{name} {getattr(self, name)!r} are no JSON object")
        check_recorded(self.settings)
        self._check_inputs()
        self._check_example_questions()
        if self.method == P_TUNING:
            self._check_prefix()
        if (claimed := self.settings.get("method", self.method)) != self.method:
            raise ValueError(f"method is {self.method!r}, and {claimed!r} in its settings")

    @property
    def noun(self) -> str:
        """What was trained, for messages."""
        return NOUNS[self.method]

    def _check_prefix(self) -> None:
        """Raise a ValueError for a form of a prefix that `ptune train` never records."""
        if type(self.pre_seq_len) is not int or self.pre_seq_len < 1:
            raise ValueError(f"pre_seq_len {self.pre_seq_len!r} is no whole number above 0")
        if type(self.prefix_projection) is not bool:
            raise ValueError(f"prefix_projection {self.prefix_projection!r} is not true or false")
        for name in _OF_PREFIX:
            claimed, own = self.settings.get(name), getattr(self, name)
            if claimed is not None and claimed != own:
                raise ValueError(f"{name} is {own!r}, and {claimed!r} in its settings")

    def _check_inputs(self) -> None:
        """Raise a ValueError for inputs that `ptune train` never records."""
        for name in ("examples", "eval_examples", "held_out"):
            if (found := self.inputs.get(name)) is None:
                continue
            if not isinstance(found, dict):
                raise ValueError(f"{name} {found!r} in its inputs is no JSON object")
            sha256 = found.get("sha256")  # early versions wrote none
            if "sha256" in found and not (isinstance(sha256, str) and sha256):
                raise ValueError(f"sha256 {sha256!r} of {name} in its inputs is no text")
            least = {"records": 1} | ({"of": 2} if name == "held_out" else {})
            for key, bound in least.items():
                if type(number := found.get(key)) is not int or number < bound:
                    raise ValueError(
                        f"{key} {number!r} of {name} in its inputs is no whole number of at least "
                        f"{bound}"
                    )
        missing = [name for name in _FOR_HELD_OUT if self.settings.get(name) is None]
        if missing and self.inputs.get("held_out") is not None:
            raise ValueError(f"records were held out, and its settings lack {', '.join(missing)}")

    def _check_example_questions(self) -> None:
        """Raise a ValueError for questions that `ptune train` never records."""
        if not isinstance(self.example_questions, list):
            raise ValueError(f"example_questions {self.example_questions!r} are no list")
        for said in self.example_questions:
            texts = isinstance(said, dict) and all(isinstance(text, str) for text in said.values())
            if not texts or set(said) != {"question", "context"}:
                raise ValueError(f"{said!r} in example_questions is no question with its context")
            try:
                for text in said.values():
                    check_text(text, "", blank_is_fine=True)
            except BadRecord as error:
                raise ValueError(f"{said!r} in example_questions holds half a character") from error

    def write(self, folder: Path) -> None:
        """Write the metadata into `folder`."""
        text = to_json(asdict(self), indent=2, sort_keys=True)
        write_text_atomically(folder / CONFIG_FILE, text + "\n")

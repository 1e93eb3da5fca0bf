"""config.json in the official form, as the configurations of both networks read and write it."""

from __future__ import annotations

from typing import Any, ClassVar

from ptune.errors import ModelError


class OfficialConfig:
    """Given to a configuration class of transformers, whose `from_pretrained` and so on it serves.

    Attributes:
        released_as: names the models, for errors.
        required: settings that config.json must hold, beside those that have a default.
        foreign: a setting that only the other generation has.
    """

    model_type = "chatglm"
    released_as: ClassVar[str]
    required: ClassVar[tuple[str, ...]]
    foreign: ClassVar[str]

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read config.json without its names of Python files, which are never run.

        Raises:
            ModelError: of the other generation, with a setting missing, or of quantized weights.
        """
        cls.check(config_dict)
        if bits := config_dict.get("quantization_bit"):
            raise ModelError(
                f"quantization_bit {bits} in config.json: from_pretrained reads no quantized "
                "weights; load the folder with ptune.load_model"
            )
        settings = {key: value for key, value in config_dict.items() if key != "auto_map"}
        settings["released_name"] = settings.get("_name_or_path")
        return super().from_dict(settings, **kwargs)  # type: ignore[misc]

    @classmethod
    def check(cls, config_dict: dict[str, Any]) -> None:
        """Refuse what is not this generation's config.json.

        Raises:
            ModelError: of the other generation, with a setting missing, or with scaled positions.
        """
        if cls.foreign in config_dict:
            raise ModelError(
                f"{cls.foreign} in config.json is not of {cls.released_as}; "
                "load the folder with ptune.load_model, which finds the generation"
            )
        if scaling := config_dict.get("rope_scaling"):
            raise ModelError(
                f"rope_scaling {scaling} in config.json is of no released model, and is not "
                f"computed; use a folder of {cls.released_as}"
            )
        if missing := [name for name in cls.required if name not in config_dict]:
            raise ModelError(f"config.json lacks {', '.join(missing)}; download it again")

    def to_diff_dict(self) -> dict[str, Any]:
        """What is written: the precision also under the name that the original code reads.

        And the name that the model was released under, since no other setting tells ChatGLM3 from
        ChatGLM2; the library puts the folder's in its place.
        """
        settings: dict[str, Any] = super().to_diff_dict()  # type: ignore[misc]
        settings["torch_dtype"] = settings.get("dtype")
        if name := settings.pop("released_name", None):
            settings["_name_or_path"] = name
        return settings

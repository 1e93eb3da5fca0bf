"""`ptune export`: a prefix, or its base, as other programs have them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor

from ptune.base.folder import BaseModel, Generation
from ptune.base.weights import WeightFiles, save_tensors
from ptune.checkpoint.adapter import write_adapter
from ptune.checkpoint.base import check_fingerprint, check_prompt_format
from ptune.checkpoint.folder import ADAPTER_CONFIG, ADAPTER_FILE
from ptune.checkpoint.lora import is_lora
from ptune.checkpoint.prefix import OFFICIAL_KEY, build_prefix
from ptune.errors import ConfigError
from ptune.files.atomic import staging, write_text_atomically, writing
from ptune.files.json_text import to_json
from ptune.models.build import build_model, empty_model
from ptune.models.prefix_encoder import PrefixEncoder, stack_prefix, states_to_embedding

STATES_FILE = "prefix_states.safetensors"
OFFICIAL_FILE = "pytorch_model.bin"


def export_prefix(base: BaseModel, checkpoint: Path, output: Path, format: str) -> Path:
    """Write a prefix for another program.

    Args:
        base: that it was trained on; no weights of it are read but for its fingerprint.
        checkpoint: a folder with a prefix, from `find_whole_checkpoint`.
        output: a folder that does not exist yet.
        format: `peft`, an adapter for the library's `glm` model; `official`, the file that the
            original's scripts load; `safetensors`, the keys and values themselves.

    Returns:
        `output`.

    Raises:
        CheckpointError: no prefix there, or one that the format cannot hold.
        ConfigError: the output cannot be written, or the checkpoint holds a LoRA.
    """
    if is_lora(checkpoint):
        raise ConfigError(
            f"{checkpoint} holds a LoRA, which is an adapter of peft already; use its "
            f"{ADAPTER_CONFIG} and {ADAPTER_FILE} as they are, or fold it into the weights with "
            "ptune merge"
        )
    check_prompt_format(base, checkpoint)
    check_fingerprint(base, checkpoint)
    shape = empty_model(base)[0].base_model.prefix_shape
    prefix = build_prefix(shape, checkpoint, base).eval()
    write = {"peft": _write_peft, "official": _write_official, "safetensors": _write_states}[format]
    return _fill(output, lambda folder: write(prefix, base, folder))


def export_base(base: BaseModel, output: Path) -> Path:
    """Write a base of a later generation as the library's native `glm` model, in its own precision.

    What loads `glm` loads it: transformers, peft, vLLM, SGLang.  They have no tokenizer of this
    kind, and are given ids.

    Args:
        base: from `find_base_model`.
        output: a folder that does not exist yet.

    Returns:
        `output`.

    Raises:
        ConfigError: ChatGLM-6B, which the library does not have, quantized weights, or an output
            that cannot be written.
        ModelError: damaged or missing files of the base.
    """
    if base.generation is Generation.NATIVE:
        raise ConfigError(
            f"{base.name} is of transformers' own already, which other programs load as it is; "
            "leave it out, or export a ChatGLM2-6B or ChatGLM3-6B"
        )
    if base.generation is Generation.CHATGLM:
        raise ConfigError(
            f"{base.name} is ChatGLM-6B, which transformers has no model of its own for; "
            "export a ChatGLM2-6B, ChatGLM3-6B or GLM-4-9B"
        )
    if bits := base.config.get("quantization_bit"):
        raise ConfigError(
            f"the weights of {base.name} have {bits} bits, in which no other program reads them; "
            "export the model in half precision"
        )
    names = WeightFiles(base.path)
    first = next(tensor for _, tensor in names.items([next(iter(names.names))]))
    dtype = first.dtype if first.is_floating_point() else torch.float16
    model = build_model(base, dtype, torch.device("cpu"))
    return _fill(output, lambda folder: _write_glm(model, folder))


def _fill(output: Path, write: Callable[[Path], None]) -> Path:
    try:
        with staging(output) as partial:
            write(partial)
    except OSError as error:
        raise ConfigError(
            f"output {output} cannot be written ({error}); make room there, or pass another folder"
        ) from error
    return output


def _embedding(prefix: PrefixEncoder) -> Tensor:
    """`[P, 2 L G D]`, also of a prefix with a projection."""
    return states_to_embedding(stack_prefix(prefix, torch.float32)).clone()


def _write_peft(prefix: PrefixEncoder, base: BaseModel, folder: Path) -> None:
    write_adapter(_embedding(prefix), base, folder, base.name)


def _write_official(prefix: PrefixEncoder, base: BaseModel, folder: Path) -> None:
    """As the original's trainer saves it; its config.json goes with the length."""
    tensors = {OFFICIAL_KEY + name: t.detach().float() for name, t in prefix.state_dict().items()}
    with writing(folder / OFFICIAL_FILE) as partial:
        torch.save(tensors, partial)
    config = base.config | {
        "pre_seq_len": prefix.pre_seq_len,
        "prefix_projection": prefix.prefix_projection,
    }
    write_text_atomically(folder / "config.json", to_json(config, indent=2) + "\n")


def _write_states(prefix: PrefixEncoder, base: BaseModel, folder: Path) -> None:
    """Each layer's keys and values, `[G, P, D]`; the text behind them stands at 0 and on."""
    states = stack_prefix(prefix, torch.float32)
    tensors = {
        f"layers.{layer}.{kind}": states[layer, place].clone()
        for layer in range(len(states))
        for place, kind in enumerate(("keys", "values"))
    }
    save_tensors(tensors, folder / STATES_FILE)


def _write_glm(model: Any, folder: Path) -> None:
    from transformers import GlmConfig

    known = GlmConfig().to_dict().keys() - {"model_type", "architectures", "transformers_version"}
    settings = {name: getattr(model.config, name) for name in known if hasattr(model.config, name)}
    GlmConfig(**settings, architectures=["GlmForCausalLM"]).save_pretrained(folder)
    # Queries, keys and values are parts of one fused tensor, which the file has apart.
    tensors = {
        name: tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
        for name, tensor in model.state_dict().items()
    }
    save_torch_state_dict(tensors, folder, max_shard_size="5GB")

"""Prefixes as the `peft` library has them: PREFIX_TUNING and CARTRIDGE adapters.

https://github.com/huggingface/peft, `prompt_embeddings` of `adapter_model.safetensors`.  The layout
is that of a prefix without projection.  What differs are the positions: there the text stands
behind the prefix, at `P` and on, here at 0 and on.  So keys are turned by R(P) on their way there,
and by R(-P) on the way back, which is exact.

Shapes: `P` pre_seq_len, `L` layers, `G` key/value heads, `D` head dimension.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ptune.base.folder import BaseModel, Generation
from ptune.base.weights import WeightFiles, save_tensors
from ptune.errors import CheckpointError, ModelError
from ptune.files.atomic import write_text_atomically
from ptune.files.json_object import read_json_object
from ptune.files.json_text import to_json
from ptune.models.build import empty_model

ADAPTER_CONFIG, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"
_KINDS = ("PREFIX_TUNING", "CARTRIDGE")
_TENSOR = "prompt_embeddings"


def holds_adapter(folder: Path) -> bool:
    """Whether a folder is an adapter of `peft`."""
    return (folder / ADAPTER_CONFIG).is_file() and (folder / ADAPTER_FILE).is_file()


def read_adapter(folder: Path) -> Tensor:
    """Read an adapter's keys and values as they are, `[P, 2 L G D]`.

    Raises:
        CheckpointError: it is none of a prefix, or damaged.
    """
    file = folder / ADAPTER_CONFIG
    try:
        config = read_json_object(file)
        files = WeightFiles(folder, [folder / ADAPTER_FILE])
        tensors = {name: tensor.clone() for name, tensor in files.items(list(files.names))}
    except (ModelError, ValueError) as error:
        raise CheckpointError(f"the adapter in {folder} cannot be read ({error})") from error
    if config.get("peft_type") not in _KINDS:
        raise CheckpointError(
            f"peft_type {config.get('peft_type')!r} in {file} is no prefix; take an adapter of "
            f"{' or '.join(_KINDS)}"
        )
    if list(tensors) != [_TENSOR] or tensors[_TENSOR].dim() != 2 or not len(tensors[_TENSOR]):
        found = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
        raise CheckpointError(
            f"{folder / ADAPTER_FILE} holds {found or 'nothing'} instead of {_TENSOR} "
            "[tokens, width]; take the adapter as it was saved"
        )
    claimed, held = config.get("num_virtual_tokens"), len(tensors[_TENSOR])
    if claimed != held:
        raise CheckpointError(
            f"num_virtual_tokens {claimed!r} in {file} does not go with {_TENSOR} beside it, which "
            f"has {held}; take all files of one adapter"
        )
    return tensors[_TENSOR]


def from_adapter(embedding: Tensor, base: BaseModel) -> Tensor:
    """Turn an adapter's keys to where this package has them.

    Args:
        embedding: from `read_adapter`; its width fits the base.
        base: whose rotation it is.

    Raises:
        CheckpointError: the base has positions that `peft` does not know.
    """
    return _turned(embedding, base, -len(embedding))


def write_adapter(embedding: Tensor, base: BaseModel, folder: Path, base_name: str) -> None:
    """Write a prefix as an adapter of the library's native model.

    Args:
        embedding: `[P, 2 L G D]`, of a prefix without projection.
        base: whose rotation it is.
        folder: which is there.
        base_name: what `peft` is to load as the base.

    Raises:
        CheckpointError: the base has positions that `peft` does not know.
    """
    turned = _turned(embedding, base, len(embedding))
    shape = empty_model(base)[0].base_model.prefix_shape
    config: dict[str, Any] = {
        "peft_type": "PREFIX_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "num_virtual_tokens": len(embedding),
        "num_transformer_submodules": 1,
        "num_layers": shape.num_layers,
        "num_attention_heads": shape.num_kv_heads,
        "token_dim": shape.num_kv_heads * shape.head_dim,
        "encoder_hidden_size": shape.num_kv_heads * shape.head_dim,
        "prefix_projection": False,
    }
    write_text_atomically(folder / ADAPTER_CONFIG, to_json(config, indent=2) + "\n")
    save_tensors({_TENSOR: turned.contiguous()}, folder / ADAPTER_FILE)


def _turned(embedding: Tensor, base: BaseModel, by: int) -> Tensor:
    if base.generation is Generation.CHATGLM:
        raise CheckpointError(
            f"{base.name} is ChatGLM-6B, whose tokens have two positions each, and an adapter of "
            "peft knows one; keep its prefixes in ptune's or the official format"
        )
    decoder = empty_model(base)[0].base_model  # its rotation needs no weights
    s = decoder.prefix_shape
    if embedding.shape[1] != s.width:
        return embedding  # refused by whoever compares shapes
    states = embedding.float().view(-1, s.num_layers, 2, s.num_kv_heads, s.head_dim)
    states = states.permute(1, 2, 3, 0, 4).clone()  # [L, 2, G, P, D]
    states[:, 0] = decoder.turn_keys(states[:, 0], by)
    return states.permute(3, 0, 1, 2, 4).reshape(embedding.shape)

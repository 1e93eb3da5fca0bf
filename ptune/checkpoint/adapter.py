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
from ptune.checkpoint.folder import ADAPTER_CONFIG, ADAPTER_FILE
from ptune.errors import CheckpointError, ModelError
from ptune.files.atomic import write_text_atomically
from ptune.files.json_object import read_json_object
from ptune.files.json_text import to_json
from ptune.models.build import empty_model
from ptune.models.prefix_encoder import PrefixShape, embedding_to_states, states_to_embedding

_KINDS = ("PREFIX_TUNING", "CARTRIDGE")
_TENSOR = "prompt_embeddings"


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
        raise CheckpointError(
            f"the adapter in {folder} cannot be read ({error}); restore it, or take another one"
        ) from error
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


def from_adapter(embedding: Tensor, base: BaseModel, folder: Path) -> Tensor:
    """Turn an adapter's keys to where this package has them.

    Args:
        embedding: from `read_adapter`; its width fits the base.
        base: whose rotation it is.
        folder: that it was read from.

    Raises:
        CheckpointError: the base has positions that `peft` does not know, or other layers or heads
            than the adapter.
    """
    decoder = _rotating(base)
    config, expected = read_json_object(folder / ADAPTER_CONFIG), _sizes(decoder.prefix_shape)
    for name, size in expected.items():
        if (claimed := config.get(name)) is not None and claimed != size:
            raise CheckpointError(
                f"{name} {claimed!r} in {folder / ADAPTER_CONFIG} does not fit {base.name}, which "
                f"has {size}; pass the base model that this adapter was trained on"
            )
    return _turned(embedding, decoder, -len(embedding))


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
    decoder = _rotating(base)
    turned, sizes = _turned(embedding, decoder, len(embedding)), _sizes(decoder.prefix_shape)
    config: dict[str, Any] = {
        "peft_type": "PREFIX_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "num_virtual_tokens": len(embedding),
        "num_transformer_submodules": 1,
        **sizes,
        "encoder_hidden_size": sizes["token_dim"],
        "prefix_projection": False,
    }
    write_text_atomically(folder / ADAPTER_CONFIG, to_json(config, indent=2) + "\n")
    save_tensors({_TENSOR: turned.contiguous()}, folder / ADAPTER_FILE)


def _sizes(shape: PrefixShape) -> dict[str, int]:
    """What `peft` records of a base: with grouped heads, those of keys and values."""
    return {
        "num_layers": shape.num_layers,
        "num_attention_heads": shape.num_kv_heads,
        "token_dim": shape.num_kv_heads * shape.head_dim,
    }


def _rotating(base: BaseModel) -> Any:
    """The decoder of a base, whose rotation needs no weights."""
    if base.generation is Generation.CHATGLM:
        raise CheckpointError(
            f"{base.name} is ChatGLM-6B, whose tokens have two positions each, and an adapter of "
            "peft knows one; keep its prefixes in ptune's or the official format"
        )
    return empty_model(base)[0].base_model


def _turned(embedding: Tensor, decoder: Any, by: int) -> Tensor:
    states = embedding_to_states(embedding.float(), decoder.prefix_shape).clone()
    states[:, 0] = decoder.turn_keys(states[:, 0], by)
    return states_to_embedding(states)

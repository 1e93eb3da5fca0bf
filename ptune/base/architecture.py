"""The architecture of a base model, from config.json, and the size of its weights in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ptune.base.schema import is_first

_FLOAT = 4  # bytes of a float32
_NF4_BLOCK = 64  # weights that share a scale

# config.json fields of the released models by the name of their repository, so that an estimate
# needs no download.  ChatGLM2 and 3 differ in nothing that takes memory; GLM-4 has more layers
# and another vocabulary.
_FIRST = {
    "model_type": "chatglm",
    "vocab_size": 130528,
    "hidden_size": 4096,
    "inner_hidden_size": 16384,
    "num_layers": 28,
    "num_attention_heads": 32,
    "layernorm_epsilon": 1e-5,
    "max_sequence_length": 2048,
    "bos_token_id": 130004,
    "eos_token_id": 130005,
    "mask_token_id": 130000,
    "gmask_token_id": 130001,
    "pad_token_id": 3,
}
_LATER = {
    "model_type": "chatglm",
    "padded_vocab_size": 65024,
    "hidden_size": 4096,
    "ffn_hidden_size": 13696,
    "num_layers": 28,
    "num_attention_heads": 32,
    "kv_channels": 128,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "add_qkv_bias": True,
    "layernorm_epsilon": 1e-5,
    "seq_length": 32768,
}
_THIRD = {**_LATER, "seq_length": 8192}
_FOURTH = {
    **_LATER,
    "padded_vocab_size": 151552,
    "num_layers": 40,
    "layernorm_epsilon": 1.5625e-07,
    "seq_length": 8192,
}
RELEASED: dict[str, dict[str, Any]] = {
    "chatglm-6b": _FIRST,
    "chatglm-6b-int8": {**_FIRST, "quantization_bit": 8},
    "chatglm-6b-int4": {**_FIRST, "quantization_bit": 4},
    "chatglm-6b-int4-qe": {**_FIRST, "quantization_bit": 4, "quantization_embeddings": True},
    "chatglm2-6b": _LATER,
    "chatglm2-6b-int4": {**_LATER, "quantization_bit": 4},
    "chatglm2-6b-32k": {**_LATER, "rope_ratio": 16},
    "chatglm3-6b": _THIRD,
    "chatglm3-6b-base": {**_THIRD, "seq_length": 32768},
    "chatglm3-6b-32k": {**_LATER, "rope_ratio": 50},
    "glm-4-9b": _FOURTH,
    "glm-4-9b-chat": {**_FOURTH, "seq_length": 131072, "rope_ratio": 500},
    "glm-4-9b-chat-1m": {
        **_FOURTH,
        "seq_length": 1048576,
        "rope_ratio": 10000,
        "multi_query_group_num": 4,
    },
}
RELEASED_BY = ("THUDM", "zai-org")


@dataclass(frozen=True)
class Architecture:
    """The config.json fields of a base model that memory depends on.

    Attributes:
        num_layers: `L`.
        hidden_size: width between layers.
        ffn_size: inner width of the MLP; a gated one computes it twice.
        num_heads: `H`.
        num_kv_heads: `G`.
        head_dim: `D`.
        vocab_size: `V`.
        gated: RMSNorm, SwiGLU and a head of its own (the later generations), else LayerNorm, GELU
            and a tied head (ChatGLM-6B).
        qkv_bias: whether queries, keys and values have a bias.
        quantized_embedding: when weights are quantized, the embedding is, too (int4-qe).
        tied: embedding and head share their weight; None where `gated` says so.
        total: parameters, of a model that is no ChatGLM; None where they follow from the rest.
    """

    num_layers: int
    hidden_size: int
    ffn_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    gated: bool
    qkv_bias: bool = True
    quantized_embedding: bool = False
    tied: bool | None = None
    total: int | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Architecture:
        """Read a checked config.json of either kind."""
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        if is_first(config):
            return cls(
                num_layers=config["num_layers"],
                hidden_size=hidden,
                ffn_size=config["inner_hidden_size"],
                num_heads=heads,
                num_kv_heads=heads,
                head_dim=hidden // heads,
                vocab_size=config["vocab_size"],
                gated=False,
                quantized_embedding=bool(config.get("quantization_embeddings", False)),
            )
        grouped = config.get("multi_query_attention", False)
        return cls(
            num_layers=config["num_layers"],
            hidden_size=hidden,
            ffn_size=config["ffn_hidden_size"],
            num_heads=heads,
            num_kv_heads=config["multi_query_group_num"] if grouped else heads,
            head_dim=config["kv_channels"],
            vocab_size=config["padded_vocab_size"],
            gated=True,
            qkv_bias=config.get("add_qkv_bias", False),
        )

    @property
    def linears(self) -> list[tuple[int, int]]:
        """Output and input width of the four linear layers of a block."""
        query, key = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        inner = 2 * self.ffn_size if self.gated else self.ffn_size
        return [
            (query + 2 * key, self.hidden_size),
            (self.hidden_size, query),
            (inner, self.hidden_size),
            (self.hidden_size, self.ffn_size),
        ]

    @property
    def embedding(self) -> int:
        """Parameters of embedding and head, which the first generation ties."""
        tied = not self.gated if self.tied is None else self.tied
        return self.vocab_size * self.hidden_size * (1 if tied else 2)

    @property
    def small(self) -> int:
        """Parameters of all that is neither a linear layer nor an embedding."""
        if self.total is not None:
            return max(self.total - self._large, 0)
        widths = [out for out, _ in self.linears]
        biases = widths[0] * self.qkv_bias if self.gated else sum(widths)
        norm = self.hidden_size * (1 if self.gated else 2)
        return self.num_layers * (biases + 2 * norm) + norm

    @property
    def parameters(self) -> int:
        """Parameters of the whole model."""
        return self._large + self.small

    @property
    def _large(self) -> int:
        return self.embedding + self.num_layers * sum(out * inner for out, inner in self.linears)

    @property
    def projection_input(self) -> int:
        """Width of the embedding in front of a prefix's projection; see `PrefixShape`."""
        wide = self.gated and self.total is None
        return self.prefix_width if wide else self.hidden_size

    @property
    def prefix_width(self) -> int:
        """A key and a value for each layer and key/value head."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim


@dataclass(frozen=True)
class Storage:
    """How the base model is stored in memory.

    Attributes:
        itemsize: bytes of a number in the precision of computation: 2 or, in float32, 4.
        quantization: `4`, `8` or `nf4` for quantized linear layers; else None.
        device_type: `cuda` or `cpu`; they differ in a few kernels.
    """

    itemsize: int = 2
    quantization: str | None = None
    device_type: str = "cuda"

    def linear_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a linear layer's weight, scales included."""
        if self.quantization is None:
            return rows * columns * self.itemsize
        if self.quantization == "nf4":
            return rows * columns // 2 + rows * columns // _NF4_BLOCK * _FLOAT
        return rows * columns * int(self.quantization) // 8 + rows * _FLOAT

    def dequantized_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a quantized weight when dequantized; 0 for one that is not quantized."""
        if self.quantization is None:
            return 0
        # Without a kernel of its own, 4 bits pass through two int8 halves; the CPU converts the
        # codes to float32 first.
        halves = 0 if self.quantization == "8" else 1
        extra = halves if self.device_type == "cuda" else _FLOAT
        return rows * columns * (self.itemsize + extra)


def weight_bytes(a: Architecture, storage: Storage) -> int:
    """Bytes of the frozen base model."""
    block = sum(storage.linear_bytes(*shape) for shape in a.linears)
    embedding = a.embedding * storage.itemsize
    if a.quantized_embedding and storage.quantization:
        embedding = storage.linear_bytes(a.vocab_size, a.hidden_size)
    return a.num_layers * block + embedding + a.small * storage.itemsize

"""Memory estimate of a training step or of inference: peak memory, by arithmetic alone.

There are a few points at which memory can be at its peak; the largest counts.  What autograd saves
for a layer's backward follows from `models/chatglm.py`, and from transformers' `glm` for the later
generations.  Frozen linear layers save none of their input; AdamW trains the prefix in float32.

Shapes: `B` micro-batch, `S` text tokens, `P` prefix tokens, `K = P + S` keys, `N` label tokens,
`V` vocabulary, `L` layers, `H` heads, `G` key/value heads, `D` head dimension.  All results are in
bytes, as `torch.cuda.max_memory_allocated` counts them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

from ptune.base.architecture import Architecture, Storage, weight_bytes

# Fragmentation: the share of all but the weights that is lost in gaps of a card's allocator.
GAPS = 0.1

# Tokens whose logits exist together in training (`models/label_loss.py`): a step of 16 records in
# the original's lengths.  Fewer would make the head's GEMMs slower.
LABELS_AT_ONCE = 1024

# The KV cache's length is a multiple of this: few lengths, aligned for the attention kernels.
_LENGTH_MULTIPLE = 64

_FLOAT = 4  # bytes of a float32
_BOOL = 1
# The prefix and AdamW's two moments; the gradient comes on top while there is one.
_PREFIX_AND_MOMENTS = 3 * _FLOAT
# cuBLAS takes its workspace from torch's allocator: 32 MiB on Hopper, 8 MiB before (torch's
# CUDABlas.cpp, parseChosenWorkspaceSize).
_CUBLAS_WORKSPACE = 32 * 2**20
# Anonymous memory of Python with torch, transformers and ptune: 0.26 GB after
# `import ptune.models.build` with torch 2.13.  A CUDA build with its libraries at work takes about
# half a gigabyte more.
_PROCESS = 300 * 10**6
_PROCESS_WITH_CARD = 800 * 10**6


@dataclass(frozen=True)
class Prefix:
    """The trained part; the names are those of `ptune train`."""

    pre_seq_len: int = 128
    prefix_projection: bool = False
    dropout: float = 0.1

    def matrices(self, a: Architecture) -> list[int]:
        """Parameters of each of its weights; see `PrefixEncoder`."""
        if not self.prefix_projection:
            return [self.pre_seq_len * a.prefix_width]
        inner = a.projection_input
        return [
            self.pre_seq_len * inner,
            (inner + 1) * a.hidden_size,
            (a.hidden_size + 1) * a.prefix_width,
        ]


@dataclass(frozen=True)
class Lora:
    """A LoRA beside linear layers; see `LoraForm`.

    Attributes:
        rank: `r`.
        shapes: output and input width of every layer that it stands beside.
        inputs: width of every input of theirs; layers that share one count once.
        dropout: on these inputs.
    """

    rank: int
    shapes: tuple[tuple[int, int], ...]
    inputs: tuple[int, ...]
    dropout: float = 0.0

    pre_seq_len = 0  # nothing stands in front of the text

    def matrices(self, a: Architecture) -> list[int]:
        """Parameters of each of its matrices."""
        return [self.rank * width for shape in self.shapes for width in shape]


@dataclass(frozen=True)
class Training:
    """A training step.

    Attributes:
        micro_batch: `B`, records of a micro-batch.
        source_length: tokens of the prompt.
        target_length: tokens of the response, which have labels.
        trained: the prefix or LoRA.
        gradient_checkpointing: recompute a layer in its backward.
        accumulates: gradient accumulation, over several micro-batches.
    """

    micro_batch: int = 1
    source_length: int = 64
    target_length: int = 64
    trained: Prefix | Lora = Prefix()
    gradient_checkpointing: bool = False
    accumulates: bool = True


@dataclass(frozen=True)
class Inference:
    """Generation in chat and evaluation; `prompt_length` and `new_tokens` are of one request."""

    batch_size: int = 1
    prompt_length: int = 1536
    new_tokens: int = 512
    trained: Prefix | Lora = Prefix()


@dataclass(frozen=True)
class Memory:
    """Bytes by part, at the peak.

    Attributes:
        weights: of the base model.
        prefix: the prefix or LoRA; in training its gradient and the two moments of AdamW, too.
        activations: tensors that autograd saves for the backward.
        logits: over the vocabulary, and their gradient.
        cache: the KV cache: in inference of prefix and text, in training of every record's prefix,
            and its gradient.
        working: temporaries: inside a layer, a dequantized weight, the optimizer's step.
    """

    weights: int = 0
    prefix: int = 0
    activations: int = 0
    logits: int = 0
    cache: int = 0
    working: int = 0

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(dataclasses.astuple(self))


def training_bytes(a: Architecture, storage: Storage, training: Training) -> Memory:
    """Peak memory of a training step, by part."""
    return max(_Step(a, storage, training).peaks(), key=lambda memory: memory.total)


def cache_length(used: int, longest: int) -> int:
    """The length of a KV cache: half as long again as is used, so that it grows rarely.

    Args:
        used: positions with prefix, prompt and answer so far, of the longest request.
        longest: the most that this can become.
    """
    return min(rounded_length(used * 3 // 2), rounded_length(longest))


def rounded_length(length: int) -> int:
    """The length that a KV cache has for so many positions."""
    return -(-length // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE


def rounded_down(positions: int) -> int:
    """The longest KV cache within so many positions."""
    return positions // _LENGTH_MULTIPLE * _LENGTH_MULTIPLE


def inference_bytes(a: Architecture, storage: Storage, inference: Inference) -> Memory:
    """Peak memory of inference, by part: in prefill, when the cache grows, or in a decode step."""
    trained, batch = inference.trained, inference.batch_size
    forward = _Forward(a, storage, batch, inference.prompt_length, trained)
    used = trained.pre_seq_len + inference.prompt_length
    longest = used + inference.new_tokens
    position = batch * a.num_kv_heads * a.head_dim * storage.itemsize  # of a layer's keys
    lengths = [cache_length(used, longest)]
    while lengths[-1] < longest:
        lengths.append(cache_length(lengths[-1], longest))
    grown = 0 if len(lengths) == 1 else lengths[-2] * position
    base = Memory(weights=weight_bytes(a, storage), prefix=sum(trained.matrices(a)) * _FLOAT)
    whole = 2 * a.num_layers * position
    return max(
        dataclasses.replace(
            base,
            cache=lengths[0] * whole,
            working=forward_bytes(a, storage, batch, inference.prompt_length, trained),
        ),
        dataclasses.replace(
            base,
            cache=lengths[-1] * whole,
            logits=batch * a.vocab_size * (storage.itemsize + _FLOAT),
            working=max(grown, forward.dequantized) + forward.workspace,
        ),
        key=lambda memory: memory.total,
    )


def forward_bytes(
    a: Architecture, storage: Storage, batch: int, length: int, trained: Prefix | Lora
) -> int:
    """The peak of temporaries in a prefill of `B` prompts of `S` tokens, beside the KV cache."""
    forward = _Forward(a, storage, batch, length, trained)
    # A layer has the prompt's keys and values behind the prefix, beside the cache.
    return forward.forward_working + 2 * forward.keys


def largest_micro_batch(
    a: Architecture,
    storage: Storage,
    training: Training,
    batch_size: int,
    fits: Callable[[Memory], bool],
) -> int:
    """The largest divisor of the batch whose step fits, or 0.

    Args:
        a: of the base model.
        storage: how it is stored.
        training: its `micro_batch` and `accumulates` do not matter.
        batch_size: records of an optimizer step on this device.
        fits: whether there is memory for a step.
    """
    small = [d for d in range(1, math.isqrt(batch_size) + 1) if batch_size % d == 0]
    for count in sorted({*small, *(batch_size // d for d in small)}, reverse=True):
        tried = dataclasses.replace(training, micro_batch=count, accumulates=count < batch_size)
        if fits(training_bytes(a, storage, tried)):
            return count
    return 0


def savings(a: Architecture, storage: Storage, training: Training) -> list[tuple[str, int]]:
    """Options that lower the peak memory of a step, in the order in which to try them.

    Returns:
        Option and the bytes it saves on its own: 8 bits, 4 bits, gradient checkpointing and half
        the lengths, without those that are on already and those that save nothing.
    """
    choices: list[tuple[str, Storage, Training]] = []
    for bits in {None: ("8", "4"), "8": ("4",)}.get(storage.quantization, ()):
        quantized = dataclasses.replace(storage, quantization=bits)
        choices.append((f"--quantization-bit {bits}", quantized, training))
    if not training.gradient_checkpointing:
        recomputed = dataclasses.replace(training, gradient_checkpointing=True)
        choices.append(("--gradient-checkpointing", storage, recomputed))
    source, target = max(training.source_length // 2, 4), max(training.target_length // 2, 4)
    shorter = dataclasses.replace(training, source_length=source, target_length=target)
    choices.append((f"--max-source-length {source} --max-target-length {target}", storage, shorter))
    now = training_bytes(a, storage, training).total
    saved = [(option, now - training_bytes(a, kept, step).total) for option, kept, step in choices]
    return [(option, size) for option, size in saved if size > 0]


def host_bytes(a: Architecture, storage: Storage) -> int:
    """Peak of anonymous CPU memory while a model is loaded; memory-mapped files do not count.

    A tensor at a time goes from the file to the device, and is converted or quantized there.
    """
    if storage.device_type == "cuda":
        return _PROCESS_WITH_CARD
    return _PROCESS + weight_bytes(a, storage)


class _Forward:
    """Tensors in the forward of `B` records with `S` text tokens, in bytes."""

    def __init__(
        self, a: Architecture, storage: Storage, batch: int, length: int, trained: Prefix | Lora
    ) -> None:
        self.a = a
        self.storage = storage
        self.batch = batch
        self.length = length
        self.trained = trained

    def _numbers(self, count: int) -> int:
        return count * self.storage.itemsize

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    @property
    def hidden(self) -> int:
        """`[B, S, hidden]`."""
        return self._numbers(self.tokens * self.a.hidden_size)

    @property
    def query(self) -> int:
        """`[B, H, S, D]`."""
        return self._numbers(self.tokens * self.a.num_heads * self.a.head_dim)

    @property
    def inner(self) -> int:
        """`[B, S, ffn]`."""
        return self._numbers(self.tokens * self.a.ffn_size)

    @property
    def positions(self) -> int:
        """`B K`, positions of the KV cache."""
        return self.batch * (self.trained.pre_seq_len + self.length)

    @property
    def keys(self) -> int:
        """`[B, G, K, D]`, a layer's keys, or its values, in the KV cache."""
        return self._numbers(self.positions * self.a.num_kv_heads * self.a.head_dim)

    @property
    def repeated_keys(self) -> int:
        """`[B, H, K, D]`: the keys repeated for every query head."""
        return self._numbers(self.positions * self.a.num_heads * self.a.head_dim)

    @property
    def mask(self) -> int:
        """`[B, 1, S, K]`, in the model's precision: the kernels add it to the scores."""
        return self._numbers(self.positions * self.length)

    @property
    def dequantized(self) -> int:
        """The largest weight of a block, dequantized for one matrix product."""
        return max(self.storage.dequantized_bytes(*shape) for shape in self.a.linears)

    @property
    def workspace(self) -> int:
        """The workspace of cuBLAS."""
        return _CUBLAS_WORKSPACE if self.storage.device_type == "cuda" else 0

    @property
    def forward_working(self) -> int:
        """The peak of temporaries inside a layer's forward without autograd."""
        attention = 2 * self.hidden + 3 * self.query + self.mask
        if self.a.gated:
            attention += 2 * self.repeated_keys
            mlp = 3 * self.hidden + 4 * self.inner
        else:
            mlp = 4 * self.hidden + 2 * self.inner
        # Beside a dequantized weight there are the input and output of its product in the MLP.
        product = self.dequantized + 2 * self.hidden + (3 if self.a.gated else 1) * self.inner
        return max(attention, mlp, product) + self.positions * self.length * _BOOL + self.workspace


class _Step(_Forward):
    """A training step at the points where memory can be at its peak."""

    def __init__(self, a: Architecture, storage: Storage, training: Training) -> None:
        length = training.source_length + training.target_length
        super().__init__(a, storage, training.micro_batch, length, training.trained)
        self.training = training

    @property
    def prefix_states(self) -> int:
        """`[2 L, B, G, P, D]`: dropout gives every record a prefix of its own."""
        return self._numbers(self.batch * self.trained.pre_seq_len * self.a.prefix_width)

    @property
    def dropout_saved(self) -> int:
        """The mask that dropout saves for its backward."""
        if self.trained.dropout == 0:
            return 0
        return self.prefix_states // self.storage.itemsize * _BOOL

    @property
    def prefix_cache(self) -> int:
        """The prefix in the KV cache; without dropout the records share one."""
        return self.prefix_states if self.trained.dropout else self.prefix_states // self.batch

    @property
    def norm(self) -> int:
        """Activations of a norm: its input; of the RMSNorm of `glm` a float32 copy of it."""
        return self.tokens * self.a.hidden_size * _FLOAT if self.a.gated else self.hidden

    @property
    def layer_without_norm(self) -> int:
        """Activations of a layer without its first norm."""
        attention = 2 * self.query + 2 * self.repeated_keys + self.mask
        attention += self.tokens * self.a.num_heads * _FLOAT  # the logarithm of each softmax's sum
        # GELU saves its input; SwiGLU its two inputs, and the SiLU of one.
        return attention + self.norm + (3 if self.a.gated else 1) * self.inner

    @property
    def layer_working(self) -> int:
        """The peak of temporaries inside a layer's backward, beside its activations."""
        if self.a.gated:
            mlp, mlp_saved = 3 * self.inner + 2 * self.hidden, 3 * self.inner
        else:
            mlp, mlp_saved = 2 * self.inner + 2 * self.hidden, self.inner
        attention = 2 * self.repeated_keys + 2 * self.query + 2 * self.hidden - mlp_saved
        up, down = (self.storage.dequantized_bytes(*shape) for shape in self.a.linears[2:])
        # The MLP's activations are freed before the backward of its first product.
        before_up = up + (2 if self.a.gated else 1) * self.inner + 2 * self.hidden - mlp_saved
        return max(mlp, attention, down + self.inner + self.hidden, before_up if up else 0)

    @property
    def shared_mask(self) -> int:
        """`[B, S, K]` bool, shared by all layers."""
        return self.positions * self.length * _BOOL

    @property
    def lora_saved(self) -> int:
        """What a LoRA saves of all layers: the input of each `A`, and that of each `B`.

        In half precision every layer converts its input to float32 for itself.
        """
        if not isinstance(self.trained, Lora):
            return 0
        shapes, rank = self.trained.shapes, self.trained.rank
        widths = [width for _, width in shapes]
        kept = sum(widths if self.storage.itemsize < _FLOAT else self.trained.inputs)
        if self.trained.dropout:  # the mask, and what it leaves
            kept += 2 * sum(widths)
        return self.tokens * (kept + rank * len(shapes)) * _FLOAT

    @property
    def lora_working(self) -> int:
        """The gradient of a LoRA's input, and what is added to it."""
        if not isinstance(self.trained, Lora):
            return 0
        return self.tokens * max(width for _, width in self.trained.shapes) * _FLOAT

    def peaks(self) -> list[Memory]:
        """Memory at the points where it can be at its peak."""
        trained = sum(self.trained.matrices(self.a)) * (
            _PREFIX_AND_MOMENTS + _FLOAT * self.training.accumulates
        )
        base = Memory(weights=weight_bytes(self.a, self.storage), prefix=trained)
        checkpointed = self.training.gradient_checkpointing
        inside = self._checkpointed(base) if checkpointed else self._plain(base)
        return [
            dataclasses.replace(memory, working=memory.working + self.workspace)
            for memory in [*inside, *self._gradient_of_prefix(base), self._optimizer(base)]
        ]

    def _plain(self, base: Memory) -> list[Memory]:
        """Without checkpointing; the peak is at the head or in a layer."""
        # Nothing before the first layer's attention depends on the prefix; the last norm follows.
        layers = self.a.num_layers * (self.layer_without_norm + self.norm) + self.lora_saved
        saved = dataclasses.replace(
            base, activations=layers + self.shared_mask, cache=self.dropout_saved
        )
        at_head = dataclasses.replace(
            saved,
            cache=saved.cache + (self.prefix_cache if self.a.gated else 0),
            logits=self.logits,
            working=self.label_rows,
        )
        in_layer = dataclasses.replace(
            saved,
            activations=saved.activations - self.norm,
            working=self.layer_working + self.lora_working,
        )
        # Until the forward ends, the KV cache with the prefix is there, too.
        forward = dataclasses.replace(
            in_layer,
            cache=saved.cache + self.prefix_cache,
            working=2 * self.hidden + max(self.inner, self.dequantized),
        )
        return [at_head, in_layer, forward]

    @property
    def logits(self) -> int:
        """Logits of a chunk of label tokens, and the same in float32."""
        labels = self.batch * self.training.target_length
        size = self.storage.itemsize
        if size < _FLOAT:
            # Converting them on its way to float32, the CPU makes one more copy.
            size += _FLOAT if self.storage.device_type == "cuda" else 2 * _FLOAT
        return min(labels, LABELS_AT_ONCE) * self.a.vocab_size * size

    @property
    def label_rows(self) -> int:
        """Hidden states of all label tokens, and their gradient."""
        labels = self.batch * self.training.target_length
        return 2 * self._numbers(labels * self.a.hidden_size)

    def _checkpointed(self, base: Memory) -> list[Memory]:
        """With checkpointing a layer saves its input alone; the KV cache lives to the end."""
        layers = self.a.num_layers
        cache = self.dropout_saved + self.prefix_cache
        inputs = layers * self.hidden + self.shared_mask
        found = [
            dataclasses.replace(
                base,
                activations=inputs + self.norm,
                cache=cache,
                logits=self.logits,
                working=self.label_rows,
            )
        ]
        recomputed = self.layer_without_norm + self.lora_saved // layers
        if self.a.gated and self.storage.itemsize < _FLOAT:
            recomputed += self.norm  # else the norm saves the layer's input itself
        # Gradients of keys and values pile up to the end, while inputs of layers are freed.
        for left in (1, layers):
            waiting = (layers - left) * 2 * self.keys * bool(self.trained.pre_seq_len)
            found.append(
                dataclasses.replace(
                    base,
                    activations=left * self.hidden + self.shared_mask + recomputed,
                    cache=cache + waiting,
                    working=self.layer_working + self.lora_working,
                )
            )
        return found

    def _gradient_of_prefix(self, base: Memory) -> list[Memory]:
        """The end of the backward, when the gradients of all keys and values are concatenated."""
        if not self.trained.pre_seq_len:
            return []
        waiting = 2 * self.a.num_layers * self.keys
        return [
            dataclasses.replace(
                base, cache=waiting + self.dropout_saved, working=self.prefix_states
            )
        ]

    def _optimizer(self, base: Memory) -> Memory:
        """AdamW's square roots: on a card for all weights, on the CPU for two of the largest."""
        matrices = self.trained.matrices(self.a)
        on_card = self.storage.device_type == "cuda"
        roots = sum(matrices) if on_card else 2 * max(matrices)
        gradient = 0 if self.training.accumulates else sum(matrices) * _FLOAT
        return dataclasses.replace(base, prefix=base.prefix + gradient, working=roots * _FLOAT)

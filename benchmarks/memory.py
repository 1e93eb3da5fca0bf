"""Peak card memory of training and inference, measured and estimated.

Run `python benchmarks/memory.py`.  Models of the size of ChatGLM-6B and ChatGLM2-6B with random
weights are made on the card itself.
Measured is `torch.cuda.max_memory_allocated` over a step of two micro-batches, after a step that
made the optimizer's state, and over the generation of 64 tokens for each of a batch of prompts.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ptune.base.architecture import RELEASED, Architecture, Storage
from ptune.device.memory import Inference, Memory, Prefix, Training, inference_bytes, training_bytes
from ptune.generation.generate import generate_all
from ptune.generation.sampling import Sampling
from ptune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from ptune.models.chatglm2 import ChatGLM2ForConditionalGeneration
from ptune.models.chatglm2_layout import ChatGLM2Config
from ptune.models.prefix_encoder import PrefixEncoder

LENGTH, NEW_TOKENS, PREFIX = 64, 64, Prefix(pre_seq_len=128)
MICRO_BATCHES, BATCHES = (1, 4, 16), (1, 16)
GB = 10**9
# Which tokens end a prompt, in the vocabulary of the first generation.
GMASK, SOP = 130001, 130004


@contextmanager
def made_on_card(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("cuda"):
            yield
    finally:
        torch.set_default_dtype(before)


def make_model(name: str, dtype: torch.dtype) -> Any:
    config = RELEASED[name]
    torch.backends.cuda.enable_cudnn_sdp(False)  # as `build_model` does
    with made_on_card(dtype):
        if name == "chatglm-6b":
            model: Any = ChatGLMForConditionalGeneration(ChatGLMConfig(**config))
        else:
            model = ChatGLM2ForConditionalGeneration(ChatGLM2Config(**config))
    model.tie_weights()
    model.requires_grad_(False)
    with torch.device("cuda"):
        encoder = PrefixEncoder(model.base_model.prefix_shape, PREFIX.pre_seq_len)
    model.base_model.prefix_encoder = encoder
    model.generation_config.pad_token_id = model.config.pad_token_id
    return model


def quantize_in_place(model: Any, bits: int) -> None:
    """Replace linear layers by quantized ones, or quantized ones by those of fewer bits."""
    from ptune.quantization.backends.fallback import choose_backend
    from ptune.quantization.frozen_linear import FrozenLinear, QuantizedLinear

    backend = choose_backend(None, torch.device("cuda"))
    dtype = model.base_model.get_input_embeddings().weight.dtype
    for parent in model.base_model.layers.modules():
        if isinstance(parent, FrozenLinear):
            continue
        for name, layer in list(parent.named_children()):
            if not isinstance(layer, (nn.Linear, FrozenLinear)):
                continue
            full = isinstance(layer, nn.Linear)
            weight = layer.weight if full else layer.dequantize(0, layer.out_features, dtype)
            bias = layer.bias
            new = QuantizedLinear(
                layer.in_features, layer.out_features, bits, bias is not None, backend
            )
            new.pack(weight.detach())
            new.bias = bias
            setattr(parent, name, new)
    gc.collect()


def batch(model: Any, rows: int, length: int) -> Tensor:
    ids = torch.randint(100, 60000, (rows, length), device="cuda")
    if isinstance(model, ChatGLMForConditionalGeneration):
        ids[:, LENGTH - 2], ids[:, LENGTH - 1] = GMASK, SOP
    return ids


def peak(run: Callable[[], None]) -> int:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def measure_training(model: Any, rows: int, checkpointing: bool) -> int:
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()
    parameters = list(model.base_model.prefix_encoder.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-6)
    ids = batch(model, rows, 2 * LENGTH)
    labels = ids.clone()
    labels[:, :LENGTH] = -100

    def step() -> None:
        for _ in range(2):
            model(
                input_ids=ids,
                labels=labels,
                use_cache=False,
                label_logits_only=True,
                num_items_in_batch=2 * rows * LENGTH,
            ).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    step()
    return peak(step)


def measure_inference(model: Any, rows: int) -> int:
    model.eval()
    model.generation_config.eos_token_id = []
    prompts = batch(model, rows, LENGTH).tolist()

    def generate() -> None:
        for _ in generate_all(model, prompts, rows, Sampling(NEW_TOKENS)):
            pass

    return peak(generate)


def compare(model: Any, name: str, storage: Storage) -> Iterator[dict[str, Any]]:
    """Measure everything with one model."""
    a = Architecture.from_config(RELEASED[name])

    def row(what: str, rows: int, measured: int, memory: Memory) -> dict[str, Any]:
        return {
            "model": name,
            "weights": storage.quantization or "half",
            "what": what,
            "records": rows,
            "measured": measured,
            "estimated": memory.total,
            "ratio": memory.total / measured,
        }

    for checkpointing in (False, True):
        for rows in MICRO_BATCHES:
            step = Training(rows, LENGTH, LENGTH, PREFIX, checkpointing)
            measured = measure_training(model, rows, checkpointing)
            what = "train, checkpointing" if checkpointing else "train"
            yield row(what, rows, measured, training_bytes(a, storage, step))
    for rows in BATCHES:
        inference = Inference(rows, LENGTH, NEW_TOKENS, PREFIX)
        memory = inference_bytes(a, storage, inference)
        yield row("inference", rows, measure_inference(model, rows), memory)


def context_bytes() -> int:
    """What is in use on the card outside of torch's allocator, if nobody else uses it."""
    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_reserved()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=["float16", "bfloat16"], default="bfloat16")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this measures a card's memory, and torch sees no card")
    quantized = importlib.util.find_spec("ptune.quantization.frozen_linear") is not None
    rows: list[dict[str, Any]] = []
    for name in ("chatglm-6b", "chatglm2-6b"):
        model = make_model(name, getattr(torch, arguments.dtype))
        for bits in (None, 8, 4) if quantized else (None,):
            if bits:
                quantize_in_place(model, bits)
            for row in compare(model, name, Storage(2, str(bits) if bits else None)):
                rows.append(row)
                print(
                    f"{name:12} {row['weights']:>4}  {row['what']:20} {row['records']:>2} records  "
                    f"measured {row['measured'] / GB:6.2f} GB  "
                    f"estimated {row['estimated'] / GB:6.2f} GB  ratio {row['ratio']:.3f}",
                    flush=True,
                )
        del model
        gc.collect()
        torch.cuda.empty_cache()
    outside = context_bytes()
    print(f"outside of the allocator: {outside / GB:.2f} GB on {torch.cuda.get_device_name()}")
    if arguments.json:
        found = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
        found |= {"dtype": arguments.dtype, "context_bytes": outside, "rows": rows}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

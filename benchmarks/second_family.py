"""A Llama of a few million parameters, trained on the built-in model's corpus.

    python benchmarks/second_family.py --output llama

A second family to measure prefixes on, where no real model of that size is at hand: byte-level BPE,
a chat template in ChatML, rotary positions, grouped key/value heads.  It answers a list of
attributes by listing them, as the built-in model does.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from ptune.data.examples import TrainCollator
from ptune.data.prompt import WHOLE, render
from ptune.data.tokenizer import load_tokenizer
from ptune.tiny.corpus import sample_conversation

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = 4096
BATCH, POOL = 24, 16
PEAK, WARMUP = 2e-3, 60


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--exclude", type=Path, help="records whose prompts must not occur")
    arguments = parser.parse_args()
    lines = arguments.exclude.read_text("utf-8").splitlines() if arguments.exclude else []
    excluded = frozenset(json.loads(line)["content"] for line in lines)
    write_tokenizer(arguments.output, random.Random(arguments.seed))
    model = build(arguments.output, arguments.seed)
    train(model, arguments.output, arguments.steps, arguments.seed, excluded)
    model.save_pretrained(arguments.output)
    print(f"wrote {arguments.output}")


def write_tokenizer(folder: Path, rng: random.Random) -> None:
    """Train and write a byte-level BPE, with a chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in CONTROL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    said = (message for _ in range(6000) for message in _texts(rng))
    tokenizer.train_from_iterator(said, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": CONTROL[2],
        "pad_token": CONTROL[0],
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")


def _texts(rng: random.Random) -> list[str]:
    conversation = sample_conversation(rng)
    assert conversation.response is not None
    return [message.content for message in (*conversation.messages, conversation.response)]


def build(folder: Path, seed: int) -> LlamaForCausalLM:
    """A model with drawn weights, whose config.json is written."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    config.save_pretrained(folder)
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).train()


def train(model: Any, folder: Path, steps: int, seed: int, excluded: frozenset[str]) -> None:
    """Train all weights on conversations drawn as they are needed."""
    tokenizer = load_tokenizer(folder)
    collate = TrainCollator(tokenizer.pad_token_id)
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, (steps - step) / steps)
    )
    batches: list[dict[str, Any]] = []
    start, mean = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        if not batches:
            pool = [
                render(tokenizer, tokenizer.generation, sample_conversation(rng, excluded), WHOLE)
                for _ in range(BATCH * POOL)
            ]
            pool.sort(key=lambda example: len(example.input_ids))
            parts = [pool[first : first + BATCH] for first in range(0, len(pool), BATCH)]
            rng.shuffle(parts)
            batches = [collate([vars(example) for example in part]) for part in parts]
        batch = batches.pop()
        states = model.model(input_ids=batch["input_ids"], use_cache=False).last_hidden_state
        targets = batch["labels"][:, 1:]
        wanted = targets != -100
        logits = model.lm_head(states[:, :-1][wanted])
        loss = torch.nn.functional.cross_entropy(logits, targets[wanted])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        mean += (loss.item() - mean) * max(0.02, 1 / step)
        if step % 50 == 0 or step == steps:
            seconds = time.monotonic() - start
            print(f"step {step:5,}  loss {mean:.4f}  {seconds:5.0f} s", flush=True)


if __name__ == "__main__":
    main()

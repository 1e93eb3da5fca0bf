"""A Llama of a few million parameters, trained on the built-in model's corpus.

    python benchmarks/second_family.py --output llama

A second family to measure prefixes on, where no real model of that size is at hand: causal, with
rotary positions and grouped key/value heads, and a chat template.  It answers a list of attributes
by listing them, as the built-in model does.

The first part of the training has lists of attributes that nobody could guess, to be repeated or
listed.  Nothing helps there but to look back, which such a model learns within 300 steps.  In the
corpus, much of which can be guessed, it had not learnt it after 1,500.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM

from ptune.data.examples import TrainCollator
from ptune.data.prompt import WHOLE, Conversation, render
from ptune.data.tokenizer import load_tokenizer
from ptune.tiny.adverts import SHARED_KEYS, TYPE_KEYS, Attributes, format_attributes
from ptune.tiny.corpus import sample_conversation

PIECES = Path(__file__).resolve().parents[1] / "ptune" / "tiny" / "ice_text.model"
PAD, ANSWER, END = "<|pad|>", "<|answer|>", "<|end|>"
# A question stands as it is, so that a text in front of it is as an instruction in the corpus.
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}"
    f"{ANSWER}{{{{ message.content }}}}{END}"
    "{% else %}{{ message.content }}\n{% endif %}{% endfor %}"
    f"{{% if add_generation_prompt %}}{ANSWER}{{% endif %}}"
)
# SentencePiece takes the full-width ones for the narrow ones; here a text comes back as it was.
MARKS = "\n，：？！"
BATCH, POOL = 24, 16
LIST_LENGTHS = range(1, 8)  # of the first part
PEAK, WARMUP = 2e-3, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--list-steps", type=int, default=900, help="of the first part")
    parser.add_argument("--steps", type=int, default=1200, help="with the corpus")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--exclude", type=Path, help="records whose prompts must not occur")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lines = arguments.exclude.read_text("utf-8").splitlines() if arguments.exclude else []
    excluded = frozenset(json.loads(line)["content"] for line in lines)
    write_tokenizer(arguments.output)
    model = build(arguments.output, arguments.seed)
    batches = draw_batches(arguments, excluded)
    train(model, batches, arguments.list_steps + arguments.steps)
    model.save_pretrained(arguments.output)
    print(f"wrote {arguments.output}")


def write_tokenizer(folder: Path) -> None:
    """Write the built-in model's pieces as a tokenizer of this family, with a chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    found = sentencepiece.SentencePieceProcessor(model_file=str(PIECES))
    pieces = [(found.id_to_piece(i), found.get_score(i)) for i in range(found.get_piece_size())]
    special = [found.is_control(i) or found.is_unknown(i) for i in range(len(pieces))]
    words = [piece for piece, is_special in zip(pieces, special, strict=True) if not is_special]
    special_ones = [(name, 0.0) for name in ("<unk>", PAD, ANSWER, END)]
    vocabulary = [*special_ones, *((mark, -5.0) for mark in MARKS), *words]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in (PAD, ANSWER, END)])
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")


def build(folder: Path, seed: int) -> LlamaForCausalLM:
    """A model with drawn weights, whose config.json is written."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        initializer_range=0.06,  # one over the root of the width: 0.02 is for wider ones
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id(END),
        pad_token_id=tokenizer.token_to_id(PAD),
    )
    config.save_pretrained(folder)
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).train()


def draw_batches(
    arguments: argparse.Namespace, excluded: frozenset[str]
) -> Iterator[dict[str, Any]]:
    """Yield batches without end, those of the first part first."""
    tokenizer: Any = load_tokenizer(arguments.output)
    collate = TrainCollator(tokenizer.pad_token_id)
    rng = random.Random(arguments.seed)
    drawn = 0
    while True:
        first_part = drawn < arguments.list_steps
        said = (
            repeat_list(rng) if first_part else sample_conversation(rng, excluded)
            for _ in range(BATCH * POOL)
        )
        pool = [render(tokenizer, tokenizer.generation, one, WHOLE) for one in said]
        pool.sort(key=lambda example: len(example.input_ids))
        parts = [pool[first : first + BATCH] for first in range(0, len(pool), BATCH)]
        rng.shuffle(parts)
        for part in parts:
            yield collate([vars(example) for example in part])
        drawn += len(parts)


def repeat_list(rng: random.Random) -> Conversation:
    """Draw a list of any attributes in any order, and the same again as the answer."""
    tables = [SHARED_KEYS, *TYPE_KEYS.values()]
    wordings = {key: words for table in tables for key, (_, words) in table.items() if words}
    values = sorted({value for words in wordings.values() for value in words})
    keys = rng.choices(sorted(wordings), k=rng.choice(LIST_LENGTHS))
    attributes: Attributes = [(key, rng.choice(values)) for key in dict.fromkeys(keys)]
    listed = format_attributes(attributes)
    if rng.random() < 0.5:
        return Conversation.from_turns(f"{listed}\n重复", listed)
    named = "，".join(f"{key}是{value}" for key, value in attributes)
    return Conversation.from_turns(listed, f"{named}。")


def train(model: Any, batches: Iterator[dict[str, Any]], steps: int) -> None:
    """Train all weights."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, (steps - step) / steps)
    )
    start, mean = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        batch = next(batches)
        states = model.model(input_ids=batch["input_ids"], use_cache=False).last_hidden_state
        targets = batch["labels"][:, 1:]
        wanted = targets != -100
        logits = model.lm_head(states[:, :-1][wanted])
        loss: Any = torch.nn.functional.cross_entropy(logits, targets[wanted])
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

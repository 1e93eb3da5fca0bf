"""Trains the tokenizer and the weights of the built-in tiny model and writes its directory.

Run ``python -m ptune.tiny.make --output DIR --exclude examples/AdvertiseGen/dev.json``.  It
takes about 25 minutes on one core and needs only what ptune itself needs: the text comes from
`corpus`, the common characters from the dictionary that jieba brings along.
"""

import argparse
import contextlib
import io
import json
import math
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jieba
import sentencepiece
import torch
from torch import Tensor
from transformers import PreTrainedTokenizer

from ptune.base.folder import Generation
from ptune.base.weights import save_tensors
from ptune.data.examples import TrainCollator
from ptune.data.prompt import Lengths, render
from ptune.data.tokenizer import load_tokenizer
from ptune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from ptune.tiny.corpus import sample_conversation

CONTROL_PIECES = (
    *("[MASK]", "[gMASK]", "[sMASK]", "<unused_0>"),
    *("<sop>", "<eop>", "<ENC>", "<dBLOCK>"),
)
BLANK_PIECES = ("<|tab|>", *(f"<|blank_{count}|>" for count in range(2, 81)))
VOCAB_SIZE = 3328
COMMON_CHARACTERS = 2000
WORD_MARK = "¦"
TOKENIZER_LINES = 6000
HIDDEN_SIZE = 256
NUM_LAYERS = 4
NUM_HEADS = 4
PEAK_LEARNING_RATE = 3e-3
WARMUP_STEPS = 60
EXAMPLES_PER_BATCH = 24
BATCHES_PER_POOL = 16  # drawn together and sorted by length, for little padding

LENGTHS = Lengths(max_source_length=512, max_target_length=256)  # longer than any example


# The trainer writes this name into its model; ice_text.model was made with one of this length.
_SEEDS = "-" * 20


def train_tokenizer(rng: random.Random) -> bytes:
    """Train the SentencePiece model and reorder its pieces as in the official file."""
    frequency: Counter[str] = Counter()
    jieba.setLogLevel("ERROR")
    segmenter = jieba.Tokenizer()  # of our own: a program may have added words to jieba's
    segmenter.initialize()
    for word, count in segmenter.FREQ.items():
        frequency.update(dict.fromkeys(filter(_is_common_han, word), count))
    common = [character for character, _ in frequency.most_common(COMMON_CHARACTERS)]
    ascii_characters = [chr(code) for code in range(33, 127)]
    lines = [list(segmenter.cut(_sample_text(rng))) for _ in range(TOKENIZER_LINES)]
    words = Counter(word for line in lines for word in line if 2 <= len(word) <= 4)
    written = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, _inside(Path(folder)):
        Path(_SEEDS).write_text(
            "".join(f"{word}\t{count}\n" for word, count in words.most_common()), encoding="utf-8"
        )
        sentencepiece.SentencePieceTrainer.train(
            # Marks between words, so that no piece reaches from one into the next.
            sentence_iterator=(WORD_MARK.join(line).replace("\n", "<n>") for line in lines),
            model_writer=written,
            model_type="unigram",
            vocab_size=VOCAB_SIZE,
            hard_vocab_limit=False,
            seed_sentencepieces_file=_SEEDS,
            pretokenization_delimiter=WORD_MARK,
            required_chars="".join([*common, *ascii_characters]),
            control_symbols=list(CONTROL_PIECES),
            user_defined_symbols=["<n>", *BLANK_PIECES],
            pad_id=3,
            byte_fallback=True,
            character_coverage=1.0,
            split_digits=True,
            normalization_rule_name="nmt_nfkc",
            num_threads=1,
            minloglevel=2,
        )
    return reorder_pieces(written.getvalue())


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Work in a folder, so that a path into it does not depend on where it is."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _sample_text(rng: random.Random) -> str:
    conversation = sample_conversation(rng)
    assert conversation.response is not None
    said = [message.content for message in (*conversation.messages, conversation.response)]
    turns = enumerate(zip(said[::2], said[1::2], strict=True))
    return "".join(f"[Round {i}]\n问：{asked}\n答：{answer}\n" for i, (asked, answer) in turns)


def _is_common_han(character: str) -> bool:
    return "\u4e00" <= character <= "\u9fff"


def reorder_pieces(model: bytes) -> bytes:
    """Reorder pieces as in the official ice_text.model; the trainer puts the special ones first.

    The official order is: unk, ``<s>``, ``</s>``, pad, ``<n>``, the vocabulary, the control pieces,
    tab and blanks, the bytes.  Pieces are the fields numbered 1 of the protobuf message.
    """
    fields = list(_split_message(model))
    pieces = [body for number, body in fields if number == 1]
    names = [
        sentencepiece.SentencePieceProcessor(model_proto=model).id_to_piece(i)
        for i in range(len(pieces))
    ]
    body_of = dict(zip(names, pieces, strict=True))
    byte_names = [f"<0x{code:02X}>" for code in range(256)]
    tail = [*CONTROL_PIECES, *BLANK_PIECES, *byte_names]
    head = [*names[:4], "<n>"]
    special = {*head, *tail}
    order = [*head, *(name for name in names if name not in special), *tail]
    return b"".join([body_of[name] for name in order] + [body for n, body in fields if n != 1])


def _split_message(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield number and bytes (tag included) of each length-delimited field."""
    position = 0
    while position < len(message):
        start = position
        tag, position = _read_varint(message, position)
        length, position = _read_varint(message, position)
        position += length
        yield tag >> 3, message[start:position]


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, position


def write_settings(folder: Path) -> None:
    """Write config.json and tokenizer_config.json, with the ids of the tokenizer."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "ice_text.model"))
    config = {
        "_name_or_path": "ptune/tiny-chatglm",
        "architectures": ["ChatGLMModel"],
        "bos_token_id": pieces.piece_to_id("<sop>"),
        "eos_token_id": pieces.piece_to_id("<eop>"),
        "mask_token_id": pieces.piece_to_id("[MASK]"),
        "gmask_token_id": pieces.piece_to_id("[gMASK]"),
        "pad_token_id": pieces.pad_id(),
        "hidden_size": HIDDEN_SIZE,
        "inner_hidden_size": 4 * HIDDEN_SIZE,
        "layernorm_epsilon": 1e-05,
        "max_sequence_length": 2048,
        "model_type": "chatglm",
        "num_attention_heads": NUM_HEADS,
        "num_layers": NUM_LAYERS,
        "position_encoding_2d": True,
        "torch_dtype": "float16",
        "transformers_version": "4.23.1",
        "use_cache": True,
        "vocab_size": math.ceil(len(pieces) / 64) * 64,
    }
    tokenizer_config = {
        "name_or_path": "ptune/tiny-chatglm",
        "bos_token": "<sop>",
        "eos_token": "<eop>",
        "end_token": "</s>",
        "gmask_token": "[gMASK]",
        "mask_token": "[MASK]",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "remove_space": False,
        "do_lower_case": False,
        "tokenizer_class": "ChatGLMTokenizer",
        "num_image_tokens": 0,
    }
    for name, content in (("config", config), ("tokenizer_config", tokenizer_config)):
        text = json.dumps(content, indent=2) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")


def train_model(folder: Path, steps: int, seed: int, excluded: frozenset[str]) -> None:
    """Train the weights from scratch on examples drawn as they are needed, and save them."""
    tokenizer = load_tokenizer(folder)
    torch.manual_seed(seed)
    config = ChatGLMConfig(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
    model = ChatGLMForConditionalGeneration(config).float().train()
    for name, weight in model.named_parameters():
        if weight.dim() == 2 and "embeddings" not in name:
            # A residual scaled by 7.5 asks for larger weights than the usual 0.02.
            torch.nn.init.normal_(weight, std=0.05)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {steps:,} steps")
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP_STEPS, (steps - step) / steps)
    )
    batches = draw_batches(random.Random(seed), tokenizer, excluded)
    start, mean_loss, tokens = time.monotonic(), 0.0, 0
    for step in range(1, steps + 1):
        input_ids, labels = next(batches)
        loss = model(
            input_ids=input_ids, labels=labels, use_cache=False, label_logits_only=True
        ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        mean_loss += (loss.item() - mean_loss) * max(0.02, 1 / step)
        tokens += input_ids.numel()
        if step % 50 == 0 or step == steps:
            seconds = time.monotonic() - start
            print(
                f"step {step:5,}  loss {mean_loss:.4f}  {seconds:5.0f} s  "
                f"{tokens / seconds:,.0f} tokens/s",
                flush=True,
            )
            save_weights(model, folder)


def draw_batches(
    rng: random.Random, tokenizer: PreTrainedTokenizer, excluded: frozenset[str]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches without end: ids `[B, S]`, padded on the right, and their labels."""
    collate = TrainCollator(tokenizer.pad_token_id)
    while True:
        pool = [
            render(tokenizer, Generation.CHATGLM, sample_conversation(rng, excluded), LENGTHS)
            for _ in range(EXAMPLES_PER_BATCH * BATCHES_PER_POOL)
        ]
        pool.sort(key=lambda example: len(example.input_ids))
        starts = list(range(0, len(pool), EXAMPLES_PER_BATCH))
        rng.shuffle(starts)
        for start in starts:
            batch = collate([vars(e) for e in pool[start : start + EXAMPLES_PER_BATCH]])
            yield batch["input_ids"], batch["labels"]


def save_weights(model: ChatGLMForConditionalGeneration, folder: Path) -> None:
    """Write the weights in half precision under the official names, the tied head left out."""
    state = {
        name: tensor.detach().half().contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_tensors(state, folder / "model.safetensors")


def _read_lists(file: Path | None) -> frozenset[str]:
    if file is None:
        return frozenset()
    lines = file.read_text(encoding="utf-8").splitlines()
    return frozenset(json.loads(line)["content"] for line in lines)


def main(words: list[str] | None = None) -> None:
    """Make the model directory that the arguments (by default the command line's) name."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    parser.add_argument("--steps", type=int, default=1600, help="training steps")
    parser.add_argument("--seed", type=int, default=20, help="seed of text and weights")
    parser.add_argument("--threads", type=int, default=1, help="threads to train with")
    parser.add_argument(
        "--exclude", type=Path, help="JSON Lines file whose attribute lists must not be trained on"
    )
    arguments = parser.parse_args(words)
    torch.set_num_threads(arguments.threads)
    arguments.output.mkdir(parents=True, exist_ok=True)
    model_file = train_tokenizer(random.Random(arguments.seed))
    (arguments.output / "ice_text.model").write_bytes(model_file)
    write_settings(arguments.output)
    excluded = _read_lists(arguments.exclude)
    train_model(arguments.output, arguments.steps, arguments.seed + 1, excluded)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()

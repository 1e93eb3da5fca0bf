"""Flags of the original scripts that have another name here, or none, and what to do about them.

They are those of THUDM/ChatGLM-6B and ChatGLM2-6B `ptuning/main.py` and `web_demo.py`, of
transformers' training arguments as people pass them there, and of THUDM/ChatGLM3
`finetune_demo/configs/ptuning_v2.yaml`.  What has the same name needs no row.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

_FLAG = re.compile(r"--([a-z-]+)")
_VALUE = re.compile(r" [A-Z_]+\b")


@dataclass(frozen=True)
class Counterpart:
    """What ptune has for a flag of the original.

    Attributes:
        train: flags of `ptune train`.
        eval: flags of `ptune eval`.
        chat: flags of `ptune chat`.
        note: what to do where no command has a flag for it.
        tune: flags of `ptune tune`, where it is not as with `ptune train`.
    """

    train: str = ""
    eval: str = ""
    chat: str = ""
    note: str = ""
    tune: str = ""

    @property
    def commands(self) -> dict[str, str]:
        """The flags by command, of those that have some."""
        texts = {"train": self.train, "eval": self.eval, "chat": self.chat}
        return {command: text for command, text in texts.items() if text}


def _everywhere(flag: str) -> Counterpart:
    return Counterpart(flag, flag, flag)


def _none(note: str) -> Counterpart:
    return Counterpart(note=note)


_FROM_MODEL = _none("leave it out: configuration and tokenizer come with the model")
_FROM_CHECKPOINT = _none("leave it out: it is read from the checkpoint")
_AS_THERE = _none("leave it out: it is as in the original's scripts")
_NO_WORKERS = _none("leave it out: no workers are needed")
_SECTIONS = _none("there are no sections: write ptune's settings one below the other")
_FLOAT16, _BFLOAT16 = _everywhere("--dtype float16"), _everywhere("--dtype bfloat16")
_INPUT = "--max-source-length N"
_NEW_TOKENS = "--max-new-tokens N"

COUNTERPARTS = {
    "model_name_or_path": _everywhere("--model DIR"),
    "ptuning_checkpoint": Counterpart("--init-prefix DIR", "--checkpoint DIR", "--checkpoint DIR"),
    "config_name": _FROM_MODEL,
    "tokenizer_name": _FROM_MODEL,
    "use_fast_tokenizer": _FROM_MODEL,
    "model_revision": _FROM_MODEL,
    "resize_position_embeddings": _FROM_MODEL,
    "trust_remote_code": _none("leave it out: no code of the model's folder is run"),
    "use_auth_token": _none("leave it out: run `hf auth login` once"),
    "cache_dir": _none("set the environment variable HF_HUB_CACHE"),
    "pre_seq_len": Counterpart(note=_FROM_CHECKPOINT.note, tune="--lengths A,B,C"),
    "prefix_projection": _FROM_CHECKPOINT,
    "num_virtual_tokens": Counterpart(train="--pre-seq-len N"),
    "lang": _none("leave it out: it did nothing"),
    "dataset_name": Counterpart("--data FILE", "--data FILE"),
    "dataset_config_name": Counterpart("--data FILE", "--data FILE"),
    "train_file": Counterpart(train="--data FILE"),
    "validation_file": Counterpart("--eval-data FILE", "--data FILE"),
    "val_file": Counterpart("--eval-data FILE", "--data FILE"),
    "test_file": Counterpart(eval="--data FILE"),
    "overwrite_cache": _none("leave it out: a change of data or settings is noticed"),
    "preprocessing_num_workers": _NO_WORKERS,
    "dataloader_num_workers": _NO_WORKERS,
    "num_proc": _NO_WORKERS,
    "max_input_length": Counterpart(_INPUT, _INPUT),
    "max_output_length": Counterpart("--max-target-length N", _NEW_TOKENS, _NEW_TOKENS),
    "max_target_length": Counterpart(eval=_NEW_TOKENS, chat=_NEW_TOKENS),
    "val_max_target_length": Counterpart(eval=_NEW_TOKENS, chat=_NEW_TOKENS),
    "generation_max_length": Counterpart(eval=_NEW_TOKENS, chat=_NEW_TOKENS),
    "max_length": Counterpart(eval=_NEW_TOKENS, chat=_NEW_TOKENS),
    "pad_to_max_length": _none("leave it out: a batch is as wide as its longest record"),
    "max_train_samples": _none("write the first records into a file of their own"),
    "max_eval_samples": Counterpart(eval="--max-samples N"),
    "max_predict_samples": Counterpart(eval="--max-samples N"),
    "num_beams": _none("leave it out: answers are greedy or sampled"),
    "generation_num_beams": _none("leave it out: answers are greedy or sampled"),
    "ignore_pad_token_for_loss": _none("leave it out: padding is never learnt"),
    "source_prefix": _none("write it into the prompts of the data"),
    "forced_bos_token": _none("leave it out: it did nothing"),
    "do_train": _none("leave it out: `ptune train` does it"),
    "do_eval": Counterpart(train="--eval-data FILE"),
    "do_predict": _none("leave it out: `ptune eval` does it"),
    "predict_with_generate": _none("leave it out: `ptune eval` does it"),
    "prompt": _none("give it to `ptune chat` without a flag"),
    "output_dir": Counterpart("--output DIR", "--output DIR"),
    "overwrite_output_dir": Counterpart("--fresh", "--output NEW_DIR"),
    "per_device_train_batch_size": Counterpart(
        train="--micro-batch-size N, and --batch-size N for the records of a whole step"
    ),
    "per_device_eval_batch_size": Counterpart(eval="--batch-size N"),
    "gradient_accumulation_steps": Counterpart(
        train="--batch-size N for the records of a whole step, and --micro-batch-size N"
    ),
    "num_train_epochs": Counterpart(train="--epochs X"),
    "resume_from_checkpoint": Counterpart(train="--resume"),
    "load_best_model_at_end": Counterpart(train="--load-best"),
    "evaluation_strategy": Counterpart(train="--eval-steps N"),
    "eval_strategy": Counterpart(train="--eval-steps N"),
    "save_strategy": Counterpart(train="--save-steps N"),
    "logging_strategy": Counterpart(train="--logging-steps N"),
    "logging_dir": Counterpart(train="--output DIR"),
    "log_level": _none("leave it out: errors are one line, and --debug shows where from"),
    "save_safetensors": _none("leave it out: checkpoints are .safetensors files"),
    "warmup_ratio": Counterpart(train="--warmup-steps N"),
    "lr_scheduler_type": _AS_THERE,
    "weight_decay": _AS_THERE,
    "max_grad_norm": _AS_THERE,
    "optim": _AS_THERE,
    "remove_unused_columns": _AS_THERE,
    "data_seed": Counterpart(train="--seed N"),
    "fp16": _FLOAT16,
    "fp16_full_eval": _FLOAT16,
    "bf16": _BFLOAT16,
    "bf16_full_eval": _BFLOAT16,
    "no_cuda": _everywhere("--device cpu"),
    "use_cpu": _everywhere("--device cpu"),
    "local_rank": _none("leave it out: torchrun sets it"),
    "deepspeed": _none("leave it out: `--gpus N` is for several cards"),
    "data_config": _SECTIONS,
    "training_args": _SECTIONS,
    "peft_config": _SECTIONS,
}


def advice(name: str, command: str, settings: Collection[str], yaml: bool = False) -> str | None:
    """Say what to use for a flag of the original.

    Args:
        name: with `_`.
        command: that was given it.
        settings: that this command has, by name.
        yaml: name them as the YAML file has them.

    Returns:
        Words to follow `; `, or None if the original has no such flag.
    """
    if (counterpart := COUNTERPARTS.get(name)) is None:
        return None
    if command == "tune" and counterpart.tune:
        return f"use {counterpart.tune}"
    by_command = counterpart.commands
    # `preview`, `merge`, ... have the flags of the commands they prepare or follow.
    others = () if command in ("train", "eval", "chat") else by_command.values()
    if text := by_command.get(command) or next((t for t in others if _setting(t) in settings), ""):
        if yaml:
            text = _FLAG.sub(lambda flag: flag[1].replace("-", "_"), _VALUE.sub("", text))
        return f"use {text}"
    for other, text in by_command.items():
        return f"`ptune {other}` has {text} for it"
    return counterpart.note


def _setting(text: str) -> str:
    """The setting of the first flag in a text."""
    match = _FLAG.match(text)
    return match[1].replace("-", "_") if match else ""

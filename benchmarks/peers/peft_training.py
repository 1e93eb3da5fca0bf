"""A training step of PEFT's PrefixTuning on a GPT-2 of the same shape and vocabulary.

`python peft_training.py TASK.json`, in an environment with peft.  GPT-2 is the model of
transformers whose block comes nearest to ChatGLM-6B's: two layer norms, biases everywhere, an MLP
of two matrices around GELU.  Records are padded to the longest of the batch, logits are computed
everywhere, as its users get it; all records of a step are one batch.
"""

from __future__ import annotations

from typing import Any

import peft
import torch
import transformers
from protocol import read_task, serve
from training_loop import Records, TrainingLoop


def make_model(task: dict[str, Any]) -> Any:
    """Make a model with random weights and a prefix."""
    c = task["config"]
    config = transformers.GPT2Config(
        vocab_size=c["vocab_size"],
        n_positions=1024,
        n_embd=c["hidden_size"],
        n_layer=c["num_layers"],
        n_head=c["num_attention_heads"],
        n_inner=c["inner_hidden_size"],
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
    )
    prefix = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=task["pre_seq_len"], prefix_projection=False
    )
    return peft.get_peft_model(transformers.GPT2LMHeadModel(config), prefix).train()


def main() -> None:
    task = read_task()
    torch.set_num_threads(task["threads"])
    torch.manual_seed(0)
    model = make_model(task)

    def backward(records: Records) -> None:
        width = max(len(r["input_ids"]) for r in records)
        missing = [width - len(r["input_ids"]) for r in records]
        rows = list(zip(records, missing, strict=True))
        model(
            input_ids=torch.tensor([r["input_ids"] + [0] * n for r, n in rows]),
            attention_mask=torch.tensor([[1] * (width - n) + [0] * n for n in missing]),
            labels=torch.tensor([r["labels"] + [-100] * n for r, n in rows]),
        ).loss.backward()

    loop = TrainingLoop(model, task["records"], task["batch_size"], backward)
    versions = {"peft": peft.__version__, "transformers": transformers.__version__}
    serve(loop.step, torch=torch.__version__, **versions)


if __name__ == "__main__":
    main()

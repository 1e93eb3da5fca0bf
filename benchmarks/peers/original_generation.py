"""Generation by the original ChatGLM-6B code, a record at a time, as its `ptuning/main.py` has it.

`python original_generation.py TASK.json`, in an environment with transformers 4.27.1.  The task's
`peer` is a folder with `modeling_chatglm.py` and `configuration_chatglm.py`, its `prompts` are ids,
`lengths` the number of new tokens of each.  A step generates for all of them.
"""

from __future__ import annotations

import time

import torch
import transformers
from original_training import make_model
from protocol import read_task, serve


def main() -> None:
    task = read_task()
    torch.set_num_threads(task["threads"])
    torch.manual_seed(0)
    model = make_model(task | {"half": False}).eval()
    model.gradient_checkpointing_disable()

    def step(number: int) -> float:
        begin = time.perf_counter()
        for prompt, length in zip(task["prompts"], task["lengths"], strict=True):
            ids = torch.tensor([prompt])
            end = ids.shape[1] + length
            new = model.generate(input_ids=ids, max_length=end, do_sample=False, eos_token_id=None)
            assert new.shape[1] == end
        return time.perf_counter() - begin

    serve(step, torch=torch.__version__, transformers=transformers.__version__)


if __name__ == "__main__":
    main()

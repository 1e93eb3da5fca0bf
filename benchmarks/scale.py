"""Scaling of time with sequence lengths, batch size and number of records.

    python benchmarks/scale.py [--device cpu] [--runs 3] [--json FILE] [--picture FILE.svg]

Forward and backward of one batch of a random ChatGLM (on the CPU one thread, hidden size 128, 4
layers, float32; on a card the real shape in bfloat16) while one thing grows: tokens of the prompt,
of the prefix, records at once.  The sizes take turns; medians after a warm-up.  And the preparing
of data files by `prepare_examples`, anew and from the cache (which small data bypasses).

Beside each stands what theory says, scaled to the last point.  With `s` text tokens, prefix `p`,
`L` layers, hidden size `h` (MLP 4h), vocabulary `V` and `t` labels, a record takes in
multiplications `L (12 s h^2 + 2 s (s + p) h) + t h V`, in proportion forward and backward; the
batch multiplies it.  Data takes time in proportion to the records.  A curve above theory at small
sizes is the fixed cost of a step.  The picture needs matplotlib; nothing else here does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ptune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from ptune.models.prefix_encoder import PrefixEncoder

HERE = Path(__file__).resolve().parent
ADVERTS = HERE.parent / "examples/AdvertiseGen/train.json"
SMALL = {"hidden_size": 128, "inner_hidden_size": 512, "num_layers": 4, "num_attention_heads": 4}
SMALL |= {"vocab_size": 2048, "mask_token_id": 2000, "gmask_token_id": 2001}
SMALL |= {"bos_token_id": 2004, "eos_token_id": 2005}
SOURCES = (64, 128, 256, 512, 1024, 2048)
PREFIXES = (8, 16, 32, 64, 128, 256, 512)
BATCHES = (1, 4, 16, 64, 256)
RECORDS = (1_000, 10_000, 100_000)
TARGET, PREFIX, SOURCE = 64, 128, 64
Row = dict[str, Any]


def make_model(device: torch.device) -> Any:
    """A frozen model with random weights on the device."""
    torch.manual_seed(0)
    config = ChatGLMConfig(**SMALL) if device.type == "cpu" else ChatGLMConfig()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if device.type == "cpu" else torch.bfloat16)
    with device:
        model: Any = ChatGLMForConditionalGeneration(config)
    torch.set_default_dtype(before)
    model.tie_weights()
    return model.requires_grad_(False).train()


def step_seconds(model: Any, source: int, prefix: int, rows: int) -> float:
    """Seconds of forward and backward of one batch."""
    config, device = model.config, model.device
    with device:
        model.base_model.prefix_encoder = PrefixEncoder(model.base_model.prefix_shape, prefix)
    ids = torch.randint(10, 1900, (rows, source + TARGET), device=device)
    ids[:, source - 2], ids[:, source - 1] = config.gmask_token_id, config.bos_token_id
    labels = ids.clone()
    labels[:, :source] = -100
    start = time.perf_counter()
    model(
        input_ids=ids,
        labels=labels,
        use_cache=False,
        label_logits_only=True,
        num_items_in_batch=rows * TARGET,
    ).loss.backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def multiplications(config: Any, source: int, prefix: int, rows: int) -> float:
    """Of one forward, by the formula above."""
    text, hidden = source + TARGET, config.hidden_size
    layer = 12 * text * hidden**2 + 2 * text * (text + prefix) * hidden
    return rows * (config.num_layers * layer + TARGET * hidden * config.vocab_size)


def grow(
    what: str,
    sizes: tuple[int, ...],
    seconds: Callable[[int], float],
    cost: Callable[[int], float],
    runs: int = 0,
) -> list[Row]:
    """Measure while one thing grows, up to what memory holds.

    Args:
        what: grows.
        sizes: how far.
        seconds: of one run of a size.
        cost: of a size, in any unit.
        runs: rounds over all sizes, after one to warm up; 0 for a single one.
    """
    took: dict[int, list[float]] = {size: [] for size in sizes}
    for number in range(runs + 1):
        for size in list(took):
            try:
                found = seconds(size)
            except torch.OutOfMemoryError:
                print(f"{what:24} {size:7}  out of memory")
                took = {smaller: times for smaller, times in took.items() if smaller < size}
                break
            if number or not runs:
                took[size].append(found)
    last = max(took)
    slowest = statistics.median(took[last])
    rows = []
    for size, times in took.items():
        median, theory = statistics.median(times), cost(size) / cost(last) * slowest
        rows.append({"what": what, "size": size, "seconds": median, "theory": theory})
        print(f"{what:24} {size:7}  {median:9.4f} s  theory {theory:9.4f} s", flush=True)
    return rows


PREPARE = """
import sys, time
from pathlib import Path
from ptune.base.folder import find_base_model
from ptune.data.example_cache import prepare_examples
from ptune.data.prompt import Lengths
from ptune.data.schemas import Columns
from ptune.data.tokenizer import build_tokenizer

base = find_base_model("tiny", weights=False)
tokenizer = build_tokenizer(base)
for _ in range(2):
    start = time.perf_counter()
    prepare_examples(
        [Path(sys.argv[1])], Columns(), False, tokenizer, base.generation, Lengths(64, 64)
    )
    print(time.perf_counter() - start)
"""


def prepare_seconds(records: int) -> tuple[float, float]:
    """Seconds to prepare so many records with an empty cache, and again."""
    lines = ADVERTS.read_text(encoding="utf-8").splitlines()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.json"
        with file.open("w", encoding="utf-8") as stream:
            stream.writelines(lines[i % len(lines)] + "\n" for i in range(records))
        run = subprocess.run(
            [sys.executable, "-c", PREPARE, str(file)],
            env={**os.environ, "XDG_CACHE_HOME": folder},
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
    anew, again = map(float, run.stdout.split())
    return anew, again


def measure(device: torch.device, runs: int) -> list[Row]:
    model = make_model(device)
    rows: list[Row] = []
    steps = [
        ("tokens of the prompt", SOURCES, lambda n: (n, PREFIX, 4)),
        ("tokens of the prefix", PREFIXES, lambda n: (SOURCE, n, 4)),
        ("records at once", BATCHES, lambda n: (SOURCE, PREFIX, n)),
    ]
    for what, sizes, shape in steps:
        rows += grow(
            what,
            sizes,
            lambda n, shape=shape: step_seconds(model, *shape(n)),
            lambda n, shape=shape: multiplications(model.config, *shape(n)),
            runs,
        )
    prepared = {count: prepare_seconds(count) for count in RECORDS}
    rows += grow("records prepared", RECORDS, lambda n: prepared[n][0], float)
    # What is left then is the reading of files, to know that they are the same.
    rows += grow("records from the cache", RECORDS[1:], lambda n: prepared[n][1], float)
    return rows


def draw(rows: list[Row], file: Path) -> None:
    """One panel a question: measured and theory, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams |= {"svg.hashsalt": "ptune", "svg.fonttype": "none"}
    from matplotlib import pyplot

    names = list(dict.fromkeys(row["what"] for row in rows))
    figure, axes = pyplot.subplots(1, len(names), figsize=(3.2 * len(names), 3), layout="tight")
    for axis, name in zip(axes, names, strict=True):
        found = [row for row in rows if row["what"] == name]
        sizes = [row["size"] for row in found]
        axis.loglog(sizes, [row["theory"] for row in found], "--", color="0.6", label="theory")
        axis.loglog(sizes, [row["seconds"] for row in found], "o-", label="measured")
        axis.set_xlabel(name)
        axis.set_ylabel("seconds")
        axis.legend(frameon=False)
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--picture", type=Path, help="draw the curves, .svg or .png")
    parser.add_argument("--from-json", type=Path, help="draw these figures, measure nothing")
    arguments = parser.parse_args()
    if arguments.from_json:
        rows = json.loads(arguments.from_json.read_text(encoding="utf-8"))["rows"]
    else:
        device = torch.device(arguments.device)
        torch.set_num_threads(1)  # waiting for one another on shared cores hides the curve
        rows = measure(device, arguments.runs)
        found = {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            "torch": torch.__version__,
            "rows": rows,
        }
        if arguments.json:
            arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if arguments.picture:
        draw(rows, arguments.picture)


if __name__ == "__main__":
    main()

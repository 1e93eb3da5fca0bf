"""Load time and peak memory of a base model, beside the disk's throughput.

    python benchmarks/load.py --model DIR [--device cpu] [--precisions float16 8 4] [--runs 3]
    python benchmarks/load.py --make DIR [--format bin] [--layers 28]     # random, 12 GB

Each load is a process of its own, and each is preceded by a plain reading of the same files in
blocks of 8 MiB.  `cold`: the system was asked to drop the files from its cache (`posix_fadvise`,
which it may decline; the speed of reading shows whether it did); `warm`: they have just been read.
Half-precision weights of a file are mapped on the CPU and not read; so there, the time includes
touching every page of them.

Anonymous memory is what the process has asked for itself, above what it had before; pages of
mapped files are not in it.  `first use` is how long probing the dequantization backends took
before the load; later processes find the result in the cache.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

BLOCK = 8 * 2**20
SHARD = 2 * 10**9
GB = 10**9
PRECISIONS = ("float16", "bfloat16", "8", "4")


def weight_files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.bin"), *folder.glob("*.safetensors")])


def make_checkpoint(folder: Path, format: str, layers: int) -> None:
    """Write random weights in ChatGLM-6B's shape and official layout, shard by shard."""
    import torch

    from ptune.base.architecture import RELEASED
    from ptune.base.folder import BaseModel, Generation
    from ptune.base.weights import save_tensors
    from ptune.models.build import empty_model

    config = RELEASED["chatglm-6b"] | {"num_layers": layers, "model_type": "chatglm"}
    model, _ = empty_model(BaseModel("random", folder, config, Generation.CHATGLM))
    folder.mkdir(parents=True)
    stem = "pytorch_model" if format == "bin" else "model"
    shard: dict[str, torch.Tensor] = {}
    placed: dict[str, str] = {}

    def write() -> None:
        name = f"{stem}-{len(set(placed.values())) + 1:05}.{format}"
        placed.update(dict.fromkeys(shard, name))
        if format == "bin":
            torch.save(dict(shard), folder / name)
        else:
            save_tensors(shard, folder / name)
        shard.clear()

    for name, parameter in model.named_parameters():
        if name.startswith("lm_head."):
            continue
        shard[name] = torch.randn(parameter.shape, dtype=torch.float16) * 0.02
        if sum(tensor.nbytes for tensor in shard.values()) >= SHARD:
            write()
    write()
    index = {"metadata": {}, "weight_map": placed}
    suffix = "bin" if format == "bin" else "safetensors"
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))


def drop_from_page_cache(files: list[Path]) -> bool:
    """Ask the system to drop files from the page cache; whether it can be asked at all."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for file in files:
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def read_all(files: list[Path]) -> float:
    """Seconds to read files from beginning to end."""
    buffer = bytearray(BLOCK)
    start = time.perf_counter()
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass
    return time.perf_counter() - start


def anonymous_bytes() -> int:
    """Memory of this process that no file is behind; Linux only."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def load_once(folder: Path, device_name: str, precision: str, read_ahead: bool) -> dict[str, Any]:
    """Load the model in this process; returns seconds and memory."""
    import torch

    from ptune.base import weights
    from ptune.base.folder import find_base_model
    from ptune.models.build import build_model

    if not read_ahead:
        weights._fetch = lambda file: None
    device = torch.device(device_name)
    bits = precision if precision.isdigit() else None
    half = torch.float16 if device.type == "cpu" else torch.bfloat16
    dtype = half if bits else getattr(torch, precision)
    base = find_base_model(folder)
    first_use = 0.0
    if device.type == "cuda":
        torch.zeros(1, device=device)
        if bits:
            from ptune.quantization.backends.fallback import choose_backend

            start = time.perf_counter()
            choose_backend(None, device)
            first_use = time.perf_counter() - start
    before = peak = anonymous_bytes()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    model = build_model(base, dtype, device, bits)
    if device.type == "cuda":
        torch.cuda.synchronize()
    else:
        for parameter in model.parameters():
            parameter.data.view(-1).view(torch.uint8)[::4096].sum()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    held = sum(p.nbytes for p in model.parameters())
    return {
        "seconds": seconds,
        "peak_anonymous": peak - before,
        "model_bytes": held,
        "first_use": first_use,
    }


def load_in_subprocess(arguments: argparse.Namespace, precision: str) -> dict[str, Any]:
    """`load_once` in a subprocess."""
    command = [sys.executable, __file__, "--model", str(arguments.model), "--child", precision]
    command += ["--device", arguments.device]
    command += [] if arguments.read_ahead else ["--no-read-ahead"]
    run = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return dict(json.loads(run.stdout.splitlines()[-1]))


def measure(arguments: argparse.Namespace, precision: str, cold: bool) -> dict[str, Any]:
    """Medians of loading, and of a plain reading of the same files just before."""
    files = weight_files(arguments.model)
    size = sum(file.stat().st_size for file in files)
    disk, loads = [], []
    for _ in range(arguments.runs):
        if cold:
            drop_from_page_cache(files)
        disk.append(read_all(files))
        if cold:
            drop_from_page_cache(files)
        loads.append(load_in_subprocess(arguments, precision))
    reading = statistics.median(disk)
    seconds = statistics.median(load["seconds"] for load in loads)
    return {
        "precision": precision,
        "cache": "cold" if cold else "warm",
        "disk_seconds": reading,
        "disk_bytes_per_second": size / reading,
        "seconds": seconds,
        "times_reading": seconds / reading,
        "peak_anonymous": max(load["peak_anonymous"] for load in loads),
        "model_bytes": loads[0]["model_bytes"],
        "first_use": loads[0]["first_use"],
    }


def machine(device: str) -> dict[str, Any]:
    import torch

    card = torch.cuda.get_device_name() if device.startswith("cuda") else None
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "card": card,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="folder of a base model")
    parser.add_argument("--make", type=Path, metavar="DIR", help="write a random one and stop")
    parser.add_argument("--format", choices=["bin", "safetensors"], default="bin")
    parser.add_argument("--layers", type=int, default=28, help="of the one that is made")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--precisions", nargs="+", choices=PRECISIONS, default=["float16", "8", "4"]
    )
    parser.add_argument("--caches", nargs="+", choices=["cold", "warm"], default=["cold", "warm"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--no-read-ahead", dest="read_ahead", action="store_false")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not (arguments.model or arguments.make):
        parser.error("name a --model, or --make one")
    if arguments.model and not weight_files(arguments.model):
        parser.error(f"no weight files in {arguments.model}; --make some")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    if arguments.make:
        make_checkpoint(arguments.make, arguments.format, arguments.layers)
        return
    if arguments.child:
        found = load_once(arguments.model, arguments.device, arguments.child, arguments.read_ahead)
        print(json.dumps(found))
        return
    size = sum(file.stat().st_size for file in weight_files(arguments.model))
    print(f"{size / GB:.1f} GB in {arguments.model.name}, to {arguments.device}")
    print(
        f"{'weights':9} {'cache':5} {'reading':>9} {'GB/s':>6} {'loading':>9} {'ratio':>6} "
        f"{'anonymous peak':>15} {'model':>8} {'first use':>10}"
    )
    rows = []
    for precision in arguments.precisions:
        for cache in arguments.caches:
            row = measure(arguments, precision, cache == "cold")
            rows.append(row)
            print(
                f"{precision:9} {cache:5} {row['disk_seconds']:7.2f} s "
                f"{row['disk_bytes_per_second'] / GB:6.2f} {row['seconds']:7.2f} s "
                f"{row['times_reading']:6.2f} {row['peak_anonymous'] / GB:12.2f} GB "
                f"{row['model_bytes'] / GB:5.2f} GB {row['first_use']:8.1f} s",
                flush=True,
            )
    if arguments.json:
        found = {"machine": machine(arguments.device), "bytes": size, "rows": rows}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

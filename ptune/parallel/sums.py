"""What the processes of a run know together: sums, and whether they have the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ptune.errors import ConfigError
from ptune.parallel.processes import process_count, process_number

_SHOWN = 60  # characters of what is not the same


def sum_over_processes(tensors: Sequence[Tensor]) -> None:
    """Add tensors up over all processes, in place and in one all-reduce.

    Args:
        tensors: of the same shapes in every process, and on one device; summed in float32.
    """
    flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
    dist.all_reduce(flat)
    totals = torch.split(flat, [tensor.numel() for tensor in tensors])
    for tensor, total in zip(tensors, totals, strict=True):
        tensor.copy_(total.view_as(tensor))


def check_same(contents: Mapping[str, str], device: torch.device) -> None:
    """See that all processes have the same, which may be files of different machines.

    Args:
        contents: as text, by what they are; of the same names in every process.
        device: of the process group.

    Raises:
        ConfigError: in every process, naming the first that differs.
    """
    digests = [list(hashlib.sha256(text.encode()).digest()) for text in contents.values()]
    own = torch.tensor(digests, dtype=torch.uint8, device=device)
    found = [torch.empty_like(own) for _ in range(process_count())]
    dist.all_gather(found, own)
    for number, theirs in enumerate(found):
        for name, mine, other in zip(contents, found[0], theirs, strict=True):
            if not torch.equal(mine, other):
                here = contents[name]
                shown = f", here {here}" if len(here) <= _SHOWN else ""
                raise ConfigError(
                    f"process {number} has another {name} than process 0 (this is process "
                    f"{process_number()}{shown}); give every process the same command and files"
                )

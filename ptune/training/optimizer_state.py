"""The optimizer's state in a checkpoint: plain tensors, nothing pickled."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ptune.base.weights import save_tensors
from ptune.errors import CheckpointError

OPTIMIZER_FILE = "optimizer.safetensors"


def save_optimizer(
    optimizer: Any, parameters: Iterable[tuple[str, nn.Parameter]], folder: Path
) -> None:
    """Write the state of each parameter as `<name>/<what>`, such as `embedding.weight/exp_avg`.

    Args:
        optimizer: of torch; what it keeps of a parameter is tensors.
        parameters: those it trains, by name.
        folder: of the checkpoint.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters:
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}/{key}"] = value.detach().cpu().contiguous()
    save_tensors(tensors, folder / OPTIMIZER_FILE)


def load_optimizer(
    optimizer: Any, parameters: Iterable[tuple[str, nn.Parameter]], folder: Path, instead: str
) -> None:
    """Read what `save_optimizer` has written.

    Args:
        optimizer: of torch.
        parameters: those it trains, by name.
        folder: of the checkpoint.
        instead: what to do where that cannot be.

    Raises:
        CheckpointError: the file is missing, damaged, or of another optimizer.
    """
    file = folder / OPTIMIZER_FILE
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); {instead}") from error
    for name, parameter in parameters:
        state = {}
        for stored in [stored for stored in tensors if stored.startswith(f"{name}/")]:
            tensor, key = tensors.pop(stored), stored.rpartition("/")[2]
            if tensor.dim() and tensor.shape != parameter.shape:
                raise CheckpointError(
                    f"{stored} {list(tensor.shape)} in {file} does not fit what is trained, "
                    f"which has {list(parameter.shape)}; {instead}"
                )
            # A count of steps stays where the optimizer has it, on the CPU.
            state[key] = tensor.to(parameter.device) if tensor.dim() else tensor
        if state:
            optimizer.state[parameter] = state
    if tensors:
        raise CheckpointError(
            f"{file} holds {', '.join(sorted(tensors)[:3])}, which is of nothing that is "
            f"trained; {instead}"
        )

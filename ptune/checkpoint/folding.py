"""A LoRA folded into the weights of its base, tensor by tensor: `W + s B A`.

The sum is computed in float32 and kept in the precision of the file.  Shapes are those of
`models/lora.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion
from transformers.pytorch_utils import Conv1D

from ptune.base.folder import BaseModel, Generation
from ptune.base.weights import TensorHeader, is_finite
from ptune.checkpoint.lora import check_fits, read_lora
from ptune.errors import CheckpointError

Renaming = Callable[[str, Tensor], dict[str, Tensor]]


class Folding:
    """Adds a LoRA to the weights of a folder, under the names and in the layout of its files.

    Args:
        base: whose weights they are.
        folder: of the checkpoint.
        model: of the base, without storage.
        rename: official tensors to those of the model, from `empty_model`.
        headers: of the files.

    Raises:
        CheckpointError: no LoRA is there, it is one of another model, or the files hold its
            weights in another layout than the library writes.
    """

    def __init__(
        self,
        base: BaseModel,
        folder: Path,
        model: Any,
        rename: Renaming,
        headers: Mapping[str, TensorHeader],
    ) -> None:
        self._form, self._tensors = read_lora(folder)
        check_fits(self._form, self._tensors, model, folder, base)
        self._model, self._folder = model, folder
        self._fuses = base.generation not in (Generation.CHATGLM, Generation.NATIVE)
        meant = {f"{module}.weight" for module in self._form.modules}
        self._parts: dict[str, list[str]] = {}  # what each tensor of the files becomes
        for name, header in headers.items():
            whole = torch.empty(header.shape, device="meta")
            parts = [self._in_model(part, meant) for part in rename(name, whole)]
            if meant & set(parts):
                self._parts[name] = parts
        found = {part for parts in self._parts.values() for part in parts}
        if lost := sorted(meant - found):
            raise CheckpointError(
                f"{lost[0]}, beside which the LoRA in {folder} stands, is in no file of "
                f"{base.path} under that name; save the base with transformers' save_pretrained, "
                "and pass that folder with --model"
            )

    def _in_model(self, name: str, meant: set[str]) -> str:
        """A name of a file as the model has it: files may leave the decoder's name out."""
        outer = f"{self._model.base_model_prefix}."
        choices = (name, outer + name, name.removeprefix(outer))
        return next((choice for choice in choices if choice in meant), name)

    def fold(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of the files with the LoRA in it; as it is where none stands beside it.

        Raises:
            CheckpointError: the sum leaves the range of the file's precision.
        """
        if name not in self._parts:
            return tensor
        deltas = {part: self._delta(part.removesuffix(".weight")) for part in self._parts[name]}
        if self._fuses:  # queries, keys and values are one tensor in the files
            deltas = revert_weight_conversion(self._model, deltas)
        (delta,) = deltas.values()
        folded = (tensor.float() + delta).to(tensor.dtype)
        if not is_finite(folded) and is_finite(tensor):
            raise CheckpointError(
                f"{name} with the LoRA in {self._folder} folded into it is beyond "
                f"{str(tensor.dtype).removeprefix('torch.')}; take another checkpoint, or a base "
                "model in a wider precision with --model"
            )
        return folded

    def _delta(self, module: str) -> Tensor:
        """`s B A` `[out, in]`, or the other way round where the model has it so; zeros without."""
        layer = self._model.get_submodule(module)
        if module not in self._form.modules:
            return torch.zeros(layer.weight.shape)
        a, b = (self._tensors[f"{module}.lora_{matrix}.weight"] for matrix in "AB")
        delta = self._form.scale * (b @ a)
        return delta.T if isinstance(layer, Conv1D) else delta

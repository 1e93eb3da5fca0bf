"""Dynamic loss scaling for float16."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

_NAME = "LossScale"


class LossScale(TrainerCallback, ExportableState):  # type: ignore[misc]
    """A factor on the loss, divided out of the gradients before they are used.

    The rule is that of "Mixed Precision Training" (arXiv:1710.03740, section 3.2) with the
    constants of torch.amp.GradScaler: halved at an overflow, doubled after 2,000 steps without one.
    It is a number and no tensor because `FiniteGuard` synchronizes with the device once a step
    anyway; so it works on every device, and trainer_state.json carries it into a resumed run.

    Attributes:
        factor: a power of two.
        good_steps: steps without overflow since it was last changed.
    """

    GROWTH_INTERVAL = 2000

    def __init__(self) -> None:
        self.factor = 2.0**16
        self.good_steps = 0

    def update(self, overflow: bool) -> None:
        """Update the factor after a step with a finite loss.

        Args:
            overflow: whether its gradient was not finite.
        """
        if overflow:
            self.factor, self.good_steps = self.factor / 2, 0
            return
        self.good_steps += 1
        if self.good_steps == self.GROWTH_INTERVAL:
            self.factor, self.good_steps = self.factor * 2, 0

    def state(self) -> dict[str, Any]:
        """Its state in a checkpoint."""
        return {"args": {}, "attributes": {"factor": self.factor, "good_steps": self.good_steps}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Load the state of the checkpoint that is resumed."""
        # A checkpoint of a run in another precision has none; the library wants one at its place.
        saved = state.stateful_callbacks.setdefault(_NAME, self.state())
        self.factor = float(saved["attributes"]["factor"])
        self.good_steps = int(saved["attributes"]["good_steps"])

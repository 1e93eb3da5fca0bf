"""A decode step captured as a CUDA graph and replayed.

Launching a model's thousand small kernels one by one takes longer than they run; a graph is
launched at once.  https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable

import torch
from torch import Tensor

logger = logging.getLogger("ptune")


class StepGraph:
    """Runs a function: eagerly the first time, captured the second, replayed from then on.

    Args:
        run: reads and writes the same tensors each time, and never synchronizes with the device.
        device: where it runs; without CUDA, nothing is captured.
        capture: whether to capture at all.
    """

    def __init__(
        self, run: Callable[[], Tensor], device: torch.device, capture: bool = True
    ) -> None:
        self._run = run
        self._captures = capture and device.type == "cuda"
        self._stream: torch.cuda.Stream | None = None
        if self._captures:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._warm = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Tensor | None = None

    @property
    def captures(self) -> bool:
        """Whether steps are captured, so that the tensors they use must stay where they are."""
        return self._captures

    def reset(self) -> None:
        """Drop the graph, because a tensor that it uses has been replaced."""
        self._warm, self._graph, self._result = False, None, None

    def __call__(self) -> Tensor:
        """Run once; the result is overwritten by the next call."""
        if not self._captures:
            return self._run()
        if self._graph is None and not self._warm:
            self._warm = True
            return self._warm_up()
        if self._graph is None:
            self._capture()
        if self._graph is None or self._result is None:
            return self._run()
        self._graph.replay()
        return self._result

    def _warm_up(self) -> Tensor:
        """Run eagerly: kernels are compiled and memory is allocated, which capture forbids."""
        assert self._stream is not None
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = self._run()
        current.wait_stream(self._stream)
        result.record_stream(current)
        return result

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        # Another graph that is collected during capture would break the capture.
        gc.collect()
        gc.disable()
        try:
            # Other threads (a server's, a progress bar's) may call CUDA meanwhile.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._result = self._run()
            self._graph = graph
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._captures = False
            # Ending a failed capture fails, too; the reason is the error before.
            reason = str(error.__context__ or error).strip().splitlines()[0]
            logger.warning("no CUDA graph of a step (%s); generating without, slower", reason)
            self._detach_generator()
        finally:
            gc.enable()

    def _detach_generator(self) -> None:
        """Detach the card's random generator from a failed capture, which never releases it."""
        assert self._stream is not None
        generator = torch.cuda.default_generators[self._stream.device.index]
        generator.graphsafe_set_state(generator.clone_state())

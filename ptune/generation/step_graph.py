"""A step that is the same from token to token, recorded as a CUDA graph and replayed.

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
    """Calls a function: as it is the first time, recorded the second, replayed from then on.

    Args:
        run: reads and writes the same tensors each time, and never waits for the device.
        device: where it runs; without CUDA, nothing is recorded.
        record: whether to record at all.
    """

    def __init__(
        self, run: Callable[[], Tensor], device: torch.device, record: bool = True
    ) -> None:
        self._run = run
        self._record = record and device.type == "cuda"
        self._stream: torch.cuda.Stream | None = None
        if self._record:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._warm = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Tensor | None = None

    @property
    def records(self) -> bool:
        """Whether steps are recorded here, so that what they use must stay where it is."""
        return self._record

    def forget(self) -> None:
        """Drop the recording, because something it uses has been replaced."""
        self._warm, self._graph, self._result = False, None, None

    def __call__(self) -> Tensor:
        """Run once; the result is overwritten by the next call."""
        if not self._record:
            return self._run()
        if self._graph is None and not self._warm:
            self._warm = True
            return self._run_aside()
        if self._graph is None:
            self._capture()
        if self._graph is None or self._result is None:
            return self._run()
        self._graph.replay()
        return self._result

    def _run_aside(self) -> Tensor:
        """The first run compiles and allocates what may not be done while recording."""
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
        # Another graph, thrown away while this one is recorded, would break the recording.
        gc.collect()
        gc.disable()
        try:
            # Of other threads (a server's, a progress bar's), nothing is demanded.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._result = self._run()
            self._graph = graph
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._record = False
            # Ending a failed recording fails, too; the reason is what came before.
            reason = str(error.__context__ or error).strip().splitlines()[0]
            logger.warning("no CUDA graph of a step (%s); generating without, slower", reason)
            self._free_random_numbers()
        finally:
            gc.enable()

    def _free_random_numbers(self) -> None:
        """Take the card's generator out of a recording that failed, which never lets go of it."""
        assert self._stream is not None
        generator = torch.cuda.default_generators[self._stream.device.index]
        generator.graphsafe_set_state(generator.clone_state())

"""Prompts that are all there from the beginning, or one of them: ids in, ids out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from ptune.data.seeds import derive_seed
from ptune.generation.engine import INTERACTIVE, THROUGHPUT, Engine, Request
from ptune.generation.sampling import Sampling
from ptune.models.prefix_encoder import shown_prefix


def generate_all(
    model: Any,
    prompts: Sequence[Sequence[int]],
    batch_size: int,
    sampling: Sampling,
    seed: int = 0,
    done: Collection[int] = (),
    first: int = 0,
    graphs: bool = True,
) -> Iterator[list[tuple[int, list[int]]]]:
    """Generate for all prompts, the longest first so that memory runs out early if it does.

    Args:
        model: from `load_model`.
        prompts: ids without padding.
        batch_size: the number of slots.
        sampling: its parameters.
        seed: with sampling; each prompt draws with one that follows from it and the index.
        done: indices of prompts to leave out.
        first: index of the first prompt.
        graphs: capture decode steps as CUDA graphs.

    Yields:
        As requests finish, pairs of a prompt's index and its new ids, without the end token.

    Raises:
        ModelError: logits that are not finite.
    """
    asked = dict(enumerate(prompts, first))
    left = [index for index in asked if index not in done]
    if not left:
        return
    engine = Engine(model, min(batch_size, len(left)), THROUGHPUT, graphs=graphs)
    prefix = shown_prefix(model)
    answers: dict[Request, tuple[int, list[int]]] = {}
    for index in sorted(left, key=lambda i: -len(asked[i])):
        own = dataclasses.replace(sampling, seed=derive_seed(seed, "answer", index))
        request = Request(asked[index], own, prefix)
        answers[request] = index, []
        engine.add(request)
    while engine.busy:
        finished = []
        for progress in engine.step():
            if progress.error is not None:
                raise progress.error
            answers[progress.request][1].extend(token.id for token in progress.tokens)
            if progress.finish is not None:
                finished.append(answers.pop(progress.request))
        if finished:
            yield finished


def generate_one(
    model: Any,
    prompt: Sequence[int],
    sampling: Sampling,
    stopped: Callable[[], bool] = lambda: False,
    graphs: bool = True,
) -> Iterator[int]:
    """Generate for one prompt, token by token.

    Args:
        model: from `load_model`.
        prompt: ids.
        sampling: its parameters.
        stopped: called after each token; True ends the request.
        graphs: capture decode steps as CUDA graphs.

    Yields:
        The new ids, without the end token.

    Raises:
        ModelError: logits that are not finite.
    """
    engine = Engine(model, 1, INTERACTIVE, graphs=graphs)
    engine.add(Request(prompt, sampling, shown_prefix(model)))
    while engine.busy:
        for progress in engine.step():
            if progress.error is not None:
                raise progress.error
            for token in progress.tokens:
                yield token.id
                if stopped():
                    return

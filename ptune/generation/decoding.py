"""Batched decoding: prefill of prompts into slots, and a decode step for all slots.

Shapes: `B` slots, `N` prompts of a prefill, `S` tokens of the longest of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ptune.device.memory import cache_length
from ptune.generation.kv_cache import SlotCache
from ptune.generation.sampling import Choice
from ptune.generation.step_graph import StepGraph
from ptune.models.prefix_encoder import prefix_length


class Decoder:
    """Model and KV cache of a batch of slots; the caller assigns requests to them and ends these.

    Args:
        model: from `load_model`.
        slots: `B`.
        choose: samples a token for each row of the logits `[B, vocabulary]`.
        longest: most tokens of a prompt and its answer together.
        graphs: capture the decode step as a CUDA graph, where that is possible.
    """

    def __init__(
        self,
        model: Any,
        slots: int,
        choose: Callable[[Tensor], Choice],
        longest: int,
        graphs: bool = True,
    ) -> None:
        self.model = model
        self.slots = slots
        self._decoder = model.base_model
        self._head = model.get_output_embeddings()
        self._choose = choose
        self._longest = prefix_length(self._decoder) + longest
        self._used = [0] * slots  # cache positions in use; 0 for a free slot
        self._step = StepGraph(self._logits, model.device, graphs)
        self._cache: SlotCache | None = None
        self._tokens = torch.zeros(slots, 1, dtype=torch.long, device=model.device)
        self._positions: Tensor | None = None

    @property
    def shrinks(self) -> bool:
        """Whether `keep` pays: not where the decode step would have to be captured again."""
        return not self._step.captures

    @torch.inference_mode()
    def prefill(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> Choice:
        """Process prompts and put their keys and values into slots.

        Args:
            slots: `N` of them.
            prompts: ids; of the first generation, holding `[gMASK] <sop>`.

        Returns:
            The first new token of each, `N` of them.
        """
        device = self.model.device
        lengths = torch.tensor([len(p) for p in prompts], device=device)
        ids = pad_sequence([torch.tensor(p) for p in prompts], batch_first=True).to(
            device
        )  # [N, S]
        mask = (torch.arange(ids.shape[1], device=device) < lengths[:, None]).long()
        cache = self._reserve(ids.shape[1], slots)
        at = torch.tensor(slots, device=device)
        hidden = self._decoder(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache.for_prefill(at),
            use_cache=True,
        ).last_hidden_state
        last = hidden[torch.arange(len(prompts), device=device), lengths - 1]
        first = self._choose(self._head(last))
        cache.cache_position[at, 0, 0, 0] = lengths + cache.prefix
        self._tokens[at, 0] = first.ids
        positions = self._decoder.next_positions(ids, mask)  # [..., N, 1]
        if self._positions is None:
            self._positions = positions.new_zeros(*positions.shape[:-2], self.slots, 1)
        self._positions[..., at, :] = positions
        for slot, prompt in zip(slots, prompts, strict=True):
            self._used[slot] = cache.prefix + len(prompt)
        return first

    @torch.inference_mode()
    def step(self) -> Choice:
        """A decode step: the next token of every slot; those of free slots mean nothing."""
        self._used = [used + 1 if used else 0 for used in self._used]
        self._reserve(0, ())
        chosen = self._choose(self._step())
        self._tokens.copy_(chosen.ids[:, None])
        return chosen

    def release(self, slot: int) -> None:
        """Free a slot, whose request is finished."""
        self._used[slot] = 0

    @torch.inference_mode()
    def keep(self, slots: Sequence[int]) -> None:
        """Drop all other slots; these are renumbered in the order given."""
        assert self._cache is not None and self._positions is not None
        at = torch.tensor(slots, device=self.model.device)
        self._cache.keep(at)
        self._tokens, self._positions = self._tokens[at], self._positions[..., at, :]
        self._used = [self._used[slot] for slot in slots]
        self.slots = len(slots)
        self._step.reset()

    def _logits(self) -> Tensor:
        """The logits of a decode step, `[B, vocabulary]`; all that it changes is on the device."""
        cache, positions = self._cache, self._positions
        assert cache is not None and positions is not None
        hidden = self._decoder.decode(self._tokens, cache.mask(), positions, cache)
        logits: Tensor = self._head(hidden[:, -1])
        self._decoder.advance_positions(positions)
        cache.advance()
        return logits

    def _reserve(self, prompt: int, slots: Sequence[int]) -> SlotCache:
        """Return a cache that is long enough for a prompt in `slots` and for the other slots.

        Args:
            prompt: tokens.
            slots: that the prompt goes into; their content is dropped.
        """
        others = [used for slot, used in enumerate(self._used) if slot not in slots]
        prefix = prefix_length(self._decoder)
        used = max([prefix + prompt, *others])
        if self._cache is None:
            length = cache_length(used, self._longest)
            embedded = self._decoder.get_input_embeddings()(self._tokens[:1])
            self._cache = SlotCache(
                self._decoder, self.slots, length, embedded.dtype, embedded.device
            )
        elif used >= self._cache.length:  # the next token needs a position
            self._cache.resize(cache_length(used, self._longest))
            self._step.reset()
        self._cache.attended = self._cache.length if self._step.captures else max(used, 1)
        return self._cache

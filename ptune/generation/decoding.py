"""Batched decoding: prefill of prompts into slots, and a decode step for all slots in use.

Shapes: `B` slots, `R` rows of a decode step, `N` prompts of a prefill, `S` tokens of the longest of
them, `K` keys, `L` layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ptune.device.memory import cache_length
from ptune.generation.kv_cache import PrefillCache, SlotCache, limit_masks
from ptune.generation.sampling import Choice, Sampler, Sampling
from ptune.generation.step_graph import StepGraph


@dataclass(eq=False)
class Prompt:
    """What a slot is given.

    Attributes:
        ids: without padding; of the first generation, holding `[gMASK] <sop>`.
        sampling: how its answer's tokens are chosen.
        prefix: `[L, 2, G, P, D]` from `stack_prefix`, or None for the bare model.
    """

    ids: Sequence[int]
    sampling: Sampling
    prefix: Tensor | None = None

    @property
    def prefix_length(self) -> int:
        """`P`, 0 without a prefix."""
        return 0 if self.prefix is None else self.prefix.shape[3]

    @property
    def longest(self) -> int:
        """Positions of a KV cache that it and its longest answer take."""
        return self.prefix_length + len(self.ids) + self.sampling.max_new_tokens


@dataclass
class Prefill:
    """Prompts on their way through the layers.

    Attributes:
        slots: they go into.
        prompts: `N` of them.
        hidden_states: `[N, S, hidden]`, of the layer before `layer`.
        mask: `[N, 1, S, K]`, or one for each kind of layer.
        position_ids: `[..., N, S]`.
        cache: takes their keys and values.
        layer: the next to run.
    """

    slots: Sequence[int]
    prompts: Sequence[Prompt]
    hidden_states: Tensor
    mask: Tensor | dict[str, Tensor]
    position_ids: Tensor
    cache: PrefillCache
    layer: int = 0

    @property
    def tokens(self) -> int:
        """`N S`, what a layer computes."""
        return self.hidden_states.shape[0] * self.hidden_states.shape[1]


class Decoder:
    """Model and KV cache of a batch of slots; the caller assigns requests to them and ends these.

    A prefill may be run some layers at a time, with decode steps between: a long prompt can so be
    cut in parts whatever its mask is, and ChatGLM-6B's, which sees its end at its beginning, could
    not be cut by tokens.

    Args:
        model: from `load_model`; its own prefix is not looked at.
        slots: `B`.
        longest: most positions that a request may take, see `Prompt.longest`.
        graphs: capture the decode step as a CUDA graph, where that is possible.

    Attributes:
        longest: as given; may be changed before a prefill.
    """

    def __init__(self, model: Any, slots: int, longest: int, graphs: bool = True) -> None:
        self.model = model
        self.longest = longest
        self._decoder = model.base_model
        self._head = model.scoring_head
        self._embed = self._decoder.get_input_embeddings()
        self._graphs = graphs
        self._steps: dict[int, StepGraph] = {}  # by rows
        self._cache: SlotCache | None = None
        self._sampler = Sampler(slots, model.config.vocab_size, model.device)
        self._used = [0] * slots  # cache positions in use; 0 for a free slot
        self._prefilling: set[int] = set()
        self._tokens = torch.zeros(slots, 1, dtype=torch.long, device=model.device)
        self._positions: Tensor | None = None

    @property
    def slots(self) -> int:
        """`B`."""
        return len(self._used)

    @property
    def num_layers(self) -> int:
        """`L`."""
        return self._decoder.stages  # type: ignore[no-any-return]

    @property
    def captures(self) -> bool:
        """Whether steps are captured, each for its number of rows."""
        if not self._steps:
            return self._graphs and self.model.device.type == "cuda"
        return any(step.captures for step in self._steps.values())

    @torch.inference_mode()
    def begin(self, slots: Sequence[int], prompts: Sequence[Prompt]) -> Prefill:
        """Give free slots to prompts, to be computed by `advance`."""
        device = self.model.device
        ids = pad_sequence([torch.tensor(p.ids) for p in prompts], batch_first=True).to(device)
        used = [prompt.prefix_length + len(prompt.ids) for prompt in prompts]
        cache = self._reserve(max(used), slots)
        cache.begin(slots, [prompt.prefix for prompt in prompts])
        for slot, positions in zip(slots, used, strict=True):
            self._used[slot] = positions
        self._prefilling.update(slots)
        into = cache.for_prefill(slots, [len(prompt.ids) for prompt in prompts])
        position_ids, context = self._decoder.read_prompts(ids, into.is_text.long())
        if self._decoder.learned_positions is not None:  # of which a prefix takes the first
            self._decoder.check_room(max(prompt.longest for prompt in prompts))
            position_ids = position_ids + into.starts[:, None]
        # A token sees those before it, and all of the context that it is part of.
        index = torch.arange(ids.shape[1], device=device)
        seen = index.maximum(context[:, None] - 1)
        starts = into.starts[:, None]
        mask = limit_masks(starts + seen, into.end, cache.dtype, starts, cache.window)
        return Prefill(slots, prompts, self._embed(ids), mask, position_ids, into)

    @torch.inference_mode()
    def advance(self, prefill: Prefill, layers: int) -> Choice | None:
        """Run the next layers of a prefill.

        Args:
            prefill: from `begin`.
            layers: at most so many.

        Returns:
            Behind the last layer the first new token of each prompt, `N` of them; else None.
        """
        last = min(prefill.layer + layers, self.num_layers)
        prefill.hidden_states = self._decoder.run_layers(
            prefill.hidden_states,
            prefill.mask,
            prefill.position_ids,
            prefill.cache,
            slice(prefill.layer, last),
        )
        prefill.layer = last
        return self._finish(prefill) if last == self.num_layers else None

    def _finish(self, prefill: Prefill) -> Choice:
        """Choose the first tokens, and note where the answers go on."""
        assert self._cache is not None
        self._prefilling.difference_update(prefill.slots)
        at, lengths = prefill.cache.slots, prefill.cache.lengths
        rows = torch.arange(len(at), device=at.device)
        logits = self._head(prefill.hidden_states[rows, lengths - 1])
        # Not before: steps on the way count no token of theirs.
        self._sampler.begin(prefill.slots, [(p.ids, p.sampling) for p in prefill.prompts])
        first = self._sampler.choose(logits, prefill.slots)
        self._cache.cache_position[at, 0, 0, 0] = prefill.cache.starts + lengths
        self._tokens[at, 0] = first.ids
        positions = prefill.position_ids[..., rows, lengths - 1][..., None]  # [..., N, 1]
        self._decoder.advance_positions(positions)
        if self._positions is None:
            self._positions = positions.new_zeros(*positions.shape[:-2], self.slots, 1)
        self._positions[..., at, :] = positions
        return first

    @torch.inference_mode()
    def step(self, rows: int) -> Choice:
        """A decode step of the first slots, of which at least one has its prompt.

        Args:
            rows: `R`; those of free slots mean nothing.

        Returns:
            The next token of each.
        """
        for slot, used in enumerate(self._used[:rows]):
            if used and slot not in self._prefilling:
                self._used[slot] += 1
        cache = self._reserve(0, ())
        cache.rows = rows
        if rows not in self._steps:
            run = partial(self._logits, rows)
            self._steps[rows] = StepGraph(run, self.model.device, self._graphs)
        step = self._steps[rows]
        if step.captures:  # it attends to the same positions each time
            cache.attended = cache.length
        chosen = self._sampler.choose(step(), range(rows))
        self._tokens[:rows] = chosen.ids[:, None]
        return chosen

    def _logits(self, rows: int) -> Tensor:
        """The logits of a decode step, `[R, vocabulary]`; all that it changes is on the device."""
        cache, positions = self._cache, self._positions
        assert cache is not None and positions is not None
        here = positions[..., :rows, :]
        hidden = self._embed(self._tokens[:rows])
        hidden = self._decoder.run_layers(hidden, cache.mask(), here, cache)
        logits: Tensor = self._head(hidden[:, -1])
        self._decoder.advance_positions(here)
        cache.advance()
        return logits

    @torch.inference_mode()
    def release(self, slot: int, wipe: bool = False) -> None:
        """Free a slot, whose request is finished.

        Args:
            slot: its number.
            wipe: drop its keys and values, of which some may be not finite.
        """
        self._used[slot] = 0
        self._sampler.release(slot)
        if wipe and self._cache is not None:
            self._cache.wipe(slot)

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        """Go on with the request of a slot, which has its prompt, in a free one."""
        assert self._cache is not None and self._positions is not None
        self._cache.move(source, target)
        self._tokens[target] = self._tokens[source]
        self._positions[..., target, :] = self._positions[..., source, :]
        self._sampler.move(source, target)
        self._used[source], self._used[target] = 0, self._used[source]

    @torch.inference_mode()
    def resize(self, slots: int) -> None:
        """Have so many slots; those that go must be free. The cache is only as long as is used."""
        device = self.model.device
        kept = min(slots, self.slots)
        self._used = self._used[:kept] + [0] * (slots - kept)
        self._sampler.resize(slots)
        tokens = torch.zeros(slots, 1, dtype=torch.long, device=device)
        tokens[:kept] = self._tokens[:kept]
        self._tokens = tokens
        if self._positions is not None:
            shape = *self._positions.shape[:-2], slots, 1
            positions = self._positions.new_zeros(shape)
            positions[..., :kept, :] = self._positions[..., :kept, :]
            self._positions = positions
        if self._cache is not None:
            self._cache.resize(slots, cache_length(max(self._used) + 1, self.longest))
        self._steps.clear()

    def _reserve(self, prompt: int, slots: Sequence[int]) -> SlotCache:
        """Return a cache that is long enough for a prompt in `slots` and for the other slots.

        Args:
            prompt: tokens, with those of a prefix.
            slots: that the prompt goes into; their content is dropped.
        """
        used = max([prompt, *(n for slot, n in enumerate(self._used) if slot not in slots)])
        if self._cache is None:
            length = cache_length(used, self.longest)
            embedded = self._embed(self._tokens[:1])
            self._cache = SlotCache(
                self._decoder, self.slots, length, embedded.dtype, embedded.device
            )
        elif used >= self._cache.length:  # the next token needs a position
            self._cache.resize(self.slots, cache_length(used, self.longest))
            self._steps.clear()
        self._cache.attended = max(used, 1)
        return self._cache

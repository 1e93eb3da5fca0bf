"""A training step, with dropout from a row's seed and with torch's: `python benchmarks/dropout.py`.

The model of `scale.py` with random weights, prefix of 128 tokens, 16 records of 64 + 64 tokens;
forward and backward take turns with both, so that a busy machine is the same to them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from scale import PREFIX, SOURCE, TARGET, make_model
from torch import Tensor, nn

from ptune.data.seeds import derive_seed
from ptune.models.prefix_encoder import PrefixEncoder
from ptune.models.row_dropout import RowDropout


class OwnGenerator(nn.Dropout):
    """torch's dropout, which draws from a generator's state."""

    def forward(self, states: Tensor) -> Tensor:
        """As the prefix encoder called it before."""
        return super().forward(states.contiguous() if states.is_cuda else states)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    model = make_model(device)
    with device:
        encoder = PrefixEncoder(model.base_model.prefix_shape, PREFIX)
    model.base_model.prefix_encoder = encoder
    rows, config = 16, model.config
    ids = torch.randint(10, 1900, (rows, SOURCE + TARGET), device=device)
    ids[:, SOURCE - 2], ids[:, SOURCE - 1] = config.gmask_token_id, config.bos_token_id
    labels = ids.clone()
    labels[:, :SOURCE] = -100
    own, by_row = OwnGenerator(0.1), RowDropout(0.1)
    times: dict[str, list[float]] = {"torch": [], "by row": []}
    for step in range(arguments.rounds + 2):
        for name, dropout in (("torch", own), ("by row", by_row)):
            encoder.dropout = dropout
            began = time.perf_counter()
            by_row.row_seeds = [derive_seed(42, "dropout", step, row) for row in range(rows)]
            loss = model(input_ids=ids, labels=labels, use_cache=False, label_logits_only=True).loss
            loss.backward()
            loss.item()
            if step >= 2:
                times[name].append(time.perf_counter() - began)
    ratios = [b / a for a, b in zip(times["torch"], times["by row"], strict=True)]
    found = {name: round(statistics.median(each), 4) for name, each in times.items()}
    print(json.dumps({**found, "ratio": round(statistics.median(ratios), 3)}))


if __name__ == "__main__":
    main()

"""Simulates a card in place of a real one, also in the subprocess of a probe.

Tensors on the CPU stand for those on the card.
"""

import sys
from contextlib import nullcontext

from ptune.quantization.backends import card, cuda_driver, probe

CARDS = {
    "P100": card.Card("Tesla P100-PCIE-16GB", (6, 0), "570.86.15", "12.9"),
    "T4": card.Card("Tesla T4", (7, 5), "570.86.15", "12.9"),
    "H100": card.Card("NVIDIA H100 80GB HBM3", (9, 0), "570.86.15", "12.9"),
}


def put_in(name, library, put=setattr):
    """Simulate a card of `CARDS`; `put(module, attribute, value)` may be monkeypatch's."""
    put(card, "describe", lambda device: CARDS[name])
    put(card, "index", lambda device: 0)
    put(card, "stream", lambda device: 0)
    put(card, "activate", lambda device: nullcontext())
    put(card, "synchronize", lambda device: None)
    put(cuda_driver, "LIBRARY", str(library))


def run(arguments):
    """Run the probe's `main` on the simulated card's tensors."""
    arguments = list(arguments)
    arguments[arguments.index("--device") + 1] = "cpu"
    probe.main(arguments)


if __name__ == "__main__":
    _, name, library, *arguments = sys.argv
    put_in(name, library)
    run(arguments)

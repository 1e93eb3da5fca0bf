"""Weights in 4 and 8 bits: the official codec, the layers that hold them, dequantization."""

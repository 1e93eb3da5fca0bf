"""Dequantization backends for official 4- and 8-bit weights, and their fallback order."""

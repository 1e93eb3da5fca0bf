"""4- and 8-bit weights: the official codec, quantized layers, dequantization backends.

May import errors, files, base, device.
"""

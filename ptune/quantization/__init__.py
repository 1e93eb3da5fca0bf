"""4-bit and 8-bit weights: the official codec, the layers that hold them, dequantization.

May import errors, files, base, device.
"""

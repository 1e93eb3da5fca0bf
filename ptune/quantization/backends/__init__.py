"""Backends that dequantize official 4- and 8-bit weights, and which one is used on a device."""

"""The device, the precision and the memory to compute with.

May import errors, files, base, config.
"""

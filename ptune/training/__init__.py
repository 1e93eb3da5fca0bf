"""A run of `ptune train`, from settings to a finished prefix.

May import errors, files, base, data, config, device, quantization, models, checkpoint.
"""

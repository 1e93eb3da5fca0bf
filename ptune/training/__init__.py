"""Training of a prefix: `ptune train`, its trainer, micro-batches, guard and log.

May import errors, files, base, data, config, device, quantization, models, checkpoint.
"""

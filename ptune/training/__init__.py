"""Training of a prefix: `ptune train`, its trainer, micro-batches, guard and log.

May import errors, files, base, data, config, parallel, device, quantization, models, checkpoint.
"""

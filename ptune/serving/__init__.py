"""Serving: requests of many clients through one engine, over HTTP.

May import errors, files, base, data, config, device, quantization, models, checkpoint, generation.
"""

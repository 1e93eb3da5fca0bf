"""Generation: prefill, decode steps over a KV cache, sampling, streaming.

May import errors, files, base, data, config, device, models.
"""

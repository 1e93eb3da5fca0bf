"""Generation: prefill, decode steps over a KV cache, sampling, streaming."""

"""From prompts to answers: prefill, decode steps over a KV cache, sampling, streaming."""

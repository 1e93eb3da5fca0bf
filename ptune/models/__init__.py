"""The networks, and what is trained beside them: a prefix in front of the text, or a LoRA.

May import errors, files, base, data, config, device, quantization.
"""

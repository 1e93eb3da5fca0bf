"""Prefix checkpoints, ptune's and the original's, and models loaded with them.

A checkpoint is a folder with `prefix_encoder.safetensors` (official key names, float32) and
`ptune_config.json`.  The original's are read too: `pytorch_model.bin` or `model.safetensors` with
`transformer.prefix_encoder.*`, alone or inside a whole model.  A LoRA is a folder as `peft` has it.
docs/checkpoint-format.md has them all.

May import errors, files, base, data, config, device, models.
"""

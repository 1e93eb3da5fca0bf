"""Evaluation: predictions for a development set, ROUGE and BLEU.

May import errors, files, base, data, config, parallel, device, quantization, models, checkpoint,
generation, training.
"""

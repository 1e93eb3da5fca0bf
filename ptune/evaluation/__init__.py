"""From a development set to answers and their ROUGE and BLEU.

May import errors, files, base, data, config, device, quantization, models, checkpoint, generation,
training.
"""

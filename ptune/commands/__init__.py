"""The other commands, a module or a package each; none imports another.

May import errors, files, base, data, config, parallel, device, quantization, models, checkpoint,
generation, training, evaluation, serving.
"""

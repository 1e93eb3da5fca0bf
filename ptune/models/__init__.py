"""The networks of the ChatGLM family and the prefix encoder in front of them.

May import errors, files, base, data, device, quantization.
"""

"""Device, precision, memory of device and host, and kernels of the CPU.

May import errors, files, base, config, parallel.
"""

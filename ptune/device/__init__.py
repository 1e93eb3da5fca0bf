"""Device, precision, and memory of device and host.

May import errors, files, base, config.
"""

"""The settings of every command, their checks, and the YAML file of `--config`.

May import errors, files, base, data.
"""

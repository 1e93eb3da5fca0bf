"""The folder of a base model: where it is, its generation, its config.json, its weight files.

There is no network in here.

May import errors, files.
"""

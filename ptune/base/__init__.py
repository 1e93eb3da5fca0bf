"""Base model folders: location, generation, architecture and weight files.

May import errors, files.
"""

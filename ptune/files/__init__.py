"""Atomic file writes, JSON from and to files, `~` in paths, and the cache folder.

May import errors.
"""

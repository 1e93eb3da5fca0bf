"""Atomic file writes, and the cache folder.

May import errors.
"""

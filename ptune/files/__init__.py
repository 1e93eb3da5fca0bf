"""Atomic file writes, and the cache folder.

May import nothing of ptune.
"""

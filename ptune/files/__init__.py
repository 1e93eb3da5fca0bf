"""Atomic file writes, and the cache folder."""

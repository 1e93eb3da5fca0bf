"""The ways to truncate a conversation; `prompt.render` has their meaning."""

TURNS = "turns"
ORIGINAL = "original"
TRUNCATIONS = (TURNS, ORIGINAL)

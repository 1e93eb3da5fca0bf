"""Location of the cache: compiled kernels, probe results, rendered training data."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return `ptune` in the user's cache folder; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "ptune"

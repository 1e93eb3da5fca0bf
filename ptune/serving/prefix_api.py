"""Prefixes that come and go while a server runs: `/v1/prefixes`."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from ptune.errors import CheckpointError, DataError
from ptune.serving.prefix_store import PrefixStore


class PrefixFolder(BaseModel):
    """The body.

    Attributes:
        name: by which requests will ask for it.
        path: of the checkpoint, inside the server's folder.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    path: str


class PrefixApi:
    """The handlers.

    Args:
        store: of the server.
        folder: out of which no path leads.
        default: the prefix that must stay.
    """

    def __init__(self, store: PrefixStore, folder: Path, default: str) -> None:
        self._store = store
        self._folder = folder.resolve()
        self._default = default
        self.router = APIRouter(prefix="/v1/prefixes")
        self.router.post("")(self.load)
        self.router.delete("/{name}")(self.drop)

    async def load(self, body: PrefixFolder) -> dict[str, Any]:
        """Load a checkpoint."""
        notice = await asyncio.to_thread(self._load, body)
        return {"id": body.name, "object": "model", "notice": notice}

    def _load(self, body: PrefixFolder) -> str | None:
        try:
            return self._store.add(body.name, self._inside(body.path))
        except CheckpointError as error:  # a client knows no path of the server
            raise CheckpointError(str(error).replace(f"{self._folder}{os.sep}", "")) from error

    def _inside(self, path: str) -> Path:
        try:
            found = (self._folder / path).resolve()
            stays = found.is_dir() and self._stays_inside(found)
        except (OSError, ValueError, RuntimeError) as error:  # a NUL, too long, a loop
            raise DataError(f"path {path!r} cannot be followed; name a folder") from error
        if not stays:
            raise DataError(
                f"path {path!r} is no folder inside the server's --prefix-folder, or has a link "
                "that leads out of it; put the checkpoint itself there"
            )
        return found

    def _stays_inside(self, folder: Path) -> bool:
        """Whether neither a folder nor any link below it leads out of the server's folder."""
        seen, left = set[Path](), [folder]
        while left:
            path = left.pop().resolve()
            if not path.is_relative_to(self._folder):
                return False
            if path not in seen and path.is_dir():
                left += path.iterdir()
            seen.add(path)
        return True

    async def drop(self, name: str) -> dict[str, Any]:
        """Forget a prefix; requests that have it go on."""
        if name == self._default:
            raise DataError(f"{name} is the default of this server, which stays")
        self._store.drop(name)
        return {"id": name, "object": "model", "deleted": True}

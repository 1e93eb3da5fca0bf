"""A manifest of a folder's files, by which damage and missing parts are found out."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ptune.files.atomic import write_text_atomically
from ptune.files.json_object import read_json_object
from ptune.files.json_text import to_json

MANIFEST_FILE = "ptune_manifest.json"
_BLOCK = 2**20


def digest(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    found = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


def write_manifest(folder: Path, names: list[str], **about: Any) -> None:
    """Write sizes and checksums of files that are in a folder.

    Args:
        folder: where they are, and where the manifest is written.
        names: of the files.
        about: what else to note.
    """
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": digest(folder / name)}
        for name in sorted(names)
    }
    text = to_json({**about, "files": files}, indent=2)
    write_text_atomically(folder / MANIFEST_FILE, text + "\n")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What a folder's manifest says; None without one, or where it is no manifest."""
    try:
        content = read_json_object(folder / MANIFEST_FILE)
    except (OSError, ValueError):
        return None
    return content if isinstance(content.get("files"), dict) else None


def find_damage(folder: Path) -> str | None:
    """Compare a folder with its manifest.

    Returns:
        What is wrong, worded to follow the folder's name; None if nothing is, or if it has no
        manifest: it was written by another program.
    """
    if not (folder / MANIFEST_FILE).exists():
        return None
    manifest = read_manifest(folder)
    if manifest is None:
        return f"holds a damaged {MANIFEST_FILE}"
    for name, said in manifest["files"].items():
        file = folder / name
        if Path(name).name != name or not isinstance(said, dict):
            return f"holds a damaged {MANIFEST_FILE}"
        try:
            size, written = file.stat().st_size, said.get("bytes")
            if type(written) is not int:
                return f"holds a damaged {MANIFEST_FILE}"
            if size != written:
                return f"holds {size:,} bytes of {name}, and {written:,} were written"
            if digest(file) != said.get("sha256"):
                return f"holds another {name} than was written"
        except FileNotFoundError:
            return f"lacks {name}"
        except OSError as error:
            return f"holds a file {name} that cannot be read ({error.strerror})"
    return None

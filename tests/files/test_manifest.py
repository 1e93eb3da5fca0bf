"""Manifests: what they find out."""

import json

import pytest

from ptune.files.manifest import MANIFEST_FILE, find_damage, read_manifest, write_manifest


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "b").write_bytes(b"")
    (tmp_path / "other").write_bytes(b"not of it")
    write_manifest(tmp_path, ["b", "a"], step=7)
    return tmp_path


def test_whole(folder):
    assert find_damage(folder) is None
    manifest = read_manifest(folder)
    assert manifest["step"] == 7 and list(manifest["files"]) == ["a", "b"]
    assert manifest["files"]["a"]["bytes"] == 5
    (folder / "other").write_bytes(b"changed")
    assert find_damage(folder) is None


@pytest.mark.parametrize(
    ("name", "content", "damage"),
    [
        ("a", b"1234", "holds 4 bytes of a, and 5 were written"),
        ("a", b"", "holds 0 bytes of a, and 5 were written"),
        ("a", b"12346", "holds another a than was written"),
        ("b", None, "lacks b"),
        (MANIFEST_FILE, b"", "holds a damaged ptune_manifest.json"),
        (MANIFEST_FILE, b"[]", "holds a damaged ptune_manifest.json"),
        (MANIFEST_FILE, b'{"files": 3}', "holds a damaged ptune_manifest.json"),
        (MANIFEST_FILE, b'{"files": {"a": 3}}', "holds a damaged ptune_manifest.json"),
        (
            MANIFEST_FILE,
            b'{"files": {"../a": {"bytes": 5}}}',
            "holds a damaged ptune_manifest.json",
        ),
        (MANIFEST_FILE, b'{"files": {"a": {}}}', "holds a damaged ptune_manifest.json"),
    ],
)
def test_damage(folder, name, content, damage):
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    assert find_damage(folder) == damage


def test_folder_of_another_program(tmp_path):
    (tmp_path / "a").touch()
    assert find_damage(tmp_path) is None and read_manifest(tmp_path) is None


def test_flipped_bits(folder):
    """Of any byte of any file, the manifest too, but for its blanks and what it only notes."""
    files = {name: (folder / name).read_bytes() for name in ("a", MANIFEST_FILE)}
    spared = 0
    for name, content in files.items():
        for place in range(len(content)):
            (folder / name).write_bytes(
                content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
            )
            if find_damage(folder) is None:
                spared += 1
                said = json.loads((folder / MANIFEST_FILE).read_bytes())
                assert said["files"] == json.loads(files[MANIFEST_FILE])["files"]
        (folder / name).write_bytes(content)
    assert spared < 60

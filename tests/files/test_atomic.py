"""Files and folders that are there in full or not at all."""

import os
import stat

import pytest

from ptune.files.atomic import (
    partials,
    remove_folder,
    remove_partials,
    staging,
    write_text_atomically,
    writing,
)


@pytest.fixture
def calls(monkeypatch):
    """What is asked of the system, in order: flushed names and renamings."""
    seen, names = [], {}
    real_open, real_fsync, real_rename = os.open, os.fsync, os.rename

    def opening(path, *args, **kwargs):
        handle = real_open(path, *args, **kwargs)
        names[handle] = os.path.basename(path)
        return handle

    def flushing(handle):
        seen.append(("flush", names[handle]))
        real_fsync(handle)

    def renaming(source, target, **kwargs):
        seen.append(("rename", os.path.basename(target)))
        real_rename(source, target, **kwargs)

    monkeypatch.setattr(os, "open", opening)
    monkeypatch.setattr(os, "fsync", flushing)
    monkeypatch.setattr(os, "rename", renaming)
    monkeypatch.setattr(os, "replace", renaming)
    return seen


def test_file_is_flushed_before_it_has_its_name_and_the_name_after(tmp_path, calls):
    write_text_atomically(tmp_path / "a.json", "新")
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "新"
    (first, partial), renamed, last = calls
    assert first == "flush" and partial.startswith(".a.json.") and partial.endswith(".partial")
    assert renamed == ("rename", "a.json") and last == ("flush", tmp_path.name)


def test_folder_is_flushed_with_all_that_is_in_it(tmp_path, calls):
    with staging(tmp_path / "c") as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "x").write_text("1")
        (partial / "y").write_text("2")
        assert not (tmp_path / "c").exists()
    kinds = [name if kind == "rename" else f"flush {name}" for kind, name in calls]
    *flushed, own, renamed, above = kinds
    assert sorted(flushed) == ["flush inner", "flush x", "flush y"]
    assert own.startswith("flush .c.") and (renamed, above) == ("c", f"flush {tmp_path.name}")
    assert (tmp_path / "c" / "inner" / "x").read_text() == "1"


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "a"
    file.write_text("old")
    with pytest.raises(RuntimeError), writing(file) as partial:
        partial.write_text("half")
        raise RuntimeError
    with pytest.raises(RuntimeError), staging(tmp_path / "b") as partial:
        (partial / "x").write_text("half")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and file.read_text() == "old"


def test_folder_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine").touch()
    with pytest.raises(OSError, match="not empty"), staging(tmp_path / "c") as partial:
        (partial / "x").touch()
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["mine"]
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_what_a_killed_process_left_is_told_from_what_is_the_users(tmp_path):
    ours = [".checkpoint-4.0123abcd.partial", ".a.json.00000000.partial", ".x y.z.ffffffff.partial"]
    theirs = ["mine.partial", ".partial", ".a.123.partial", ".a.0123abcd.partial.bak", "a"]
    for name in theirs:
        (tmp_path / name).touch()
    (tmp_path / ours[0]).mkdir()
    (tmp_path / ours[0] / "prefix").touch()
    for name in ours[1:]:
        (tmp_path / name).touch()
    assert sorted(path.name for path in partials(tmp_path)) == sorted(ours)
    assert [path.name for path in partials(tmp_path, "checkpoint-4")] == [ours[0]]
    assert partials(tmp_path / "nowhere") == []
    remove_partials(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(theirs)


def test_removed_folder_is_never_there_in_half(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "a").touch()
    monkeypatch.setattr("shutil.rmtree", lambda path: None)  # killed before it came to that
    remove_folder(folder)
    assert not folder.exists() and len(partials(tmp_path, "checkpoint-1")) == 1


@pytest.mark.skipif(os.name == "nt", reason="permissions are others there")
def test_permissions_are_those_of_any_file(tmp_path):
    write_text_atomically(tmp_path / "a", "")
    (tmp_path / "b").touch()
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "b").stat().st_mode
    )


def test_file_systems_that_flush_no_folders(tmp_path, monkeypatch):
    real = os.fsync

    def flushing(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(22, "Invalid argument")
        real(handle)

    monkeypatch.setattr(os, "fsync", flushing)
    write_text_atomically(tmp_path / "a", "x")
    assert (tmp_path / "a").read_text() == "x"
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(5, "I/O error")))
    with pytest.raises(OSError, match="I/O error"):
        write_text_atomically(tmp_path / "a", "y")
    assert (tmp_path / "a").read_text() == "x"

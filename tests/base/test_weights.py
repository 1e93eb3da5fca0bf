"""Weight files: one or shards, read lazily; nothing in them is run, and damage is named."""

import os
import pickle
import re
import shutil
import sys
import threading

import pytest
import torch
from fixtures.checkpoints import FILE_NAMES, write_json, write_weights
from safetensors import safe_open

from ptune.base import weights
from ptune.base.weights import WeightFiles, has_weights, is_finite, sample, save_tensors
from ptune.errors import ModelError

STATE = {f"layer.{i}.weight": torch.full((3, 2), float(i)) for i in range(7)}
FORMATS = ("bin", "safetensors")


def refused(folder, message):
    with pytest.raises(ModelError, match=message) as caught:
        dict(WeightFiles(folder).items())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shards", [1, 3])
def test_reading(tmp_path, format, shards):
    write_weights(tmp_path, STATE, format, shards)
    assert has_weights(tmp_path)
    files = WeightFiles(tmp_path)
    assert len(files.files) == shards and files.names.keys() == STATE.keys()
    found = dict(files.items())
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)
    some = ["layer.4.weight", "layer.0.weight"]
    assert {name for name, _ in files.items(some)} == set(some)


@pytest.mark.parametrize("format", FORMATS)
def test_one_shard_at_a_time(tmp_path, format, monkeypatch):
    write_weights(tmp_path, STATE, format, shards=3)
    files = WeightFiles(tmp_path)
    opened = []
    read = weights._read
    monkeypatch.setattr(weights, "_read", lambda file, n: opened.append(file) or read(file, n))
    stream = files.items()
    next(stream)
    assert len(opened) == 1
    list(stream)
    assert opened == files.files


def test_safetensors_come_first(tmp_path):
    write_weights(tmp_path, {"a": torch.zeros(1)}, "bin")
    write_weights(tmp_path, {"b": torch.zeros(1)}, "safetensors", shards=1)
    assert list(WeightFiles(tmp_path).names) == ["b"]


def test_given_files(tmp_path):
    write_weights(tmp_path, STATE, "safetensors")
    other = tmp_path / "other.safetensors"
    (tmp_path / "model.safetensors").rename(other)
    assert not has_weights(tmp_path)
    assert WeightFiles(tmp_path, [other]).names.keys() == STATE.keys()


def test_bin_of_before_torch_1_6(tmp_path):
    torch.save(STATE, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    found = dict(WeightFiles(tmp_path).items())
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)


def test_what_is_no_tensor_is_left_out(tmp_path):
    torch.save({**STATE, "step": 3}, tmp_path / "pytorch_model.bin")
    assert WeightFiles(tmp_path).names.keys() == STATE.keys()


def test_no_weights(tmp_path):
    assert not has_weights(tmp_path)
    refused(
        tmp_path,
        rf"^no weights in {tmp_path} \(neither model.safetensors nor pytorch_model.bin, nor an "
        r"index of shards\); download the model again$",
    )


@pytest.mark.parametrize("format", FORMATS)
def test_missing_shards(tmp_path, format):
    write_weights(tmp_path, STATE, format, shards=3)
    stem, suffix = FILE_NAMES[format]
    gone = [f"{stem}-0000{k}-of-00003{suffix}" for k in (1, 3)]
    for name in gone:
        (tmp_path / name).unlink()
    refused(
        tmp_path, rf"2 of 3 weight files of .* are missing \({', '.join(gone)}\); download them"
    )


@pytest.mark.parametrize("count", [3, 4])
def test_three_of_many_missing_shards_are_named(tmp_path, count):
    write_weights(tmp_path, STATE, "safetensors", shards=5)
    shards = sorted(tmp_path.glob("*-of-*"))[:count]
    for shard in shards:
        shard.unlink()
    named = ", ".join(shard.name for shard in shards[:3]) + " ..." * (count > 3)
    refused(tmp_path, rf"^{count} of 5 weight files of .* are missing \({re.escape(named)}\); down")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("keep", [0, 0.3, 0.98])
def test_truncated_file(tmp_path, format, keep):
    state = {"a": torch.ones(1000)}
    write_weights(tmp_path, state, format)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep)])
    refused(
        tmp_path,
        rf"{file.name} \({file.stat().st_size:,} bytes\) is truncated or damaged \(.+\); download",
    )


@pytest.mark.parametrize(
    ("said", "reason"),
    [(" first\nsecond", "first"), (" \n", "ValueError"), ("x" * 200, "x" * 120)],
)
def test_reason_of_damage_is_a_short_line(tmp_path, said, reason):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"123")
    expected = f"{file} (3 bytes) is truncated or damaged ({reason}); download it again"
    assert str(weights._damaged(file, ValueError(said))) == expected


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("content", [b"<!DOCTYPE html><html>not found</html>", b"\x00" * 400])
def test_file_of_another_kind(tmp_path, format, content):
    stem, suffix = FILE_NAMES[format]
    (tmp_path / f"{stem}{suffix}").write_bytes(content)
    refused(tmp_path, "is truncated or damaged")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_git_lfs_pointer(tmp_path, name):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"
    (tmp_path / name).write_text(pointer)
    refused(tmp_path, f"{name} is a Git LFS pointer, not the file itself; run `git lfs pull` in ")
    (tmp_path / name).unlink()
    (tmp_path / f"{name}.index.json").write_text(pointer)
    refused(tmp_path, f"{name}.index.json is a Git LFS pointer")


@pytest.mark.parametrize("format", FORMATS)
def test_git_lfs_pointer_among_the_shards(tmp_path, format):
    write_weights(tmp_path, STATE, format, shards=3)
    shard = sorted(tmp_path.glob("*-00002-of-*"))[0]
    shard.write_text("version https://git-lfs.github.com/spec/v1\n")
    refused(tmp_path, f"{shard.name} is a Git LFS pointer")


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("writer", ["torch", "old torch", "pickle"])
def test_pickle_bomb_is_not_opened(tmp_path, writer):
    mark, file = tmp_path / "ran", tmp_path / "pytorch_model.bin"
    content = {"a": torch.zeros(1), "b": Bomb(mark)}
    if writer == "pickle":
        file.write_bytes(pickle.dumps(Bomb(mark), protocol=2))
        message = "pytorch_model.bin .*"
    else:
        torch.save(content, file, _use_new_zipfile_serialization=writer == "torch")
        message = "holds more than tensors and is not opened, since it could run code; take"
    refused(tmp_path, message)
    assert not mark.exists()
    with file.open("rb") as stream:
        torch.load(stream, weights_only=False) if writer != "pickle" else pickle.load(stream)
    assert mark.exists(), "the bomb would not have gone off anyway"


@pytest.mark.parametrize("new", [True, False])
def test_pickle_bomb_is_not_opened_whatever_the_environment_allows(tmp_path, monkeypatch, new):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    content, file = {"b": Bomb(tmp_path / "ran")}, tmp_path / "pytorch_model.bin"
    torch.save(content, file, _use_new_zipfile_serialization=new)
    refused(tmp_path, "holds more than tensors and is not opened, since it could run code; take")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("new", [True, False])
def test_bin_that_was_saved_on_a_card_needs_none(tmp_path, monkeypatch, new):
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        file = tmp_path / "pytorch_model.bin"
        torch.save(STATE, file, _use_new_zipfile_serialization=new)
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(file)
    found = dict(WeightFiles(tmp_path).items())
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)


def test_bin_is_mapped_and_not_read_as_a_whole(tmp_path, monkeypatch):
    load, mapped = torch.load, []

    def spy(file, mmap=None, **options):
        mapped.append(mmap)
        return load(file, mmap=mmap, **options)

    monkeypatch.setattr(torch, "load", spy)
    write_weights(tmp_path, STATE, "bin")
    dict(WeightFiles(tmp_path).items())
    assert mapped == [True, True]
    write_weights(tmp_path, STATE, "safetensors")
    dict(WeightFiles(tmp_path).items())
    assert len(mapped) == 2, "read without torch.load, which may take such a file, too"


def test_bin_that_is_no_dictionary(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "pytorch_model.bin")
    refused(
        tmp_path, "pytorch_model.bin holds no tensors by name; take the model's own weight file"
    )


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b'{"weight_map": []}',
        b'{"weight_map": {"a": 5}}',
        b'{"weight_map": {"a": {}}}',
    ],
)
def test_damaged_index(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    refused(tmp_path, "model.safetensors.index.json is not an index of shards; download it again")


@pytest.mark.parametrize("way", ["absolute", "up", "link", "inside", "itself", "backslash"])
@pytest.mark.parametrize("format", FORMATS)
def test_index_that_leads_out_of_the_folder(tmp_path, format, way):
    """Also where the right file is there, and where another of its name is inside."""
    stem, suffix = FILE_NAMES[format]
    outside, folder = tmp_path / "outside", tmp_path / "model"
    name = f"{stem}-00001-of-00001{suffix}"
    for place in (outside, folder, folder / "sub"):
        place.mkdir()
        write_weights(place, STATE, format)
        (place / f"{stem}{suffix}").rename(place / name)
    (folder / "link").symlink_to(outside)
    path = {
        "absolute": str(outside / name),
        "up": f"../outside/{name}",
        "link": f"link/{name}",
        "inside": f"sub/{name}",
        "itself": "..",
        "backslash": f"..\\outside\\{name}",
    }[way]
    index = folder / f"{stem}{suffix}.index.json"
    write_json(index, {"weight_map": dict.fromkeys(STATE, path)})
    refused(folder, f"{re.escape(path)} in {index} is no name of a file in its folder; take the")
    write_json(index, {"weight_map": dict.fromkeys(STATE, name)})
    assert dict(WeightFiles(folder).items()).keys() == STATE.keys()


@pytest.mark.parametrize("format", FORMATS)
def test_shards_that_are_links_as_in_the_cache_of_the_hub(tmp_path, format):
    folder, blobs = tmp_path / "snapshots" / "main", tmp_path / "blobs"
    for place in (folder, blobs):
        place.mkdir(parents=True)
    write_weights(folder, STATE, format, shards=2)
    for number, file in enumerate(sorted(folder.glob("*-of-*"))):
        file.rename(blobs / str(number))
        file.symlink_to(blobs / str(number))
    assert dict(WeightFiles(folder).items()).keys() == STATE.keys()


@pytest.mark.parametrize("format", FORMATS)
def test_tensor_in_two_files(tmp_path, format):
    write_weights(tmp_path, STATE, format, shards=3)
    first, *_, last = sorted(tmp_path.glob("*-of-*"))
    shutil.copy(first, last)
    refused(tmp_path, rf"layer\.\d\.weight is in {first} and in {last}; the files are of several")


@pytest.mark.parametrize("format", FORMATS)
def test_headers(tmp_path, format):
    dtypes = ("float64", "float32", "float16", "bfloat16", "int8", "uint8", "int32", "int64")
    state = {name: torch.zeros(2, 3, dtype=getattr(torch, name)) for name in dtypes}
    write_weights(tmp_path, state, format, shards=2)
    headers = WeightFiles(tmp_path).headers
    assert {header.shape for header in headers.values()} == {(2, 3)}
    assert [name for name in dtypes if headers[name].is_float] == list(dtypes[:4])
    assert [name for name in dtypes if headers[name].dtype == name] >= list(dtypes[:7])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_is_finite(dtype):
    tensor = torch.full((300, 7), torch.finfo(dtype).max, dtype=dtype)
    assert is_finite(tensor)  # although their sum is infinite
    assert is_finite(torch.zeros(3, dtype=dtype))
    for wrong in (float("nan"), float("inf"), float("-inf")):
        for value in (1, torch.finfo(dtype).max):
            tensor = torch.full((300, 7), value, dtype=dtype)
            tensor[150, 3] = wrong
            assert not is_finite(tensor)
    both = torch.tensor([float("inf"), float("-inf")], dtype=dtype)
    assert not is_finite(both)


def test_of_a_large_weight_some_rows_are_looked_at():
    small, large = torch.zeros(2**10, 2**10), torch.arange(2**10 + 1)[:, None].expand(-1, 2**10)
    assert sample(small) is small
    assert sample(large)[:, 0].tolist() == list(range(0, 2**10 + 1, 16))


def test_saved_file_has_the_permissions_of_others(tmp_path):
    (tmp_path / "plain").touch()
    save_tensors({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert WeightFiles(tmp_path, [tmp_path / "a.safetensors"]).names.keys() == {"a"}
    with safe_open(tmp_path / "a.safetensors", framework="pt") as stream:
        assert stream.metadata() == {"format": "pt"}  # which transformers asks for


@pytest.mark.parametrize(
    "content", [b"junk\n", b"{}", b"\x00" * 64, b"PK\x03\x04", b"h\x01.", b"0"]
)
def test_other_bytes_are_a_damaged_file(tmp_path, content):
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ModelError, match=r"pytorch_model\.bin \(.* truncated or damaged"):
        WeightFiles(tmp_path)


@pytest.mark.parametrize("format", FORMATS)
def test_the_next_shard_is_prefetched_while_one_is_used(tmp_path, format, monkeypatch):
    fetched = []
    monkeypatch.setattr(weights, "_fetch", fetched.append)
    write_weights(tmp_path, STATE, format, shards=3)
    files = WeightFiles(tmp_path)
    assert fetched == []
    dict(files.items(["layer.0.weight"]))  # a part of a folder is not worth its whole files
    assert fetched == []
    stream = files.items()
    next(stream)
    join_threads()
    assert sorted(fetched) == files.files[:2]
    list(stream)
    files.fetch()
    join_threads()
    assert sorted(fetched) == files.files


def join_threads():
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread.daemon:
            thread.join(5)


def test_the_first_two_files_are_fetched_by_default(tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(weights, "_fetch", fetched.append)
    write_weights(tmp_path, STATE, "safetensors", shards=3)
    files = WeightFiles(tmp_path)
    files.fetch()
    join_threads()
    assert sorted(fetched) == files.files[:2]


@pytest.mark.skipif(sys.platform != "linux", reason="needs posix_fadvise")
def test_all_of_a_file_is_fetched(tmp_path, monkeypatch):
    file, ranges = tmp_path / "file", []
    file.write_bytes(b"x" * 25)
    monkeypatch.setattr(weights, "_READ_AT_ONCE", 10)
    monkeypatch.setattr(os, "posix_fadvise", lambda at, *of: ranges.append(of[:2]))
    weights._fetch(file)
    assert ranges == [(0, 10), (10, 10), (20, 10)]


def test_fetching_leaves_complaints_to_the_reader(tmp_path):
    weights._fetch(tmp_path / "absent.bin")
    weights._fetch(tmp_path)

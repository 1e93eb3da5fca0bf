"""The cache of rendered examples: what its key knows, damage, several writers, and memory."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece

from ptune.base.folder import Generation
from ptune.data import example_cache
from ptune.data.example_cache import prepare_examples
from ptune.data.examples import Truncation
from ptune.data.prompt import Lengths
from ptune.data.schemas import Columns
from ptune.data.tokenizer import load_tokenizer
from ptune.data.truncation import ORIGINAL
from ptune.errors import DataError
from ptune.files.manifest import digest

LINES = [
    json.dumps({"content": f"类型#裙*颜色#{i}", "summary": "清新" * (1 + i % 40)})
    for i in range(50)
]
BAD = json.dumps({"content": "", "summary": "x"})


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(example_cache, "MIN_BYTES", 1)
    return tmp_path / "cache" / "ptune" / "examples"


@pytest.fixture
def reads(monkeypatch):
    """Count how often data files are read."""
    calls = []
    read = example_cache.read_records
    monkeypatch.setattr(example_cache, "read_records", lambda *a: calls.append(a) or read(*a))
    return calls


@pytest.fixture
def prepare(tmp_path, toy_tokenizer):
    """Prepare a data file with one thing changed."""
    file = tmp_path / "data.json"
    file.write_text("\n".join(LINES), encoding="utf-8")

    def run(**changes):
        arguments = {
            "paths": [file],
            "columns": Columns(),
            "skip_bad_records": False,
            "tokenizer": toy_tokenizer(1),
            "generation": Generation.CHATGLM,
            "lengths": Lengths(32, 32),
        }
        return prepare_examples(**arguments | changes)

    run.file = file
    return run


def rows(prepared):
    return prepared.examples()[0].to_list()


def entries(folder):
    return sorted(file.name for file in folder.iterdir())


def test_second_run_reads_the_cache(cache, prepare, reads):
    first, second = prepare(), prepare()
    assert len(reads) == 1
    assert rows(first) == rows(second) and len(rows(first)) == len(LINES)
    assert first.examples()[0].column_names == ["input_ids", "labels", "length"]
    assert first.examples()[1] == second.examples()[1] and first.examples()[1].responses_cut > 0
    assert len(entries(cache)) == 1


def test_cached_is_what_is_rendered_without_a_cache(cache, prepare, reads, monkeypatch):
    prepare()
    cached = prepare()
    monkeypatch.setattr(example_cache, "MIN_BYTES", 10**9)
    plain = prepare()
    assert len(reads) == 2
    assert rows(plain) == rows(cached) and plain.examples()[1] == cached.examples()[1]
    assert plain.examples()[0].features == cached.examples()[0].features


def test_skipped_records_are_told_from_the_cache_too(cache, prepare, reads):
    prepare.file.write_text("\n".join([*LINES, BAD]), encoding="utf-8")
    first, second = (prepare(skip_bad_records=True) for _ in range(2))
    assert len(reads) == 1
    assert first.skipped == second.skipped and len(first.skipped) == 1
    with pytest.raises(DataError, match=r"1 of 51 records are bad"):
        prepare()


def test_notices_are_told_from_the_cache_too(cache, prepare, reads):
    marked = json.dumps({"content": "裙", "summary": "x", "id": 7})
    prepare.file.write_text("\n".join([*LINES, marked]), encoding="utf-8")
    first, second = (prepare() for _ in range(2))
    assert len(reads) == 1
    assert first.notices == second.notices == ("not used: 'id' (1 record)",)
    assert first.questions == second.questions
    assert [said.question for said in second.questions][:2] == ["类型#裙*颜色#0", "类型#裙*颜色#10"]


def test_what_a_generation_cannot_say_is_left_out_for_it_alone(cache, prepare, toy_tokenizer):
    with_tools = json.dumps({"content": "裙", "summary": "x", "tools": ["f"]})
    prepare.file.write_text("\n".join([*LINES, with_tools]), encoding="utf-8")
    for generation, kind in enumerate([*Generation][:3], 1):
        tokenizer = toy_tokenizer(generation)
        for _ in range(2):
            prepared = prepare(tokenizer=tokenizer, generation=kind, skip_bad_records=True)
            assert len(prepared.skipped) == (generation != 3)
            assert len(prepared.examples()[0]) == len(LINES) + (generation == 3)


@pytest.mark.parametrize(
    "changes", [{"system": "s"}, {"tools": ["f"]}, {"history": [["a", "b"]]}], ids=str
)
def test_what_stands_beside_a_prompt_changes_the_rows(cache, prepare, toy_tokenizer, changes):
    third = {"tokenizer": toy_tokenizer(3), "generation": Generation.CHATGLM3}
    before = rows(prepare(**third, lengths=Lengths(500, 500)))
    changed = [json.dumps(json.loads(line) | changes) for line in LINES]
    prepare.file.write_text("\n".join(changed), encoding="utf-8")
    after = rows(prepare(**third, lengths=Lengths(500, 500)))
    assert all(a["length"] < b["length"] for a, b in zip(before, after, strict=True))


def test_notices_of_a_folder_are_told_from_the_cache_too(cache, prepare, reads, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    prepare.file.rename(folder / "data.csv")
    (folder / "README.md").touch()
    first, second = (prepare(paths=[folder]) for _ in range(2))
    assert len(reads) == 1
    assert first.notices == second.notices and len(first.notices) == 2
    (folder / "NEWS.md").touch()
    assert "NEWS.md" in prepare(paths=[folder]).notices[0]
    (folder / "more.json").write_text(LINES[0], encoding="utf-8")
    assert len(rows(prepare(paths=[folder]))) == len(LINES) + 1


def test_small_data_is_not_kept(cache, prepare, reads, monkeypatch):
    monkeypatch.setattr(example_cache, "MIN_BYTES", prepare.file.stat().st_size + 1)
    prepare(), prepare()
    assert len(reads) == 2 and not cache.exists()


def other_tokenizer(toy_folder, folder):
    """The same class, and one more byte in the file that it was made of."""
    shutil.copytree(toy_folder(1), folder)
    tokenizer = load_tokenizer(folder)
    with Path(tokenizer.vocab_file).open("ab") as stream:
        stream.write(b"\0")
    return tokenizer


@pytest.mark.parametrize(
    "changes",
    [
        {"columns": Columns("content", "summary")},
        {"skip_bad_records": True},
        {"lengths": Lengths(31, 32)},
        {"lengths": Lengths(32, 31)},
        {"lengths": Lengths(32, 32, ORIGINAL)},
        {"generation": Generation.CHATGLM3, "tokenizer": 3},
        {"generation": Generation.CHATGLM2, "tokenizer": 2},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_other_settings_are_another_entry(cache, prepare, reads, toy_tokenizer, changes):
    prepare()
    if "tokenizer" in changes:
        changes = {**changes, "tokenizer": toy_tokenizer(changes["tokenizer"])}
    prepare(**changes)
    assert len(reads) == 2 and len(entries(cache)) == 2


def test_another_tokenizer_file_is_another_entry(cache, prepare, reads, toy_folder, tmp_path):
    prepare()
    prepare(tokenizer=other_tokenizer(toy_folder, tmp_path / "other"))
    assert len(reads) == 2 and len(entries(cache)) == 2


def test_other_content_of_the_same_size_and_time_is_another_entry(cache, prepare, reads):
    before, old = rows(prepare()), prepare.file.stat()
    text = prepare.file.read_text(encoding="utf-8")
    prepare.file.write_text(text.replace("#49", "#94"), encoding="utf-8")
    os.utime(prepare.file, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert prepare.file.stat().st_size == old.st_size
    assert rows(prepare()) != before and len(reads) == 2


def test_another_name_is_another_entry(cache, prepare, reads):
    """It stands in messages, and tells the format."""
    prepare()
    prepare(paths=[prepare.file.rename(prepare.file.with_name("other.json"))])
    assert len(reads) == 2


def test_order_of_the_files_counts(cache, prepare, reads, tmp_path):
    other = tmp_path / "b.json"
    other.write_text(LINES[0], encoding="utf-8")
    assert rows(prepare(paths=[prepare.file, other])) != rows(prepare(paths=[other, prepare.file]))
    assert len(reads) == 2


@pytest.mark.parametrize("what", ["__version__", "sentencepiece", "code"])
def test_another_version_is_another_entry(cache, prepare, reads, monkeypatch, what):
    prepare()
    if what == "__version__":
        monkeypatch.setattr(example_cache, "__version__", "99")
    elif what == "sentencepiece":
        monkeypatch.setattr(sentencepiece, "__version__", "99")
    else:
        monkeypatch.setattr(example_cache, "_CODE", example_cache._CODE.parent)
    prepare()
    assert len(reads) == 2


def test_file_changed_while_it_is_read_is_not_kept(cache, prepare, monkeypatch):
    read = example_cache.read_records

    def read_and_change(*arguments):
        loaded = read(*arguments)
        prepare.file.write_text("\n".join(LINES[1:]), encoding="utf-8")
        return loaded

    monkeypatch.setattr(example_cache, "read_records", read_and_change)
    assert len(prepare().examples()[0]) == len(LINES)
    assert not cache.exists()


def overwrite(position):
    def damage(file):
        content = bytearray(file.read_bytes())
        content[position] ^= 1
        file.write_bytes(content)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        overwrite(0),
        overwrite(2000),
        overwrite(-20),
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"no Arrow at all"),
    ],
    ids=["head", "middle", "end", "cut", "empty", "other"],
)
def test_damage_is_absence(cache, prepare, reads, damage):
    whole = rows(prepare())
    damage(next(cache.iterdir()))
    assert rows(prepare()) == whole and len(reads) == 2
    assert rows(prepare()) == whole and len(reads) == 2  # what was damaged is replaced
    assert len(entries(cache)) == 1


@pytest.mark.parametrize("content", [b"", b"no Arrow at all"])
def test_a_right_digest_of_something_else_is_absence(cache, prepare, reads, content):
    prepare()
    entry = next(cache.iterdir())
    key = entry.stem.partition("-")[0]
    entry.write_bytes(content)
    entry.rename(cache / f"{key}-{digest(entry)}.arrow")
    assert len(rows(prepare())) == len(LINES) and len(reads) == 2


def test_entry_of_another_key_is_not_taken(cache, prepare, reads):
    prepare()
    entry = next(cache.iterdir())
    expected = rows(prepare(lengths=Lengths(20, 20)))
    other = next(file for file in cache.iterdir() if file != entry)
    entry.rename(cache / f"{other.stem.partition('-')[0]}-{entry.stem.partition('-')[2]}.arrow")
    other.unlink()
    assert rows(prepare(lengths=Lengths(20, 20))) == expected and len(reads) == 3


def test_unwritable_folder(cache, prepare, reads):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder would be")
    first, second = prepare(), prepare()
    assert len(reads) == 2 and rows(first) == rows(second)


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_of_a_broken_off_entry(cache, prepare, monkeypatch, error):
    def break_off(*arguments):
        yield next(batches(*arguments))
        raise error

    batches = example_cache.render_batches
    monkeypatch.setattr(example_cache, "render_batches", break_off)
    if isinstance(error, OSError):
        assert len(prepare().examples()[0]) == len(LINES)
    else:
        with pytest.raises(KeyboardInterrupt):
            prepare()
    assert entries(cache) == []


def test_least_recently_used_go_first(cache, prepare, reads, monkeypatch):
    for length in (20, 21, 22):
        prepare(lengths=Lengths(length, 20))
    for age, file in enumerate(sorted(cache.iterdir(), key=lambda f: f.stat().st_mtime_ns)):
        os.utime(file, (10_000 + age, 10_000 + age))
    prepare(lengths=Lengths(20, 20))  # used again
    abandoned, fresh = cache / ".a.partial", cache / ".b.partial"
    abandoned.touch(), fresh.touch()
    os.utime(abandoned, (10_000, 10_000))
    size = sum(file.stat().st_size for file in cache.iterdir())
    monkeypatch.setattr(example_cache, "MAX_BYTES", size)  # room for three
    prepare(lengths=Lengths(23, 20))
    assert not abandoned.exists() and fresh.exists()
    del reads[:]
    for length in (20, 22, 23):
        prepare(lengths=Lengths(length, 20))
    assert not reads
    prepare(lengths=Lengths(21, 20))
    assert len(reads) == 1


def test_entries_are_their_owners_alone(cache, prepare):
    prepare()
    assert cache.stat().st_mode & 0o077 == 0
    assert next(cache.iterdir()).stat().st_mode & 0o077 == 0


CHILD = """
import gc
import sys
from pathlib import Path
import pyarrow
from ptune.base.folder import Generation
from ptune.data import example_cache
from ptune.data.prompt import Lengths
from ptune.data.schemas import Columns
from ptune.data.tokenizer import load_tokenizer

def prepare(file):
    return example_cache.prepare_examples(
        [Path(file)], Columns(), False, tokenizer, Generation.CHATGLM, Lengths(9, 700)
    )

def anonymous():
    gc.collect()
    pyarrow.default_memory_pool().release_unused()  # freed, and kept by the allocator for a while
    status = Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in status)["RssAnon"].split()[0])

example_cache.MIN_BYTES = 1
tokenizer = load_tokenizer(sys.argv[1])
prepare(sys.argv[2])  # whatever is loaded at the first use
sys.stdin.readline()  # all at once
before = anonymous()
prepared = prepare(sys.argv[3])
examples, truncation = prepared.examples()
print(len(examples), sum(examples["length"][:]), truncation.records)
print(anonymous() - before)
"""


def start(folder, *files):
    command = [sys.executable, "-c", CHILD, str(folder), *map(str, files)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finish(processes):
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate()[0].splitlines() for process in processes]
    assert all(process.returncode == 0 for process in processes)
    return outputs


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_several_processes_and_bounded_memory(cache, toy_folder, tmp_path):
    """As under torchrun; memory does not follow the tokens."""
    few, many = tmp_path / "few.json", tmp_path / "many.json"
    # Each of these characters takes three tokens, so that ids are what would fill the memory.
    line = json.dumps({"content": "类型#裙", "summary": "龘" * 150}, ensure_ascii=False)
    for file, count in ((few, 3_000), (many, 12_000)):
        file.write_text(f"{line}\n" * count, encoding="utf-8")
    first, second = finish([start(toy_folder(1), few, many) for _ in range(2)])
    assert first[0] == second[0] and first[0].startswith("12000 ")
    assert len(entries(cache)) == 2
    kilobytes = 2 * 4 * int(first[0].split()[1]) // 1000  # of ids and labels, were they in memory
    assert kilobytes > 40_000
    assert max(int(first[1]), int(second[1])) < kilobytes / 2, (first, second)


def test_truncation_of_nothing_cut(cache, prepare):
    assert prepare(lengths=Lengths(500, 500)).examples()[1] == Truncation(len(LINES), 0, 0, 0)

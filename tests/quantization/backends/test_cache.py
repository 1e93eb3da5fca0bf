"""The on-disk cache: damaged files, and what cannot be written."""

from concurrent.futures import ThreadPoolExecutor

from ptune.quantization.backends.cache import read_cached, write_cached


def test_content_is_cached(tmp_path):
    file = tmp_path / "a" / "b"
    assert read_cached(file) is None
    write_cached(file, b"content")
    assert read_cached(file) == b"content"
    write_cached(file, b"other")
    assert read_cached(file) == b"other"
    assert list(file.parent.iterdir()) == [file]


def test_a_damaged_file_is_a_cache_miss(tmp_path):
    file = tmp_path / "b"
    write_cached(file, b"content")
    whole = file.read_bytes()
    for damaged in (whole[:-1], whole[1:], whole + b"x", b"", b"content"):
        file.write_bytes(damaged)
        assert read_cached(file) is None


def test_several_write_at_once(tmp_path):
    """As the processes of a training on several cards do."""
    file, contents = tmp_path / "b", [bytes([value]) * 100_000 for value in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: write_cached(file, content), contents * 10))
        assert read_cached(file) in contents
    assert list(tmp_path.iterdir()) == [file]


def test_what_cannot_be_written_is_not(tmp_path):
    (tmp_path / "a").write_text("a file where a folder belongs")
    write_cached(tmp_path / "a" / "b", b"content")
    (tmp_path / "c").mkdir()
    write_cached(tmp_path / "c", b"content")  # fails at the last step
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c"]

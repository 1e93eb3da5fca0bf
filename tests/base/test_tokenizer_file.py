"""What kind of file a tokenizer is in."""

import pytest

from ptune.base.tokenizer_file import TokenizerFile, kind_of


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"IQ== 0\nIg== 1\n", TokenizerFile.RANKS),
        (b"AA== 0\r\n", TokenizerFile.RANKS),
        (b"AA== 0", TokenizerFile.RANKS),
        (b"\n\x0e\n\x05<unk>", TokenizerFile.SENTENCEPIECE),
        (b"version https://git-lfs.github.com/spec/v1\noid", TokenizerFile.POINTER),
        (b"version: 1\n", TokenizerFile.UNKNOWN),
        (b"{}", TokenizerFile.UNKNOWN),
        (b"", TokenizerFile.UNKNOWN),
        (None, TokenizerFile.UNKNOWN),
    ],
)
def test_kind(tmp_path, content, kind):
    file = tmp_path / "tokenizer.model"
    if content is not None:
        file.write_bytes(content)
    assert kind_of(file) is kind


@pytest.mark.parametrize("generation", [1, 2, 3, 4])
def test_files_of_the_generations(generation, toy_folder):
    (file,) = toy_folder(generation).glob("*.model")
    expected = TokenizerFile.RANKS if generation == 4 else TokenizerFile.SENTENCEPIECE
    assert kind_of(file) is expected

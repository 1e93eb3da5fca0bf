"""Declarations of settings: ranges, and what they refuse."""

import dataclasses
from pathlib import Path

import pytest

from ptune.config.declaration import Range, Settings, declared, flag, setting, shown
from ptune.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Small(Settings):
    text: str = setting("A", "word", "Text.")
    long: str = setting("A", "", "Long text.", lines=True)
    folder: Path | None = setting("A", None, "Folder.")
    count: int = setting("A", 1, "Number.", within=Range(least=1, most=9), otherwise="none of it")
    switch: bool = setting("A", False, "Switch.")
    only: int = setting("A", 2, "Needs the switch.", needs="switch")
    way: str = setting("A", "one", "A choice.", choices=("one", "other"))
    width: int = setting("A", 3, "Of the other way.", needs=("way", "other"))


@pytest.mark.parametrize(
    ("within", "inside", "outside", "said"),
    [
        (Range(least=1, most=10**6), [1, 10**6], [0, 10**6 + 1], "1 to 1,000,000"),
        (Range(above=0, most=1), [1e-300, 1], [0, 1.1], "more than 0 and at most 1"),
        (Range(least=0, below=1), [0, 0.999], [-1e-9, 1], "at least 0 and less than 1"),
    ],
)
def test_range(within, inside, outside, said):
    assert all(value in within for value in inside)
    assert not any(value in within for value in outside)
    assert not any(float(name) in within for name in ("nan", "inf", "-inf"))
    assert str(within) == said


def test_out_of_range():
    message = "^count 10 is out of range; use 1 to 9, or none of it$"
    with pytest.raises(ConfigError, match=message):
        Small(count=10)


@pytest.mark.parametrize("text", ["", " ", "\t", "a\0b", "a\nb", "\x1b[31m", "\x85"])
def test_text_that_is_none(text):
    what = "is blank; write something" if not text.strip() else "holds a control character"
    with pytest.raises(ConfigError, match=f"^text .* {what}") as caught:
        Small(text=text)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


def test_what_goes_with_one_choice():
    assert Small(way="other", width=4).width == 4
    assert Small(width=3).width == 3  # the default, and not asked for
    for given in ({"width": 4}, {"width": 3, "given": frozenset({"width"})}):
        message = "^--width has no effect without --way other; pass that, too, or leave it out$"
        with pytest.raises(ConfigError, match=message):
            Small(**given)
    message = "^--width has no effect with --way one; leave one of them out$"
    with pytest.raises(ConfigError, match=message):
        Small(width=4, given=frozenset({"way"}))


def test_bytes_that_are_no_text():
    for values in ({"folder": Path("a\udcff")}, {"text": "\udcff"}, {"long": "a\udcff"}):
        with pytest.raises(ConfigError, match=r"holds a byte that is not UTF-8 \('\\udcff'\)"):
            Small(**values)


def test_text_of_several_lines():
    assert Small(long="a\n\tb").long == "a\n\tb"
    assert Small().long == ""
    with pytest.raises(ConfigError, match="control character"):
        Small(long="a\0")


def test_text_may_be_of_any_language():
    for text in ("中文\u3000名", "naïve\xa0name", "😀"):
        assert Small(text=text, folder=Path(text)).folder == Path(text)


def test_given():
    assert Small().given == frozenset()
    assert Small(count=3).given == {"count"}
    asked = Small(given=frozenset({"text"}), count=3)
    assert asked.given == {"text", "count"}
    assert dataclasses.replace(asked, count=4).given == {"text", "count"}
    assert Small(given=frozenset({"text"})) == Small()
    assert [field.name for field in declared(asked)] == [
        *("text", "long", "folder", "count", "switch", "only", "way", "width")
    ]


def test_effect():
    assert Small(switch=True, only=3).only == 3
    with pytest.raises(ConfigError, match=r"^--only has no effect without --switch; pass that"):
        Small(only=3)
    with pytest.raises(ConfigError, match=r"^--only has no effect without --switch; pass that"):
        Small(given=frozenset({"only"}))
    with pytest.raises(ConfigError, match=r"^--only has no effect with --no-switch; leave one of"):
        Small(given=frozenset({"only", "switch"}))


def test_flag():
    assert flag("max_steps") == "--max-steps"
    assert flag("do_sample", False) == "--no-do-sample"


def test_values_are_shown_short():
    assert shown("word") == "'word'"
    assert shown(Path("a/b")) == "'a/b'"
    assert shown(2**64) == "18446744073709551616"
    assert shown(1 << 20000) == "of 20,001 bits"
    assert len(shown("x" * 10**6)) == 80
    assert len(shown([["x" * 100] * 100] * 100)) < 1000


def test_text_that_only_the_locale_takes_for_no_utf8(monkeypatch):
    text = "数据".encode().decode("ascii", "surrogateescape")
    with pytest.raises(ConfigError, match=r"^text '.*' holds a byte that is not UTF-8 \("):
        Small(text=text)
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "ascii")
    message = "^text '数据' is UTF-8, but the locale's encoding is ascii; set LC_ALL=C.UTF-8 or PYT"
    with pytest.raises(ConfigError, match=message):
        Small(text=text)
    with pytest.raises(ConfigError, match=r"holds a byte that is not UTF-8"):
        Small(text="a\udcff")
    with pytest.raises(ConfigError, match=r"holds a control character"):
        Small(text="a\x01")

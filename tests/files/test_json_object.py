"""JSON objects from files: what is none is said in a few words."""

import pytest

from ptune.files.json_object import read_json_object


def test_reading(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{"长": [1, 2.5e-3, null, true], "b": {"c": -1}}', encoding="utf-8")
    assert read_json_object(file) == {"长": [1, 0.0025, None, True], "b": {"c": -1}}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not JSON .Expecting value"),
        (b"{", "is not JSON .Expecting"),
        (b'{\n"a": "\n"}', "is not JSON .Invalid control character, line 2.$"),
        (b'{"a": 1, "b": {}, "a": 1}', "is not JSON .key 'a' occurs twice.$"),
        (b'{"b": [{"a": 1, "a": 2}]}', "is not JSON .key 'a' occurs twice.$"),
        (b"\xff\xfe", "is not JSON .'utf-8' codec"),
        (b"[" * 100_000, "is not JSON .nested too deeply.$"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "is not JSON .a number of more than 4,300 digits.$"),
        (b'{"a": NaN}', "is not JSON .NaN is no number of JSON."),
        (b'{"a": [{"b": -Infinity}]}', "is not JSON .-Infinity is no number of JSON."),
        (b'{"a": 1e999}', "is not JSON .1e999 is too large for a number."),
        (b"[1]", "holds no JSON object"),
        (b"null", "holds no JSON object"),
        (b"3", "holds no JSON object"),
    ],
)
def test_what_is_no_object(tmp_path, content, said):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_json_object(file)

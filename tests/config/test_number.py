"""Numbers as people write them."""

import pytest

from ptune.config.number import parse_number, parse_whole

WHOLE = {"10": 10, "010": 10, " -3 ": -3, "1e3": 1000, "20.0": 20, "9007199254740993": 2**53 + 1}


@pytest.mark.parametrize(("value", "number"), [*WHOLE.items(), (7, 7), (7.0, 7)])
def test_whole_numbers(value, number):
    found = parse_whole(value)
    assert found == number and type(found) is int


@pytest.mark.parametrize("value", ["1_0", "0x10", "0b1", "1:30", "2.5", "nan", "", "many", "1_0.0"])
def test_what_is_no_whole_number(value):
    with pytest.raises(ValueError):
        parse_whole(value)


def test_numbers():
    assert [parse_number(v) for v in ("2e-2", "010.5", 3)] == [0.02, 10.5, 3.0]
    for value in ("1_0.5", "1:30.5", "0x1", ".inf"):
        with pytest.raises(ValueError):
            parse_number(value)

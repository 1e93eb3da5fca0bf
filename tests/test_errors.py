"""What the system complains about, in words."""

import os

import pytest

from ptune.errors import reason_of


def test_reason_has_the_path_and_no_number(tmp_path):
    with pytest.raises(OSError) as caught:
        (tmp_path / "absent").open()
    assert reason_of(caught.value) == f"No such file or directory: {tmp_path / 'absent'}"
    assert reason_of(OSError("disk on fire")) == "disk on fire"
    with pytest.raises(OSError) as caught:
        os.stat(b"/\xff\xfe")
    assert "\udcff" in reason_of(caught.value)

"""Settings of `ptune predict` that are refused before anything is looked at."""

from pathlib import Path

import pytest

from ptune.config.predict_settings import PredictSettings
from ptune.errors import ConfigError

GIVEN = {"model": "tiny", "data": (Path("questions"),), "output": Path("answers")}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": ()}, "--data is missing; pass files or a folder of questions"),
        ({"output": Path()}, "--output is missing; pass a folder for the answers"),
        (
            {"model": None},
            "no model is given; pass --checkpoint DIR (a trained prefix) or --model MERGED",
        ),
        ({"workers": 0}, "workers 0 is out of range; use 1 to 10,000"),
        ({"shard_size": 0}, "shard_size 0 is out of range; use 1 to 1,000,000"),
        (
            {"device": "cuda:1", "workers": 2},
            "device cuda:1 is one card, and each worker of Ray has a card of its own; use --device "
            "cuda",
        ),
    ],
)
def test_refused(changes, said):
    with pytest.raises(ConfigError) as refused:
        PredictSettings(**GIVEN | changes)
    assert str(refused.value) == said


def test_what_ray_is_for():
    assert not PredictSettings(**GIVEN).distributed
    assert not PredictSettings(**GIVEN, workers=1, device="cuda:1").distributed
    assert PredictSettings(**GIVEN, workers=2).distributed
    assert PredictSettings(**GIVEN, workers=1, ray="auto").distributed
    # A folder that is named is given, also this one.
    assert PredictSettings(**GIVEN | {"output": Path()}, given=frozenset({"output"}))

"""Inputs that hypothesis makes of good ones; `make fuzz` goes on for as long as it is let."""

import pytest
from fuzz.targets import Targets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

NAMES = ["records", "model_config", "checkpoint_config", "manifest", "yaml", "prefix", "index"]
NAMES += ["prompt", "predictions"]
TOKENS = [b'"', b"{", b"}", b"[", b"]", b":", b",", b"null", b"NaN", b"-1", b"1e999", b"\0", b"\n"]
TOKENS += [b"\xff\xfe", b"\xed\xa0\x80", b"9" * 30, b"true", b"../", b"<sop>", b"[" * 50]
TOKENS += ["\u202e".encode(), b"\r", b"\\", b"&a *a", b"!!python/name:os.system"]


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    return Targets(tmp_path_factory.mktemp("fuzz"))


@st.composite
def changed(draw, seeds):
    """A good input in which pieces are removed, repeated, replaced and put in."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from([0, 1, 2, 8, 40])))
        put = draw(st.one_of(st.sampled_from(TOKENS), st.binary(max_size=8), st.just(data[:60])))
        data = data[:start] + put + data[end:]
    return data


@pytest.mark.parametrize("name", NAMES)
def test_an_error_of_ptunes_or_none(name, targets):
    assert name in targets.seeds and targets.seeds.keys() == set(NAMES)
    for seed in targets.seeds[name]:
        getattr(targets, name)(seed)  # the good ones are good

    @settings(
        max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
    )
    @given(st.one_of(changed(targets.seeds[name]), st.binary(max_size=200)))
    def tries(data):
        targets.run(name, data)

    tries()

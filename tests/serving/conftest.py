"""The built-in model, and a server of it."""

from types import SimpleNamespace

import pytest
from fixtures.servers import serving

from ptune import load_model
from ptune.base.folder import find_base_model
from ptune.data.tokenizer import build_tokenizer


@pytest.fixture(scope="session")
def tiny():
    base = find_base_model("tiny")
    model = load_model("tiny", dtype="float32", device="cpu")
    return SimpleNamespace(base=base, model=model, tokenizer=build_tokenizer(base))


@pytest.fixture(scope="module")
def server(tiny):
    with serving(tiny) as found:
        yield found

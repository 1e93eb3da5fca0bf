"""The application of a server from its settings, and what is refused of them."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

from ptune.config.settings import ServeSettings
from ptune.errors import ConfigError
from ptune.serving.build import _bare_name, _bits, _folders, build_app


def settings(**values):
    return ServeSettings(**{"model": "tiny"} | values)


def test_an_application_whose_engine_lives_as_long(monkeypatch):
    monkeypatch.setenv("PTUNE_API_KEYS", "k")
    said = []
    app, answers = build_app(settings(device="cpu", cache_memory="64MB"), said.append)
    assert said[0] == "loading tiny" and "a KV cache of" in said[1]
    assert answers.store.names == ["tiny"]
    with TestClient(app) as client:
        assert client.post("/", json={"prompt": "你好"}).status_code == 401
        known = {"Authorization": "Bearer k"}
        answer = client.post("/", json={"prompt": "你好"}, headers=known)
        assert answer.status_code == 200 and answer.json()["response"]
    assert answers.worker.join(0)


def test_names(tmp_path):
    found = _folders(settings(checkpoint=tmp_path / "ads", prefix=("qa=/x", "b=y=z")), "tiny")
    assert found == {"ads": tmp_path / "ads", "qa": Path("/x"), "b": Path("y=z")}
    with pytest.raises(ConfigError, match="are both called ads; give one another name with --pre"):
        _folders(settings(checkpoint=tmp_path / "ads", prefix=("ads=/x",)), "tiny")
    with pytest.raises(ConfigError, match="/x is called tiny, as the model itself; give it anothe"):
        _folders(settings(prefix=("tiny=/x",)), "tiny")


def test_the_bare_model_is_called_by_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"tiny": "tiny", "THUDM/chatglm-6b": "chatglm-6b", ".": tmp_path.name}
    for given, name in (names | {str(tmp_path): tmp_path.name}).items():
        assert _bare_name(SimpleNamespace(name=given)) == name


def test_prefixes_of_different_bits(monkeypatch):
    bits = {Path("a"): "4", Path("b"): None}
    monkeypatch.setattr("ptune.serving.build.trained_bits", lambda base, folder, _: bits[folder])
    assert _bits(None, settings(), [Path("a")]) == "4" and _bits(None, settings(), []) is None
    assert _bits(None, settings(quantization_bit="8"), list(bits)) == "8"
    with pytest.raises(
        ConfigError, match=r"in different bits \(4 and none\); choose with --quanti"
    ):
        _bits(None, settings(), list(bits))

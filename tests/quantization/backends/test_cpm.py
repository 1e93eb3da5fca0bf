"""The same machine code through cpm_kernels, which finds its libraries or does not."""

import importlib.util
import os
import sys

import pytest
import torch

from ptune.quantization.backends import cpm, probe

CUDA = torch.device("cuda", 0)
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("cpm_kernels") is None, reason="needs the package cpm_kernels"
)
# What the package takes from setuptools, of which newer versions have it no more.
PKG_RESOURCES = """
from importlib.resources import files
resource_exists = lambda package, name: True
resource_string = lambda package, name: (files('cpm_kernels.kernels') / name).read_bytes()
"""


@pytest.fixture
def libraries(simulated_driver, tmp_path, monkeypatch):
    """A CUDA toolkit as the package looks for one, and the part of setuptools that it needs."""
    (tmp_path / "lib64").mkdir()
    for name in ("cuda", "cudart", "cublasLt"):
        (tmp_path / "lib64" / f"lib{name}.so").symlink_to(simulated_driver)
    (tmp_path / "pkg_resources.py").write_text(PKG_RESOURCES)
    monkeypatch.setenv("CUDA_PATH", str(tmp_path))
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    return tmp_path


@needs_package
def test_launches_our_machine_code_on_a_p100(simulate, nvrtc, libraries):
    """That the package has none for this card is of no account."""
    simulate("P100", new_process=True)
    assert probe.probe_backend("cpm", CUDA) == probe.ProbeResult(True)


@needs_package
def test_without_pkg_resources(simulate, nvrtc, libraries):
    (libraries / "pkg_resources.py").write_text(
        "raise ModuleNotFoundError('No module pkg_resources')"
    )
    simulate("P100")
    reason = probe.probe_backend("cpm", CUDA).reason
    assert "import of cpm_kernels failed: ModuleNotFoundError" in reason
    assert reason.endswith("; pip install 'setuptools<82'")


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA driver version is insufficient"), OSError("x")]
)
def test_an_import_that_fails_in_any_way_is_a_reason(monkeypatch, error):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name.startswith("cpm_kernels"):
                raise error

    for name in [name for name in sys.modules if name.startswith("cpm_kernels")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    cpm._packages.cache_clear()
    with pytest.raises(cpm.CpmError, match=f"import of cpm_kernels failed: {type(error).__name__}"):
        cpm.dequantize(torch.zeros(2, 2, dtype=torch.int8), torch.ones(2), 8, torch.float16)


def test_a_machine_without_the_package(simulate, nvrtc, monkeypatch):
    simulate("H100")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "cpm_kernels" else find(name)
    )
    assert probe.probe_backend("cpm", CUDA).reason == "cpm_kernels is not installed"


def test_nothing_else_imports_the_package():
    folder = probe.Path(cpm.__file__).parents[2]
    texts = {file.name: file.read_text(encoding="utf-8") for file in folder.rglob("*.py")}
    words = ("import cpm_kernels", "from cpm_kernels")
    users = {name for name, text in texts.items() if any(word in text for word in words)}
    assert users == {"cpm.py"}

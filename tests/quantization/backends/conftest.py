"""Fixtures of the backends: dequantize.cu on the CPU, and simulated cards."""

import faulthandler
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import simulated_card
import torch

from ptune.quantization.backends import cuda_kernel, probe, registry
from ptune.quantization.backends.nvrtc import NvrtcError, find_library

HERE = Path(__file__).parent
CUDA = "12.9"  # of the simulated cards


@pytest.fixture(scope="session")
def simulated_driver(tmp_path_factory):
    """The file of a driver that runs dequantize.cu on the CPU."""
    if not shutil.which("g++"):
        pytest.skip("needs g++")
    library = tmp_path_factory.mktemp("driver") / "libcuda.so"
    source = HERE / "simulated_driver.cpp"
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-cast-function-type"]
    # A card faults on an access that is not aligned, where this processor would not.
    strict = ["-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"]
    options = ["-O1", "-std=c++17", "-shared", "-fPIC", *warnings, *strict]
    command = ["g++", *options, "-o", library, source]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return library


@pytest.fixture(scope="session")
def nvrtc():
    """The file of NVRTC 12, which compiles for every card without having one."""
    try:
        return find_library(CUDA)
    except NvrtcError as error:
        pytest.skip(f"needs the package nvidia-cuda-nvrtc-cu12: {error}")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ptune"


@pytest.fixture
def simulate(simulated_driver, cache, monkeypatch):
    """Simulate a card: `simulate("P100", fault="numbers")`.

    The probe's subprocess is forked from this one, which spares it the seconds of importing torch,
    or started as always with `new_process=True`.
    """

    def put_in(name, fault="", new_process=False):
        found = simulated_card.CARDS[name]
        simulated_card.put_in(name, simulated_driver, monkeypatch.setattr)
        monkeypatch.setenv("SIMULATED_SM", str(found.sm))
        monkeypatch.setenv("SIMULATED_FAULT", fault)
        script = str(HERE / "simulated_card.py")
        command = [sys.executable, script, name, str(simulated_driver)]
        monkeypatch.setattr(probe, "command", lambda: command)
        if not new_process:
            monkeypatch.setattr(probe, "start", lambda arguments: fork(arguments, cache.parent))
        find = registry.missing_requirement

        def missing_requirement(backend, card):
            # Triton, where it is installed, knows no simulated card.
            missing = "triton is not installed" if backend == "triton" else None
            return find(backend, card) or missing

        monkeypatch.setattr(probe, "missing_requirement", missing_requirement)
        monkeypatch.setattr(cuda_kernel, "_modules", {})
        monkeypatch.setattr(cuda_kernel, "_functions", {})
        cuda_kernel.driver.cache_clear()

    yield put_in
    cuda_kernel.driver.cache_clear()


def fork(arguments, folder):
    """Run the probe's `main` in a copy of this process."""
    files = [folder / "stdout", folder / "stderr"]
    child = os.fork()
    if not child:
        try:
            for number, file in enumerate(files, start=1):
                os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
            sys.stdout = os.fdopen(1, "w")
            faulthandler.disable()  # of pytest
            torch.set_num_threads(1)  # those of OpenMP do not survive a fork
            simulated_card.run(arguments)
            sys.stdout.flush()
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    output = [file.read_text() for file in files]
    return subprocess.CompletedProcess(arguments, code, *output)

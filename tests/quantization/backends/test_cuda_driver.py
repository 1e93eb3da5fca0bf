"""Calls of the CUDA driver API, and the texts of its errors."""

import pytest

from ptune.quantization.backends.cuda_driver import CudaError, Driver


@pytest.fixture
def driver(simulated_driver, monkeypatch):
    monkeypatch.setenv("SIMULATED_SM", "75")
    monkeypatch.setenv("SIMULATED_FAULT", "")
    return Driver(str(simulated_driver))


def image(sm):
    return b"\x7fELF" + bytes(44) + bytes([sm, 0, 0, 0])


def test_no_driver():
    with pytest.raises(CudaError, match=r"libcuda\.so\.99 not found: no NVIDIA driver"):
        Driver("libcuda.so.99")


def test_version(driver):
    assert driver.cuda_version() == "12.9"


@pytest.mark.parametrize("sm", [70, 75])
def test_code_of_the_same_major_version_runs(driver, sm):
    assert driver.load(0, image(sm)).value


@pytest.mark.parametrize("sm", [60, 76, 80])
def test_other_code_does_not(driver, sm):
    message = (
        "cuModuleLoadData: no kernel image is available for execution on the device"
        r" \(CUDA_ERROR_NO_BINARY_FOR_GPU = 209\)"
    )
    with pytest.raises(CudaError, match=message):
        driver.load(0, image(sm))


def test_what_is_no_code(driver):
    with pytest.raises(CudaError, match=r"device kernel image is invalid .*INVALID_IMAGE = 200"):
        driver.load(0, b"no code")


def test_a_kernel_that_is_not_there(driver):
    with pytest.raises(CudaError, match=r"named symbol not found .*NOT_FOUND = 500"):
        driver.function(0, driver.load(0, image(75)), "dequantize_int3")


def test_a_launch_that_the_card_refuses(driver):
    module = driver.load(0, image(75))
    function = driver.function(0, module, "dequantize_int4_float16")
    with pytest.raises(CudaError, match=r"cuLaunchKernel: invalid argument"):
        driver.launch(0, function, (0, 1), 128, 0, [])

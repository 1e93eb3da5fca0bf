"""Full memory is recognized in everybody's words, and said in one."""

import pytest
import torch

from ptune.device.full_memory import is_out_of_memory, memory_advice
from ptune.errors import ConfigError


def test_full_memory_becomes_advice():
    full = pytest.raises(ConfigError, match=r"^memory is full \(2 GiB\); use less$")
    with full, memory_advice("less"):
        raise torch.OutOfMemoryError("2 GiB")
    text = "CUDA out of memory. Tried to allocate 2 MiB. GPU 0 has a total capacity of 1 GiB. If"
    short = r"memory is full \(CUDA out of memory. Tried to allocate 2 MiB\); use less"
    with pytest.raises(ConfigError, match=short), memory_advice("less"):
        raise torch.OutOfMemoryError(text)


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB.", True),
        ("CUDA error: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", True),
        ("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED", True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED", True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", True),
        ("MPS backend out of memory (MPS allocated: 5.56 GB, max allowed: 6.80 GB)", True),
        ("Invalid buffer size: 9.75 GB", True),
        ("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried", True),
        ("[enforce fail] DefaultCPUAllocator: not enough memory: you tried", True),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`", False),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR", False),
        ("CUDA error: an illegal memory access was encountered", False),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_words_for_full_memory(text, full):
    assert is_out_of_memory(RuntimeError(text)) is full
    assert not is_out_of_memory(ValueError(text))


def test_python_says_it_in_its_own_way():
    assert is_out_of_memory(MemoryError())
    for said, shown in (
        (MemoryError("Unable to allocate 9 GiB"), "Unable"),
        (MemoryError(), "Mem"),
    ):
        full = pytest.raises(ConfigError, match=rf"^memory is full \({shown}.*\); use less$")
        with full, memory_advice("less"):
            raise said


def test_full_memory_in_other_words_becomes_advice_and_other_errors_pass():
    with pytest.raises(ConfigError, match="use less"), memory_advice("less"):
        raise RuntimeError("CUDA error: out of memory")
    with pytest.raises(RuntimeError, match="illegal"), memory_advice("less"):
        raise RuntimeError("CUDA error: illegal")

"""NVRTC: where it is found, dequantize.cu compiled for every card, and the cache."""

import struct

import pytest

from ptune.quantization.backends import nvrtc as module
from ptune.quantization.backends.cuda_kernel import SOURCE
from ptune.quantization.backends.nvrtc import Compiler, NvrtcError, compile_for, find_library

CARDS = [60, 61, 70, 75, 80, 86, 89, 90, 100, 120]
KERNELS = {
    f"dequantize_int{bits}_{dtype}"
    for bits in (4, 8)
    for dtype in ("float16", "bfloat16", "float32")
}
MIN_STACK_SIZE = 0x12  # of .nv.info: bytes of local memory that a kernel needs


def read_sections(cubin):
    """The sections of a 64-bit ELF file, by name."""
    start, size, count, names = struct.unpack_from("<Q10xHHH", cubin, 40)
    headers = [struct.unpack_from("<IIQQQQ", cubin, start + i * size) for i in range(count)]
    sections = [(name, cubin[at : at + length]) for name, _, _, _, at, length in headers]
    texts = sections[names][1]
    return {texts[at : texts.index(b"\0", at)].decode(): body for at, body in sections}


def stack_sizes(info):
    """The records of .nv.info: format, attribute, length, and here a symbol and its bytes."""
    at = 0
    while at < len(info):
        form, attribute, length = struct.unpack_from("<BBH", info, at)
        if form == 4 and attribute == MIN_STACK_SIZE:
            yield struct.unpack_from("<II", info, at + 4)[1]
        at += 4 + (length if form == 4 else 0)


def architecture(cubin):
    flags = struct.unpack_from("<I", cubin, 48)[0]
    return flags & 0xFF if flags & 0xFF >= 30 else flags >> 8 & 0xFF  # moved with sm_100


@pytest.mark.parametrize("sm", CARDS)
def test_compiles_for_every_card(nvrtc, sm):
    compiler = Compiler(nvrtc)
    cubin = compiler.compile(SOURCE.read_text(encoding="utf-8"), compiler.target(sm))
    sections = read_sections(cubin)
    assert architecture(cubin) == sm
    assert {
        name.removeprefix(".text.") for name in sections if name.startswith(".text.")
    } == KERNELS
    sizes = list(stack_sizes(sections[".nv.info"]))
    assert sizes == [0] * len(KERNELS)  # everything is in registers


def test_a_card_newer_than_the_compiler_gets_code_of_its_major_version(nvrtc):
    compiler = Compiler(nvrtc)
    assert compiler.target(87) == 87
    assert compiler.target(88) == 87
    assert compiler.target(129) == 121
    with pytest.raises(NvrtcError, match=r"NVRTC 12\.\d has no code for sm_35, only for sm_50 to"):
        compiler.target(35)


def test_an_error_holds_the_log_of_the_compiler(nvrtc):
    with pytest.raises(
        NvrtcError, match=r"(?s)for sm_75: NVRTC_ERROR_COMP.*ptune\.cu\(1\).*nonsense"
    ):
        Compiler(nvrtc).compile("nonsense;", 75)


def test_compiles_once(nvrtc, cache, monkeypatch):
    first = compile_for("__global__ void f() {}", 60, "12.9")
    (file,) = cache.rglob("*.cubin")
    assert file.parent.name == "sm_60"
    monkeypatch.setattr(Compiler, "compile", None)
    assert compile_for("__global__ void f() {}", 60, "12.9") == first
    with pytest.raises(TypeError):
        compile_for("__global__ void f() {}", 60, "12.9", fresh=True)
    with pytest.raises(TypeError):
        compile_for("__global__ void g() {}", 60, "12.9")


def test_a_cache_that_cannot_be_written_changes_nothing(nvrtc, cache):
    cache.write_text("a file where the folder belongs")
    assert compile_for("__global__ void f() {}", 60, "12.9").startswith(b"\x7fELF")


def test_takes_the_version_of_torch(tmp_path, monkeypatch):
    """Both may be installed; the newer has no code for the cards that torch still has."""
    for folder, name in [("cuda_nvrtc", "libnvrtc.so.12"), ("cu13", "libnvrtc.so.13")]:
        (tmp_path / folder / "lib").mkdir(parents=True)
        (tmp_path / folder / "lib" / name).touch()
        (tmp_path / folder / "lib" / name.replace("nvrtc.so", "nvrtc.alt.so")).touch()
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path)], "origin": None})
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: spec)
    assert find_library("12.6") == str(tmp_path / "cuda_nvrtc" / "lib" / "libnvrtc.so.12")
    assert find_library("13.0") == str(tmp_path / "cu13" / "lib" / "libnvrtc.so.13")


@pytest.mark.parametrize("variable", ["CUDA_PATH", "CUDA_HOME"])
def test_takes_an_installed_cuda(tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, str(tmp_path))
    (tmp_path / "lib64").mkdir()
    (tmp_path / "lib64" / "libnvrtc.so.77.1").touch()
    assert find_library("77.1") == str(tmp_path / "lib64" / "libnvrtc.so.77.1")


def test_what_is_not_there_has_a_name():
    with pytest.raises(NvrtcError, match=r"libnvrtc\.so\.99 not found"):
        find_library("99.1")
    with pytest.raises(NvrtcError, match="this torch is not built for CUDA"):
        find_library(None)


def test_a_library_that_is_none(tmp_path):
    (tmp_path / "libnvrtc.so.12").write_text("no library")
    with pytest.raises(NvrtcError, match=r"libnvrtc\.so\.12 cannot be loaded"):
        Compiler(str(tmp_path / "libnvrtc.so.12"))

"""Run-time compilation of CUDA C with NVRTC, which comes with torch.

The calls are those of the NVRTC reference.  The result is machine code (a cubin) for the card's
architecture: unlike PTX it needs no compilation by the driver, and so no newer driver.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from ptune.files.cache_folder import cache_folder
from ptune.quantization.backends.cache import read_cached, write_cached

OPTIONS = ("--std=c++14",)


class NvrtcError(RuntimeError):
    """NVRTC is missing, does not know the card, or refuses the source."""


def find_library(cuda: str | None) -> str:
    """Find the compiler of the CUDA version that torch was built for.

    Another major version could know other cards than torch does.

    Args:
        cuda: such as `12.6`.

    Returns:
        A file, or a name that the system's loader knows.

    Raises:
        NvrtcError: there is none.
    """
    if cuda is None:
        raise NvrtcError("this torch is not built for CUDA")
    major = int(cuda.split(".")[0])
    windows = sys.platform == "win32"
    pattern = f"nvrtc64_{major}*_0.dll" if windows else f"libnvrtc.so.{major}*"
    for folder in _folders(major):
        for file in sorted(folder.glob(pattern)):
            if ".alt." not in file.name:  # a second build of the same, smaller in memory
                return str(file)
    name = (
        f"nvrtc64_{major}0_0.dll" if windows else f"libnvrtc.so.{'11.2' if major == 11 else major}"
    )
    try:
        ctypes.CDLL(name)
    except OSError:
        raise NvrtcError(f"{name} not found") from None
    return name


def compile_for(source: str, sm: int, cuda: str | None, fresh: bool = False) -> bytes:
    """Compile for a card, or take the cached result of an earlier run.

    Args:
        source: CUDA C without includes.
        sm: the card's compute capability, 60 for 6.0.
        cuda: version of CUDA that torch was built for.
        fresh: ignore the cache; for when its content turned out to be damaged.

    Returns:
        A cubin.

    Raises:
        NvrtcError: NVRTC is missing, does not know the card, or refuses the source.
    """
    compiler = Compiler(find_library(cuda))
    target = compiler.target(sm)
    digest = hashlib.sha256("\0".join([source, *OPTIONS]).encode()).hexdigest()[:32]
    file = cache_folder() / "cubin" / compiler.version / f"sm_{target}" / f"{digest}.cubin"
    cubin = None if fresh else read_cached(file)
    if not cubin:
        cubin = compiler.compile(source, target)
        write_cached(file, cubin)
    return cubin


class Compiler:
    """The NVRTC library.

    Args:
        library: from `find_library`.
    """

    def __init__(self, library: str) -> None:
        try:
            self._library = ctypes.CDLL(library)
        except OSError as error:
            raise NvrtcError(f"{library} cannot be loaded ({error})") from None
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = f"{major.value}.{minor.value}"
        self._load_builtins(Path(library).parent)

    def _load_builtins(self, folder: Path) -> None:
        """Load the library that NVRTC opens by its bare name, which it may not find by itself."""
        name = f"libnvrtc-builtins.so.{self.version}"
        if sys.platform == "win32":
            name = f"nvrtc-builtins64_{self.version.replace('.', '')}.dll"
        if (folder / name).is_file():
            ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)

    def target(self, sm: int) -> int:
        """Return the newest architecture that this version knows and a card runs.

        Machine code runs on cards of the same major version and the same or a later minor one.

        Raises:
            NvrtcError: it has no code for the card.
        """
        count = ctypes.c_int()
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        known = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", known)
        fit = [arch for arch in known if arch // 10 == sm // 10 and arch <= sm]
        if not fit:
            raise NvrtcError(
                f"NVRTC {self.version} has no code for sm_{sm}, only for sm_{min(known)} to"
                f" sm_{max(known)}"
            )
        return max(fit)

    def compile(self, source: str, sm: int) -> bytes:
        """Compile to a cubin.

        Raises:
            NvrtcError: with the compiler's log.
        """
        program = ctypes.c_void_p()
        text, name = ctypes.c_char_p(source.encode()), ctypes.c_char_p(b"ptune.cu")
        self._call("nvrtcCreateProgram", ctypes.byref(program), text, name, 0, None, None)
        try:
            options = [f"--gpu-architecture=sm_{sm}".encode(), *(o.encode() for o in OPTIONS)]
            array = (ctypes.c_char_p * len(options))(*options)
            code = self._library.nvrtcCompileProgram(program, ctypes.c_int(len(options)), array)
            if code != 0:
                log = self._text(program, "nvrtcGetProgramLog").rstrip(b"\0").decode().strip()
                raise NvrtcError(f"NVRTC {self.version} for sm_{sm}: {self._words(code)}: {log}")
            return self._text(program, "nvrtcGetCUBIN")
        finally:
            self._call("nvrtcDestroyProgram", ctypes.byref(program))

    def _text(self, program: ctypes.c_void_p, getter: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"{getter}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(getter, program, buffer)
        return buffer.raw

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._library, name)(*arguments)
        if code != 0:
            raise NvrtcError(f"{name}: {self._words(code)}")

    def _words(self, code: int) -> str:
        return str(self._library.nvrtcGetErrorString(code).decode())


def _folders(major: int) -> Iterator[Path]:
    """Yield where NVRTC may be: torch's CUDA packages, torch itself, an installed CUDA."""
    packages = importlib.util.find_spec("nvidia")
    for root in (packages and packages.submodule_search_locations) or []:
        for inner in ("cuda_nvrtc", f"cu{major}"):
            yield Path(root) / inner / "lib"
            yield Path(root) / inner / "bin"  # Windows
    torch = importlib.util.find_spec("torch")
    if torch and torch.origin:
        yield Path(torch.origin).parent / "lib"
    for installed in (os.environ.get("CUDA_PATH"), os.environ.get("CUDA_HOME"), "/usr/local/cuda"):
        if installed:
            yield from (Path(installed) / inner for inner in ("lib64", "lib", "bin"))

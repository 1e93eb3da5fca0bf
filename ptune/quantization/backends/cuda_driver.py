"""A ctypes binding of the CUDA driver API, as far as it loads and launches kernels.

The functions and their arguments are those of the CUDA driver API reference.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


class CudaError(RuntimeError):
    """A call of the driver API failed; the text is CUDA's."""


class Driver:
    """The CUDA driver library.

    Args:
        library: file or name of the library; by default the one of the system.

    Raises:
        CudaError: there is no driver, or it does not start.
    """

    def __init__(self, library: str | None = None) -> None:
        library = library or LIBRARY
        try:
            self._library = ctypes.CDLL(library)
        except OSError as error:
            raise CudaError(f"{library} not found: no NVIDIA driver ({error})") from None
        self._contexts: dict[int, ctypes.c_void_p] = {}
        self._call("cuInit", ctypes.c_uint(0))

    def cuda_version(self) -> str:
        """Return the newest version of CUDA that this driver runs, such as `12.8`."""
        version = ctypes.c_int()
        self._call("cuDriverGetVersion", ctypes.byref(version))
        return f"{version.value // 1000}.{version.value % 1000 // 10}"

    def load(self, device: int, image: bytes) -> ctypes.c_void_p:
        """Load machine code on a device; it stays as long as the process.

        Raises:
            CudaError: such as `no kernel image is available for execution on the device`.
        """
        module = ctypes.c_void_p()
        with self._context(device):
            self._call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(image))
        return module

    def function(self, device: int, module: ctypes.c_void_p, name: str) -> ctypes.c_void_p:
        """Return a kernel of a loaded module."""
        function = ctypes.c_void_p()
        with self._context(device):
            self._call(
                "cuModuleGetFunction",
                ctypes.byref(function),
                module,
                ctypes.c_char_p(name.encode()),
            )
        return function

    def launch(
        self,
        device: int,
        function: ctypes.c_void_p,
        grid: tuple[int, int],
        threads: int,
        stream: int,
        arguments: Sequence[ctypes.c_void_p | ctypes.c_longlong],
    ) -> None:
        """Queue a kernel on a stream.

        Args:
            device: its number.
            function: from `function`, on the same device.
            grid: blocks in x and y.
            threads: per block.
            stream: handle of a stream of the device.
            arguments: one C value for each parameter of the kernel.
        """
        pointers = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        with self._context(device):
            # Grid, block, shared memory, stream, parameters, extras; c_void_p keeps 64 bits.
            sizes = (grid[0], grid[1], 1, threads, 1, 1, 0)
            self._call(
                "cuLaunchKernel",
                function,
                *map(ctypes.c_uint, sizes),
                ctypes.c_void_p(stream),
                pointers,
                ctypes.c_void_p(),
            )

    @contextmanager
    def _context(self, device: int) -> Iterator[None]:
        """Make torch's context of the device current.

        It need not be: a new thread, such as autograd's for the backward, may have none yet.
        """
        if device not in self._contexts:
            handle, context = ctypes.c_int(), ctypes.c_void_p()
            self._call("cuDeviceGet", ctypes.byref(handle), ctypes.c_int(device))
            self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
            self._contexts[device] = context
        self._call("cuCtxPushCurrent_v2", self._contexts[device])
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._library, name)(*arguments)
        if code != 0:
            raise CudaError(f"{name}: {self._words('cuGetErrorString', code)} ({self._name(code)})")

    def _name(self, code: int) -> str:
        return f"{self._words('cuGetErrorName', code)} = {code}"

    def _words(self, function: str, code: int) -> str:
        text = ctypes.c_char_p()
        getattr(self._library, function)(ctypes.c_int(code), ctypes.byref(text))
        return text.value.decode() if text.value else "unknown error"

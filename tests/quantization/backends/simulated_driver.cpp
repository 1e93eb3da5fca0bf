// A CUDA driver without a card: it loads machine code by the rule of real ones, and runs the kernels
// of that name on host memory.  SIMULATED_SM is the card's compute capability (60 for 6.0);
// SIMULATED_FAULT is how it fails: numbers, crash or launch.
#include <cstdlib>

#include "host_kernels.cpp"

enum { INVALID_VALUE = 1, INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NO_BINARY = 209,
       NOT_FOUND = 500, LAUNCH_FAILED = 719 };
static thread_local int contexts = 0;

static bool fails(const char *how) {
    const char *fault = getenv("SIMULATED_FAULT");
    return fault && !strcmp(fault, how);
}

extern "C" {

int cuInit(unsigned) { return 0; }
int cuDriverGetVersion(int *version) { *version = 12090; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int) { *context = (void *)1; return 0; }
int cuCtxPushCurrent_v2(void *) { contexts++; return 0; }
int cuCtxPopCurrent_v2(void **) { contexts--; return 0; }

int cuGetErrorName(int code, const char **name) {
    switch (code) {
        case INVALID_VALUE: *name = "CUDA_ERROR_INVALID_VALUE"; return 0;
        case INVALID_IMAGE: *name = "CUDA_ERROR_INVALID_IMAGE"; return 0;
        case INVALID_CONTEXT: *name = "CUDA_ERROR_INVALID_CONTEXT"; return 0;
        case NO_BINARY: *name = "CUDA_ERROR_NO_BINARY_FOR_GPU"; return 0;
        case NOT_FOUND: *name = "CUDA_ERROR_NOT_FOUND"; return 0;
        case LAUNCH_FAILED: *name = "CUDA_ERROR_LAUNCH_FAILED"; return 0;
    }
    *name = nullptr;
    return INVALID_VALUE;
}
int cuGetErrorString(int code, const char **text) {
    switch (code) {
        case INVALID_VALUE: *text = "invalid argument"; return 0;
        case INVALID_IMAGE: *text = "device kernel image is invalid"; return 0;
        case INVALID_CONTEXT: *text = "invalid device context"; return 0;
        case NO_BINARY: *text = "no kernel image is available for execution on the device"; return 0;
        case NOT_FOUND: *text = "named symbol not found"; return 0;
        case LAUNCH_FAILED: *text = "unspecified launch failure"; return 0;
    }
    *text = nullptr;
    return INVALID_VALUE;
}

// A cubin runs on cards of its own major version and its own minor one or a later.
int cuModuleLoadData(void **module, const void *image) {
    if (!contexts) return INVALID_CONTEXT;
    if (memcmp(image, "\177ELF", 4)) return INVALID_IMAGE;
    unsigned flags;
    memcpy(&flags, (const char *)image + 48, 4);
    int arch = flags & 0xFF;
    if (arch < 30) arch = flags >> 8 & 0xFF;  // since sm_100
    const int card = atoi(getenv("SIMULATED_SM"));
    if (arch / 10 != card / 10 || arch > card) return NO_BINARY;
    *module = (void *)1;
    return 0;
}
int cuModuleGetFunction(void **function, void *, const char *name) {
    if (!contexts) return INVALID_CONTEXT;
    *function = (void *)find_kernel(name);
    return *function ? 0 : NOT_FOUND;
}
int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned, unsigned threads, unsigned,
                   unsigned, unsigned, void *, void **arguments, void **) {
    if (!contexts) return INVALID_CONTEXT;
    if (!x || !y || y > 65535 || !threads) return INVALID_VALUE;
    if (fails("launch")) return LAUNCH_FAILED;
    if (fails("crash")) abort();
    run_kernel((Kernel)function, {x, y, 1}, threads, arguments);
    if (fails("numbers")) **(unsigned short **)arguments[2] ^= 1;
    return 0;
}

// What cpm_kernels asks of CUDA's runtime and of cuBLASLt.
int cudaRuntimeGetVersion(int *version) { *version = 12090; return 0; }
int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaSetDevice(int) { contexts = 1; return 0; }  // makes the context current
int cudaDeviceGetAttribute(int *value, int, int) { *value = 0; return 0; }
int cudaFree(void *) { return 0; }
size_t cublasLtGetVersion() { return 120900; }
int cublasLtCreate(void **handle) { *handle = (void *)1; return 0; }
}

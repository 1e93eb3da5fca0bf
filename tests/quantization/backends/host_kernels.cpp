// dequantize.cu as a host compiler sees it: what CUDA has built in, and a launch in plain loops.
#include <cmath>
#include <cstring>

#define __device__
#define __global__
#define __launch_bounds__(threads)

struct Index { unsigned int x, y, z; };
static thread_local Index blockIdx, threadIdx, gridDim;
struct alignas(16) uint4 { unsigned int x, y, z, w; };
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
template <typename To, typename From> static inline To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "of the same size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
static inline float __uint_as_float(unsigned bits) { return same_bits<float>(bits); }
static inline unsigned __float_as_uint(float value) { return same_bits<unsigned>(value); }
// IEEE 754: the nearest of the numbers 2^quantum apart, ties to even as nearbyint has them.
static unsigned short host_float_to_half(float value) {
    const unsigned short sign = __float_as_uint(value) >> 16 & 0x8000;
    const double size = std::fabs((double)value);
    if (std::isnan(size)) return 0x7E00;
    if (size == 0 || size >= 65520) return sign | (size == 0 ? 0 : 0x7C00);
    int exponent;
    std::frexp(size, &exponent);
    const int quantum = exponent - 11 < -24 ? -24 : exponent - 11;
    return sign | (((quantum + 24) << 10) + (int)std::nearbyint(std::ldexp(size, -quantum)));
}

#include "../../../ptune/quantization/backends/dequantize.cu"

typedef void (*Kernel)(const unsigned char *, const float *, void *, long long, long long);
static Kernel find_kernel(const char *name) {
#define ENTRY(NAME) if (!strcmp(name, #NAME)) return (Kernel)NAME;
    ENTRY(dequantize_int4_float16)
    ENTRY(dequantize_int4_bfloat16)
    ENTRY(dequantize_int4_float32)
    ENTRY(dequantize_int8_float16)
    ENTRY(dequantize_int8_bfloat16)
    ENTRY(dequantize_int8_float32)
    return nullptr;
}

// Arguments as cuLaunchKernel takes them: the address of each.
static void run_kernel(Kernel kernel, Index grid, unsigned threads, void **arguments) {
    gridDim = grid;
    for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
        for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++)
            for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++)
                kernel(*(const unsigned char **)arguments[0], *(const float **)arguments[1],
                       *(void **)arguments[2], *(long long *)arguments[3],
                       *(long long *)arguments[4]);
}

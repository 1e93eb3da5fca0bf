// Dequantization of official ChatGLM 4- and 8-bit weights to float16, bfloat16 and float32.
//
// value = code * scale[row]: a float32 product, rounded once to the nearest (ties to even), so the
// bits are those of ptune.quantization.codec.dequantize.  Four bits: byte j of a row holds column 2j
// in its high half and 2j + 1 in its low half, two's complement.
//
// No header is included: the wheels that bring NVRTC bring none.  The same file is compiled by a host
// compiler in the tests, which define what CUDA has built in.

#define THREADS 128
#define UNROLL 4  // loads in flight per thread

// The integer type in which 2, 4 or 8 bytes of packed codes are loaded.
template <int BYTES> struct Packed;
template <> struct Packed<2> { typedef unsigned short type; };
template <> struct Packed<4> { typedef unsigned int type; };
template <> struct Packed<8> { typedef unsigned long long type; };

// Output types: how many make 16 bytes, and the conversion of two floats to a packed word.
struct Float {
    typedef float type;
    enum { COUNT = 4 };
};
struct Half {
    typedef unsigned short type;
    enum { COUNT = 8 };
    __device__ static unsigned int pack(float low, float high);
};
struct Bfloat16 {
    typedef unsigned short type;
    enum { COUNT = 8 };
    __device__ static unsigned int pack(float low, float high);
};

// The only code that differs on a host.
#ifdef __CUDA_ARCH__
__device__ unsigned int Half::pack(float low, float high) {
#if __CUDA_ARCH__ >= 800
    unsigned int both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
#else
    unsigned short first, second;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(first) : "f"(low));
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(second) : "f"(high));
    return first | (unsigned int)second << 16;
#endif
}
#else
__device__ unsigned int Half::pack(float low, float high) {
    return host_float_to_half(low) | (unsigned int)host_float_to_half(high) << 16;
}
#endif

// Cards before sm_80 lack this conversion; integer arithmetic gives the same bits.
__device__ inline unsigned int to_bfloat16(float value) {
    const unsigned int bits = __float_as_uint(value);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FC0u;  // NaN; rounding might make it infinite
    return (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
}

__device__ unsigned int Bfloat16::pack(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    unsigned int both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
#else
    return to_bfloat16(low) | to_bfloat16(high) << 16;
#endif
}

// Code `index` of those in `packed`, as a float.
//
// The code plus half its range is put into the low bits of 2^23, whose unit in the last place is 1,
// and taken off again: exact, and faster than the conversion instruction, which memory outruns.
template <int BITS, typename P> __device__ inline float code(P packed, int index) {
    if (BITS == 4) {
        const int shift = index / 2 * 8 + (index % 2 ? 0 : 4);
        return __uint_as_float(((unsigned int)(packed >> shift) & 0xFu) ^ 0x4B000008u) - 8388616.0f;
    }
    return __uint_as_float(((unsigned int)(packed >> index * 8) & 0xFFu) ^ 0x4B000080u) - 8388736.0f;
}

template <int BITS, typename Out, typename P> struct Chunk {  // 16-bit types
    __device__ static inline uint4 convert(P packed, float scale) {
        unsigned int words[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            words[i] = Out::pack(code<BITS>(packed, 2 * i) * scale,
                                 code<BITS>(packed, 2 * i + 1) * scale);
        return make_uint4(words[0], words[1], words[2], words[3]);
    }
    __device__ static inline void store(unsigned short *out, float value) {
        *out = (unsigned short)Out::pack(value, 0.0f);
    }
};
template <int BITS, typename P> struct Chunk<BITS, Float, P> {
    __device__ static inline uint4 convert(P packed, float scale) {
        unsigned int words[4];
#pragma unroll
        for (int i = 0; i < 4; i++) words[i] = __float_as_uint(code<BITS>(packed, i) * scale);
        return make_uint4(words[0], words[1], words[2], words[3]);
    }
    __device__ static inline void store(float *out, float value) { *out = value; }
};

// Grid: x covers a row, y the rows; grid-stride loops in both where the grid is too small.
// Each thread writes 16 bytes at a time; writes of neighbouring threads are coalesced.
template <int BITS, typename Out>
__device__ inline void dequantize(const unsigned char *__restrict__ weight,
                                  const float *__restrict__ scale,
                                  typename Out::type *__restrict__ out, long long rows,
                                  long long columns) {
    typedef typename Packed<Out::COUNT * BITS / 8>::type P;
    typedef Chunk<BITS, Out, P> C;
    const long long row_bytes = columns * BITS / 8;
    const bool aligned = columns % Out::COUNT == 0 && (unsigned long long)out % 16 == 0 &&
                         (unsigned long long)weight % sizeof(P) == 0;
    const long long start = (long long)blockIdx.x * (THREADS * UNROLL) + threadIdx.x;
    const long long stride = (long long)gridDim.x * (THREADS * UNROLL);

    for (long long row = blockIdx.y; row < rows; row += gridDim.y) {
        const unsigned char *from = weight + row * row_bytes;
        typename Out::type *to = out + row * columns;
        const float factor = scale[row];
        if (aligned) {
            const P *packed = (const P *)from;
            uint4 *chunks = (uint4 *)to;
            const long long count = columns / Out::COUNT;
            for (long long first = start; first < count; first += stride) {
                P loaded[UNROLL];
#pragma unroll
                for (int i = 0; i < UNROLL; i++)
                    if (first + i * THREADS < count) loaded[i] = packed[first + i * THREADS];
#pragma unroll
                for (int i = 0; i < UNROLL; i++)
                    if (first + i * THREADS < count)
                        chunks[first + i * THREADS] = C::convert(loaded[i], factor);
            }
        } else {
            for (long long first = start; first < row_bytes; first += stride) {
                for (int i = 0; i < UNROLL && first + i * THREADS < row_bytes; i++) {
                    const long long byte = first + i * THREADS;
                    const unsigned short packed = from[byte];
                    if (BITS == 8) {
                        C::store(to + byte, code<BITS>(packed, 0) * factor);
                    } else {
                        C::store(to + 2 * byte, code<BITS>(packed, 0) * factor);
                        C::store(to + 2 * byte + 1, code<BITS>(packed, 1) * factor);
                    }
                }
            }
        }
    }
}

#define KERNEL(NAME, BITS, OUT)                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS)                                          \
        NAME(const unsigned char *weight, const float *scale, OUT::type *out, long long rows,      \
             long long columns) {                                                                  \
        dequantize<BITS, OUT>(weight, scale, out, rows, columns);                                  \
    }

KERNEL(dequantize_int4_float16, 4, Half)
KERNEL(dequantize_int4_bfloat16, 4, Bfloat16)
KERNEL(dequantize_int4_float32, 4, Float)
KERNEL(dequantize_int8_float16, 8, Half)
KERNEL(dequantize_int8_bfloat16, 8, Bfloat16)
KERNEL(dequantize_int8_float32, 8, Float)

// What the kernels of the training step share: sums over a warp, and four or eight values at a time between memory and registers, as f32 whatever their
// type in memory. Compiled by nvcc, and by an ordinary C++ compiler for tests without a GPU (`tests/src/cuda_shim`).
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#ifndef CUDA_CPU_SHIM
#include <cuda_bf16.h>
#endif

constexpr uint32_t WARP = 32;
constexpr uint32_t ALL_LANES = 0xffffffffu;

// The same sum in every lane, and the same bits in every run.
template <typename Value> __device__ __forceinline__ Value warp_sum(Value value) {
#pragma unroll
    for (uint32_t bits = WARP / 2; bits > 0; bits /= 2) {
        value += __shfl_xor_sync(ALL_LANES, value, bits);
    }
    return value;
}

// The same number, but the compiler does not know that: addresses that come of it are computed anew, instead of being kept in registers meanwhile.
__device__ __forceinline__ uint32_t forget(uint32_t number) {
#ifndef CUDA_CPU_SHIM
    asm volatile("" : "+r"(number));
#endif
    return number;
}

// A word holds two bf16, the lower half first.
__device__ __forceinline__ float low_half(uint32_t word) { return __uint_as_float(word << 16); }
__device__ __forceinline__ float high_half(uint32_t word) { return __uint_as_float(word & 0xffff0000u); }
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    uint32_t word;
    memcpy(&word, &pair, sizeof word);
    return word;
}

// `Values` consecutive values of a row, aligned to all of them or to 16 bytes.
template <int Values> struct Pack {
    float at[Values];
};
using Four = Pack<4>;
using Eight = Pack<8>;

__device__ __forceinline__ void load(Four &values, const float *from) {
    const float4 raw = *reinterpret_cast<const float4 *>(from);
    values = {{raw.x, raw.y, raw.z, raw.w}};
}
__device__ __forceinline__ void load(Four &values, const __nv_bfloat16 *from) {
    const uint2 raw = *reinterpret_cast<const uint2 *>(from);
    values = {{low_half(raw.x), high_half(raw.x), low_half(raw.y), high_half(raw.y)}};
}
__device__ __forceinline__ void load(Eight &values, const __nv_bfloat16 *from) {
    const uint4 raw = *reinterpret_cast<const uint4 *>(from);
    values = {{low_half(raw.x), high_half(raw.x), low_half(raw.y), high_half(raw.y), low_half(raw.z), high_half(raw.z), low_half(raw.w), high_half(raw.w)}};
}
__device__ __forceinline__ void load(Eight &values, const float *from) {
    const float4 low = reinterpret_cast<const float4 *>(from)[0], high = reinterpret_cast<const float4 *>(from)[1];
    values = {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
}
__device__ __forceinline__ void store(float *to, const Four &values) {
    *reinterpret_cast<float4 *>(to) = {values.at[0], values.at[1], values.at[2], values.at[3]};
}
__device__ __forceinline__ void store(__nv_bfloat16 *to, const Four &values) {
    *reinterpret_cast<uint2 *>(to) = {pack_bf16(values.at[0], values.at[1]), pack_bf16(values.at[2], values.at[3])};
}
__device__ __forceinline__ void store(__nv_bfloat16 *to, const Eight &values) {
    *reinterpret_cast<uint4 *>(to) = {pack_bf16(values.at[0], values.at[1]), pack_bf16(values.at[2], values.at[3]), pack_bf16(values.at[4], values.at[5]),
                                      pack_bf16(values.at[6], values.at[7])};
}

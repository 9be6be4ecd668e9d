// What a warp does together with tensor cores: the product of a 16 x 16 and a 16 x 8 matrix of bf16, added to f32, and loads of its right operand from shared
// memory; and two functions of numbers. A single instruction each on a GPU; without one, `tests/src/cuda_shim/mma_emulation.h` has functions of the same names.
//
// Places of a lane's values (PTX ISA, mma.m16n8k16), with g = lane / 4 and t = lane % 4, two bf16 a word, the lower half first:
//   a[0] row g, columns 2t and 2t + 1     a[1] row g + 8     a[2] row g, columns 2t + 8 and 2t + 9     a[3] row g + 8 of these
//   b[0] rows 2t and 2t + 1, column g     b[1] rows 2t + 8 and 2t + 9
//   d[0], d[1] row g, columns 2t and 2t + 1     d[2], d[3] row g + 8
#pragma once
#include "common.cuh"

#ifndef CUDA_CPU_SHIM

__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices: lane l says where row l % 8 of matrix l / 8 lies (16 bytes, aligned) and gets of each matrix row g, columns 2t and 2t + 1.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const __nv_bfloat16 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
                 : "memory");
}

// The same, but of each matrix column g, rows 2t and 2t + 1.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&to)[4], const __nv_bfloat16 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
                 : "memory");
}

// 2^x to about two units in the last place, and 1 / sqrt(x); what is below the least normal float is 0. `exp2f` and `rsqrtf` take care of those in
// several instructions, and nothing here is so small: at most 1 with all others of its row to add to, or a variance with its epsilon.
__device__ __forceinline__ float fast_exp2(float value) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
}

__device__ __forceinline__ float fast_rsqrt(float value) {
    float result;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
}

// In a kernel: shared memory of the size that the launch asked for.
#define DYNAMIC_SHARED_MEMORY(type, name) extern __shared__ type name[]

#endif

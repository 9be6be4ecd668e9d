// A warp's product of bf16 matrices, D [16, 8] += A [16, 16] B [16, 8] with f32 sums, and its operands from shared memory. One instruction on a GPU; on the CPU
// the lanes show each other their registers. With g = lane / 4 and t = lane % 4 a lane holds (PTX ISA, "Matrix Fragments for mma.m16n8k16")
//   A: rows g, g + 8, g, g + 8 at columns 2t, 2t, 2t + 8, 2t + 8 (two bf16 each, the lower half first);
//   B: rows 2t and 2t + 8 (two bf16 each) of column g;      D: row g at columns 2t, 2t + 1, then row g + 8 at the same.
#pragma once
#include "common.cuh"

struct FragmentA {
    uint32_t word[4];
};
struct FragmentB {
    uint32_t word[2];
};
struct FragmentD {
    float at[4];
};

__device__ __forceinline__ uint32_t fragment_row() { return threadIdx.x % WARP / 4; }
__device__ __forceinline__ uint32_t fragment_column() { return threadIdx.x % 4; }

#ifdef CUDA_CPU_SHIM
inline void multiply_add(FragmentD &d, const FragmentA &a, const FragmentB &b) {
    struct Shown {
        FragmentA a;
        FragmentB b;
    };
    cuda_cpu_shim::Launch &launch = *cuda_cpu_shim::Launch::current;
    launch.show(__LINE__, Shown{a, b});
    const auto half = [](uint32_t word, uint32_t number) { return number ? high_half(word) : low_half(word); };
    for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t upper = i / 2, column = 2 * fragment_column() + i % 2;
        float sum = 0.0f;
        for (uint32_t k = 0; k < 16; ++k) {
            const uint32_t t = k % 8 / 2, later = k / 8;
            const Shown of_row = launch.shown<Shown>(4 * fragment_row() + t), of_column = launch.shown<Shown>(4 * column + t);
            sum += half(of_row.a.word[upper + 2 * later], k % 2) * half(of_column.b.word[later], k % 2);
        }
        d.at[i] += sum;
    }
}
#else
__device__ __forceinline__ void multiply_add(FragmentD &d, const FragmentA &a, const FragmentB &b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d.at[0]), "+f"(d.at[1]), "+f"(d.at[2]), "+f"(d.at[3])
        : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b.word[0]), "r"(b.word[1]));
}
#endif

// Rows of 64 bf16 in shared memory, as words of two. The pitch is odd in units of 4 words, so that the 32 words of a fragment lie in 32 banks.
constexpr uint32_t SHARED_PITCH = 36;

// A from rows `row` and on, columns `16 * step` and on.
__device__ __forceinline__ FragmentA a_of_rows(const uint32_t *rows, uint32_t row, uint32_t step) {
    const uint32_t *const from = rows + (row + fragment_row()) * SHARED_PITCH + 8 * step + fragment_column();
    return {{from[0], from[8 * SHARED_PITCH], from[4], from[8 * SHARED_PITCH + 4]}};
}

// B whose columns are rows `row` and on: B[k][n] = rows[row + n][16 * step + k].
__device__ __forceinline__ FragmentB b_of_rows(const uint32_t *rows, uint32_t row, uint32_t step) {
    const uint32_t *const from = rows + (row + fragment_row()) * SHARED_PITCH + 8 * step + fragment_column();
    return {{from[0], from[4]}};
}

// B as it lies: B[k][n] = rows[row + k][column + n].
__device__ __forceinline__ FragmentB b_as_it_lies(const uint32_t *rows, uint32_t row, uint32_t column) {
    const uint32_t n = column + fragment_row();
    const uint32_t *const from = rows + (row + 2 * fragment_column()) * SHARED_PITCH + n / 2;
    const auto pair = [n](uint32_t first, uint32_t second) { return n % 2 ? first >> 16 | (second & 0xffff0000u) : (first & 0xffffu) | second << 16; };
    return {{pair(from[0], from[SHARED_PITCH]), pair(from[8 * SHARED_PITCH], from[9 * SHARED_PITCH])}};
}

// The D fragments of two neighbouring columns of products as A of the next: [16, 16].
__device__ __forceinline__ FragmentA a_of_results(const FragmentD &left, const FragmentD &right) {
    return {{pack_bf16(left.at[0], left.at[1]), pack_bf16(left.at[2], left.at[3]), pack_bf16(right.at[0], right.at[1]),
             pack_bf16(right.at[2], right.at[3])}};
}

// The sum, and the greatest, over the four lanes that hold a row of D.
__device__ __forceinline__ float row_of_d_sum(float value) {
    value += __shfl_xor_sync(ALL_LANES, value, 1);
    return value + __shfl_xor_sync(ALL_LANES, value, 2);
}
__device__ __forceinline__ float row_of_d_max(float value) {
    value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, 1));
    return fmaxf(value, __shfl_xor_sync(ALL_LANES, value, 2));
}

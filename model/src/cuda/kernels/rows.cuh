// Rows of D values as the norms read them: a warp holds a whole row in registers, so statistics take two passes and memory is read once. A block takes
// a fixed piece of the rows, and its sums over rows go to a place of their own, [pieces, quantities, D], from which `add_partials` adds them in order.
#pragma once
#include "common.cuh"

// Threads of a block, and the rows that it works on at once.
constexpr uint32_t ROW_THREADS = 256;
constexpr uint32_t ROW_WARPS = ROW_THREADS / WARP;
// Vectors of four that a lane holds: vector i of lane l are the columns from 4 * (32 * i + l).
constexpr int ROW_VECTORS = 8;
// The widest row; the width must be a multiple of 4.
constexpr uint32_t MAX_WIDTH = ROW_VECTORS * WARP * 4;

struct Row {
    Four vector[ROW_VECTORS];
};

__device__ __forceinline__ uint32_t lane_number() { return threadIdx.x % WARP; }
__device__ __forceinline__ uint32_t warp_number() { return threadIdx.x / WARP; }

// Calls `each(vector, column of its first value)` for the lane's vectors.
template <typename Each> __device__ __forceinline__ void for_vectors(uint32_t width, Each each) {
#pragma unroll
    for (int i = 0; i < ROW_VECTORS; ++i) {
        const uint32_t column = 4 * (WARP * i + lane_number());
        if (column < width) {
            each(i, column);
        }
    }
}

template <typename Value> __device__ __forceinline__ void load_row(Row &row, const Value *from, uint32_t width) {
    for_vectors(width, [&](int i, uint32_t column) { load(row.vector[i], from + column); });
}

__device__ __forceinline__ void clear(Row &row) {
#pragma unroll
    for (int i = 0; i < ROW_VECTORS; ++i) {
        row.vector[i] = {{0.0f, 0.0f, 0.0f, 0.0f}};
    }
}

// The sum of `term(vector, value in it, column)` over the row, in every lane.
template <typename Term> __device__ __forceinline__ float row_sum(uint32_t width, Term term) {
    float sum = 0.0f;
    for_vectors(width, [&](int i, uint32_t column) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            sum += term(i, j, column + j);
        }
    });
    return warp_sum(sum);
}

struct Statistics {
    float mean, rstd;
};

// In two passes: eps is 1e-12, so the difference of two large squares would not do.
__device__ __forceinline__ Statistics statistics(const Row &row, uint32_t width, float eps) {
    const float mean = row_sum(width, [&](int i, int j, uint32_t) { return row.vector[i].at[j]; }) / width;
    const float variance = row_sum(width, [&](int i, int j, uint32_t) {
                               const float centered = row.vector[i].at[j] - mean;
                               return centered * centered;
                           }) / width;
    return {mean, 1.0f / sqrtf(variance + eps)};
}

// From the gradient by the normalised row (before weight and bias) to that by the row itself: rstd * (g - mean(g) - n * mean(g n)).
__device__ __forceinline__ void norm_gradient(Row &grad, const Row &normed, float rstd, uint32_t width) {
    const float mean_g = row_sum(width, [&](int i, int j, uint32_t) { return grad.vector[i].at[j]; }) / width;
    const float mean_gn = row_sum(width, [&](int i, int j, uint32_t) { return grad.vector[i].at[j] * normed.vector[i].at[j]; }) / width;
    for_vectors(width, [&](int i, uint32_t) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            float &g = grad.vector[i].at[j];
            g = rstd * (g - mean_g - normed.vector[i].at[j] * mean_gn);
        }
    });
}

// The stream's gradient as the products of the block before read it: alone, and times its LayerScale (null is 1). What is null is not written.
__device__ __forceinline__ void store_copies(Four dx, const float *scale, __nv_bfloat16 *alone, __nv_bfloat16 *scaled, size_t start, uint32_t column) {
    if (alone != nullptr) {
        store(alone + start + column, dx);
    }
    if (scaled == nullptr) {
        return;
    }
    if (scale != nullptr) {
        Four factor;
        load(factor, scale + column);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            dx.at[j] *= factor.at[j];
        }
    }
    store(scaled + start + column, dx);
}

// Adds one quantity over the warps of the block, in order, and writes D sums. All threads call it.
__device__ __forceinline__ void write_partial_row(const Row &sums, uint32_t width, float *partial) {
    alignas(16) __shared__ float of_warp[ROW_WARPS][MAX_WIDTH];
    // The quantity before this one has been read.
    __syncthreads();
    for_vectors(width, [&](int i, uint32_t column) { store(&of_warp[warp_number()][column], sums.vector[i]); });
    __syncthreads();
    for (uint32_t column = threadIdx.x; column < width; column += ROW_THREADS) {
        float sum = 0.0f;
#pragma unroll
        for (uint32_t warp = 0; warp < ROW_WARPS; ++warp) {
            sum += of_warp[warp][column];
        }
        partial[column] = sum;
    }
}

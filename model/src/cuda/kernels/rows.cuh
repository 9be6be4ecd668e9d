// Rows of D values as the norms read them: one warp or two hold a whole row in registers, so statistics take two passes and memory is read once. A block
// takes a fixed piece of the rows, and its sums over rows go to a place of their own, [pieces, quantities, D], from which `add_partials` adds them in order.
#pragma once
#include "common.cuh"

constexpr uint32_t ROW_THREADS = 256;
constexpr uint32_t ROW_WARPS = ROW_THREADS / WARP;
// The widest row; the width must be a multiple of 4.
constexpr uint32_t MAX_WIDTH = 1024;

// What a lane has of a row that `SHARE` warps hold, the first of them with an even number: vector i of lane l of the warp h are the four columns from
// 4 * (32 * (SHARE * i + h) + l).
template <int SHARE> struct Row {
    static constexpr int VECTORS = MAX_WIDTH / (4 * WARP) / SHARE;
    Four vector[VECTORS];
};

__device__ __forceinline__ uint32_t lane_number() { return threadIdx.x % WARP; }
__device__ __forceinline__ uint32_t warp_number() { return threadIdx.x / WARP; }

// Calls `each(vector, column of its first value)` for the lane's vectors.
template <int SHARE, typename Each> __device__ __forceinline__ void for_vectors(uint32_t width, Each each) {
#pragma unroll
    for (int i = 0; i < Row<SHARE>::VECTORS; ++i) {
        const uint32_t column = 4 * (WARP * (SHARE * i + warp_number() % SHARE) + lane_number());
        if (column < width) {
            each(i, column);
        }
    }
}

template <int SHARE, typename Value> __device__ __forceinline__ void load_row(Row<SHARE> &row, const Value *from, uint32_t width) {
    for_vectors<SHARE>(width, [&](int i, uint32_t column) { load(row.vector[i], from + column); });
}

template <int SHARE> __device__ __forceinline__ void clear(Row<SHARE> &row) {
#pragma unroll
    for (int i = 0; i < Row<SHARE>::VECTORS; ++i) {
        row.vector[i] = {{0.0f, 0.0f, 0.0f, 0.0f}};
    }
}

// What sums over rows need to know from one to the next.
template <int SHARE> struct RowSums {
    // Of two places in shared memory.
    uint32_t turn = 0;
};
constexpr int MOST_SUMS = 5;

// Not in the templates that use them, so that there is one of each, which the shim of the tests can find.
__device__ __forceinline__ float *sums_of_warps() {
    __shared__ float sums[2 * ROW_WARPS * MOST_SUMS];
    return sums;
}
__device__ __forceinline__ float *partial_rows() {
    alignas(16) __shared__ float rows[ROW_WARPS / 2 * MAX_WIDTH];
    return rows;
}

// Adds some sums over a row, in every lane that holds it. Where two warps do, all threads of the block call it, as often as each other.
template <int SHARE, int COUNT> __device__ __forceinline__ void add_over_row(RowSums<SHARE> &state, float (&sums)[COUNT]) {
    static_assert(SHARE <= 2 && COUNT <= MOST_SUMS, "a place for each");
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        sums[i] = warp_sum(sums[i]);
    }
    if (SHARE == 1) {
        return;
    }
    // By turns, so that one barrier does: whoever writes a place again has met all others since they read it.
    float *const of_warp = sums_of_warps() + state.turn * (ROW_WARPS * MOST_SUMS);
    if (lane_number() == 0) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            of_warp[warp_number() * MOST_SUMS + i] = sums[i];
        }
    }
    __syncthreads();
    const float *const even = of_warp + warp_number() / 2 * (2 * MOST_SUMS);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        sums[i] = even[i] + even[MOST_SUMS + i];
    }
    state.turn = 1 - state.turn;
}

// The sum of `term(vector, value in it, column)`.
template <int SHARE, typename Term> __device__ __forceinline__ float row_sum(RowSums<SHARE> &state, uint32_t width, Term term) {
    float sum[1] = {0.0f};
    for_vectors<SHARE>(width, [&](int i, uint32_t column) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            sum[0] += term(i, j, column + j);
        }
    });
    add_over_row(state, sum);
    return sum[0];
}

struct Statistics {
    float mean, rstd;
};

// In two passes: eps is 1e-12, so the difference of two large squares would not do.
template <int SHARE>
__device__ __forceinline__ Statistics statistics(RowSums<SHARE> &sums, const Row<SHARE> &row, uint32_t width, float eps) {
    const float mean = row_sum(sums, width, [&](int i, int j, uint32_t) { return row.vector[i].at[j]; }) / width;
    const float variance = row_sum(sums, width, [&](int i, int j, uint32_t) {
        const float centered = row.vector[i].at[j] - mean;
        return centered * centered;
    }) / width;
    return {mean, 1.0f / sqrtf(variance + eps)};
}

// From the gradient by the normalised row (before weight and bias) to that by the row itself: rstd * (g - mean(g) - n * mean(g n)).
template <int SHARE>
__device__ __forceinline__ void norm_gradient(RowSums<SHARE> &sums, Row<SHARE> &grad, const Row<SHARE> &normed, float rstd, uint32_t width) {
    float means[2] = {0.0f, 0.0f};
    for_vectors<SHARE>(width, [&](int i, uint32_t) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            means[0] += grad.vector[i].at[j];
            means[1] += grad.vector[i].at[j] * normed.vector[i].at[j];
        }
    });
    add_over_row(sums, means);
    const float mean_g = means[0] / width, mean_gn = means[1] / width;
    for_vectors<SHARE>(width, [&](int i, uint32_t) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            float &g = grad.vector[i].at[j];
            g = rstd * (g - mean_g - normed.vector[i].at[j] * mean_gn);
        }
    });
}

// The factor of what a block adds to an image of `tokens` rows (drop path); null is 1.
__device__ __forceinline__ float factor_of_row(const float *factors, uint32_t row,
                                               uint32_t tokens) {
    return factors == nullptr ? 1.0f : factors[row / tokens];
}

// The gradient of what a block has added, as the products of that block read it: alone, and times
// its LayerScale. What is null is not written; without a LayerScale both are the same, and only the
// first is written.
__device__ __forceinline__ void store_copies(Four dx, const float *scale, __nv_bfloat16 *alone, __nv_bfloat16 *scaled, size_t start, uint32_t column) {
    if (alone != nullptr) {
        store(alone + start + column, dx);
    }
    if (scale == nullptr || scaled == nullptr) {
        return;
    }
    Four by;
    load(by, scale + column);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        dx.at[j] *= by.at[j];
    }
    store(scaled + start + column, dx);
}

// Adds one quantity over the rows that the block holds at once, in order, and writes D sums. All threads call it.
template <int SHARE> __device__ __forceinline__ void write_partial_row(const Row<SHARE> &sums, uint32_t width, float *partial) {
    static_assert(SHARE == 2, "there is room for half as many rows as warps");
    constexpr uint32_t ROWS = ROW_WARPS / SHARE;
    float *const of_row = partial_rows();
    // The quantity before this one has been read.
    __syncthreads();
    for_vectors<SHARE>(width, [&](int i, uint32_t column) { store(of_row + warp_number() / SHARE * MAX_WIDTH + column, sums.vector[i]); });
    __syncthreads();
    for (uint32_t column = threadIdx.x; column < width; column += ROW_THREADS) {
        float sum = 0.0f;
#pragma unroll
        for (uint32_t row = 0; row < ROWS; ++row) {
            sum += of_row[row * MAX_WIDTH + column];
        }
        partial[column] = sum;
    }
}

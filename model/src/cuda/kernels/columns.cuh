// Sums of columns, eight columns a lane: a block takes 256 columns of a fixed piece of the rows, and its warps every eighth row of that. The sums go to a
// place of their own, [pieces, columns], from which `add_partials` adds them in order.
#pragma once
#include "common.cuh"

constexpr uint32_t COLUMN_THREADS = 256;
// Rows that a block reads at once.
constexpr uint32_t COLUMN_WARPS = COLUMN_THREADS / WARP;
constexpr uint32_t BLOCK_COLUMNS = 8 * WARP;

// The first column of a lane.
__device__ __forceinline__ uint32_t lane_column() { return blockIdx.x * BLOCK_COLUMNS + threadIdx.x % WARP * 8; }

// Adds the sums of the block's warps in order and writes those of its columns to `partial`, which has a place for all columns. All threads call it.
__device__ __forceinline__ void write_partial_columns(const Eight &sums, uint32_t columns, float *partial) {
    __shared__ float of_warp[COLUMN_WARPS][BLOCK_COLUMNS];
    // Those before have been read.
    __syncthreads();
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        of_warp[threadIdx.x / WARP][threadIdx.x % WARP * 8 + j] = sums.at[j];
    }
    __syncthreads();
    const uint32_t column = blockIdx.x * BLOCK_COLUMNS + threadIdx.x;
    if (column < columns) {
        float sum = 0.0f;
#pragma unroll
        for (uint32_t warp = 0; warp < COLUMN_WARPS; ++warp) {
            sum += of_warp[warp][threadIdx.x];
        }
        partial[column] = sum;
    }
}

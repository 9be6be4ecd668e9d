// Rows of one attention head, 64 values each, as the lanes of a warp hold 16 of them for a product of matrices: lane (g, t) of mma.cuh has of the rows g and
// g + 8 the columns 8n + 2t and 8n + 2t + 1. That is the layout of a left operand and of a result alike, and both halves of a rotary pair, columns c
// and c + 32, lie in the same lane; a row lies in four lanes.
#pragma once
#include "mma.cuh"

constexpr uint32_t HEAD = 64;
// Rows of a tile, and a row in shared memory: the 16 bytes more spread rows over the banks.
constexpr uint32_t TILE_ROWS = 16;
constexpr uint32_t PITCH = HEAD + 8;

struct HeadTile {
    // By row (g, g + 8), then by 2n + (0, 1).
    float at[2][16];
};

// A tile as the left operand of a product over its columns, sixteen at a time.
struct LeftTile {
    uint32_t part[4][4];
};

// Sums of a product of matrices with 64 columns, eight at a time.
struct Sums {
    float of_columns[8][4];
};

__device__ __forceinline__ uint32_t lane_row() { return threadIdx.x % WARP / 4; }
__device__ __forceinline__ uint32_t lane_column_of(uint32_t n) { return 8 * n + threadIdx.x % 4 * 2; }

__device__ __forceinline__ float sum_of_row(float value) {
    value += __shfl_xor_sync(ALL_LANES, value, 1);
    return value + __shfl_xor_sync(ALL_LANES, value, 2);
}

// Rows `first` to `first + 15` of those that lie `stride` values apart; what is behind `rows` is zero.
__device__ __forceinline__ void load_tile(HeadTile &tile, const __nv_bfloat16 *from, size_t stride, uint32_t first, uint32_t rows) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const uint32_t row = first + lane_row() + 8 * r;
#pragma unroll
        for (int n = 0; n < 8; ++n) {
            uint32_t word = 0;
            if (row < rows) {
                word = reinterpret_cast<const uint1 *>(from + row * stride + lane_column_of(n))->x;
            }
            tile.at[r][2 * n] = low_half(word);
            tile.at[r][2 * n + 1] = high_half(word);
        }
    }
}

__device__ __forceinline__ void store_pair(__nv_bfloat16 *to, float low, float high) {
    reinterpret_cast<uint1 *>(to)->x = pack_bf16(low, high);
}

// The other way; what is behind `rows` is not written.
__device__ __forceinline__ void store_tile(const HeadTile &tile, __nv_bfloat16 *to, size_t stride, uint32_t first, uint32_t rows) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const uint32_t row = first + lane_row() + 8 * r;
        if (row < rows) {
#pragma unroll
            for (int n = 0; n < 8; ++n) {
                store_pair(to + row * stride + lane_column_of(n), tile.at[r][2 * n], tile.at[r][2 * n + 1]);
            }
        }
    }
}

__device__ __forceinline__ LeftTile left_tile(const HeadTile &tile) {
    LeftTile left;
#pragma unroll
    for (int part = 0; part < 4; ++part) {
#pragma unroll
        for (int word = 0; word < 4; ++word) {
            // Words 0 and 1 are the first eight columns of the part, in rows g and g + 8; 2 and 3 the second eight.
            const float *const two = &tile.at[word % 2][2 * (2 * part + word / 2)];
            left.part[part][word] = pack_bf16(two[0], two[1]);
        }
    }
    return left;
}

__device__ __forceinline__ HeadTile tile_of(const Sums &sums) {
    HeadTile tile;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int place = 0; place < 4; ++place) {
            tile.at[place / 2][2 * n + place % 2] = sums.of_columns[n][place];
        }
    }
    return tile;
}

// Two results of eight columns each, as the left operand of a product over these sixteen.
__device__ __forceinline__ void left_of(uint32_t (&left)[4], const float (&first)[4], const float (&second)[4]) {
    left[0] = pack_bf16(first[0], first[1]);
    left[1] = pack_bf16(first[2], first[3]);
    left[2] = pack_bf16(second[0], second[1]);
    left[3] = pack_bf16(second[2], second[3]);
}

// result += left * (eight rows in shared memory, from `row` on)^T, over all 64 columns.
__device__ __forceinline__ void add_product_with_rows(float (&result)[4], const LeftTile &left, const __nv_bfloat16 *shared, uint32_t row) {
    const uint32_t lane = threadIdx.x % WARP;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        uint32_t right[4];
        load_matrices(right, shared + (row + lane % 8) * PITCH + 32 * half + lane / 8 * 8);
        mma_m16n8k16(result, left.part[2 * half], right[0], right[1]);
        mma_m16n8k16(result, left.part[2 * half + 1], right[2], right[3]);
    }
}

// sums += left (16 x 16) * (sixteen rows in shared memory, from `row` on).
__device__ __forceinline__ void add_product_over_rows(Sums &sums, const uint32_t (&left)[4], const __nv_bfloat16 *shared, uint32_t row) {
    const uint32_t lane = threadIdx.x % WARP;
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
        uint32_t right[4];
        load_matrices_transposed(right, shared + (row + lane % 16) * PITCH + 8 * n + lane / 16 * 8);
        mma_m16n8k16(sums.of_columns[n], left, right[0], right[1]);
        mma_m16n8k16(sums.of_columns[n + 1], left, right[2], right[3]);
    }
}

// LayerNorm of a head's row and its rotary angles; null weights are 1, null biases 0.
struct HeadNorm {
    const float *weight;
    const float *bias;
    bool exists;
    float eps;
};

struct Rotary {
    // [T, 32].
    const float *cos;
    const float *sin;
};

struct RowStatistics {
    float mean[2], rstd[2];
};

__device__ __forceinline__ RowStatistics row_statistics(const HeadTile &tile, float eps) {
    RowStatistics result;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float sum = 0.0f, squares = 0.0f;
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            sum += tile.at[r][i];
        }
        result.mean[r] = sum_of_row(sum) / HEAD;
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            const float centered = tile.at[r][i] - result.mean[r];
            squares += centered * centered;
        }
        result.rstd[r] = 1.0f / sqrtf(sum_of_row(squares) / HEAD + eps);
    }
    return result;
}

// Turns each pair (c, c + 32) of a row by the angle of its token; `direction` is 1 or -1. Rows behind `rows` stay as they are.
__device__ __forceinline__ void rotate(HeadTile &tile, const Rotary &rotary, uint32_t first, uint32_t rows, float direction) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const uint32_t row = first + lane_row() + 8 * r;
        if (row < rows) {
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                const size_t at = static_cast<size_t>(row) * (HEAD / 2) + lane_column_of(n);
                const float2 cos = *reinterpret_cast<const float2 *>(rotary.cos + at), sin = *reinterpret_cast<const float2 *>(rotary.sin + at);
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    float &a = tile.at[r][2 * n + e], &b = tile.at[r][2 * n + 8 + e];
                    const float c = e == 0 ? cos.x : cos.y, s = direction * (e == 0 ? sin.x : sin.y), turned = a * c - b * s;
                    b = b * c + a * s;
                    a = turned;
                }
            }
        }
    }
}

__device__ __forceinline__ void norm_and_rotate(HeadTile &tile, const HeadNorm &norm, const Rotary &rotary, uint32_t first, uint32_t rows) {
    if (norm.exists) {
        const RowStatistics of_row = row_statistics(tile, norm.eps);
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            const uint32_t column = lane_column_of(i / 2) + i % 2;
            const float weight = norm.weight == nullptr ? 1.0f : norm.weight[column], bias = norm.bias == nullptr ? 0.0f : norm.bias[column];
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                tile.at[r][i] = (tile.at[r][i] - of_row.mean[r]) * of_row.rstd[r] * weight + bias;
            }
        }
    }
    rotate(tile, rotary, first, rows, 1.0f);
}

// Adds the sums of columns of `value(row, place)` to 64 numbers of this warp in shared memory.
template <typename Value> __device__ __forceinline__ void add_column_sums(float *sums, Value value) {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        float sum = value(0, i) + value(1, i);
#pragma unroll
        for (uint32_t bits = 4; bits < WARP; bits *= 2) {
            sum += __shfl_xor_sync(ALL_LANES, sum, bits);
        }
        if (lane_row() == 0) {
            sums[lane_column_of(i / 2) + i % 2] += sum;
        }
    }
}

// The backward of `norm_and_rotate`: `grad` becomes the gradient of `x`, the rows before, which is used up. The norm's gradients are added to 64 numbers
// each.
__device__ __forceinline__ void norm_and_rotate_backward(HeadTile &grad, HeadTile &x, const HeadNorm &norm, const Rotary &rotary, uint32_t first,
                                                         uint32_t rows, float *d_weight, float *d_bias) {
    rotate(grad, rotary, first, rows, -1.0f);
    if (!norm.exists) {
        return;
    }
    const RowStatistics of_row = row_statistics(x, norm.eps);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            x.at[r][i] = (x.at[r][i] - of_row.mean[r]) * of_row.rstd[r];
        }
    }
    if (norm.bias != nullptr) {
        add_column_sums(d_bias, [&](int r, int i) { return grad.at[r][i]; });
    }
    if (norm.weight != nullptr) {
        add_column_sums(d_weight, [&](int r, int i) { return grad.at[r][i] * x.at[r][i]; });
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            const float weight = norm.weight[lane_column_of(i / 2) + i % 2];
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                grad.at[r][i] *= weight;
            }
        }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float sum = 0.0f, along = 0.0f;
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            sum += grad.at[r][i];
            along += grad.at[r][i] * x.at[r][i];
        }
        const float mean_g = sum_of_row(sum) / HEAD, mean_gn = sum_of_row(along) / HEAD;
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            grad.at[r][i] = of_row.rstd[r] * (grad.at[r][i] - mean_g - x.at[r][i] * mean_gn);
        }
    }
}

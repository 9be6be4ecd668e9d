// Rows of one attention head, 64 values each, as the lanes of a warp hold 16 of them for a product of matrices: lane (g, t) of mma.cuh has of the rows g and
// g + 8 the places 8n + 2t and 8n + 2t + 1. That is the layout of a left operand and of a result alike; a row lies in four lanes.
//
// A place is not a column: lane t has the columns 8t to 8t + 7 of each half of a row, so that it reads and writes 16 bytes of memory at once, and both
// halves of a rotary pair, columns c and c + 32, lie in the same lane. All matrices of a product are permuted alike, in shared memory too.
#pragma once
#include "mma.cuh"

constexpr uint32_t HEAD = 64;
// Rows of a tile, and a row in shared memory: the 16 bytes more spread rows over the banks.
constexpr uint32_t TILE_ROWS = 16;
constexpr uint32_t PITCH = HEAD + 8;

struct HeadTile {
    // By row (g, g + 8), then by 2n + (0, 1): eight columns of the first half, eight of the second.
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
// The first of the lane's eight columns in the first half of a row.
__device__ __forceinline__ uint32_t lane_columns() { return threadIdx.x % 4 * 8; }
// The first of the lane's two places in piece n of a row in shared memory, or of rows in a result.
__device__ __forceinline__ uint32_t lane_place_of(uint32_t n) { return 8 * n + threadIdx.x % 4 * 2; }
__device__ __forceinline__ uint32_t column_of_place(uint32_t place) { return place / 32 * 32 + place % 8 / 2 * 8 + place / 8 % 4 * 2 + place % 2; }

__device__ __forceinline__ float sum_of_row(float value) {
    value += __shfl_xor_sync(ALL_LANES, value, 1);
    return value + __shfl_xor_sync(ALL_LANES, value, 2);
}

// Rows `first` to `first + 15` of those that lie `stride` values apart; behind the last of `rows` it comes again, so that there is no branch here. Whoever
// adds over rows sees to it that those do not count.
__device__ __forceinline__ void load_tile(HeadTile &tile, const __nv_bfloat16 *from, uint32_t stride, uint32_t first, uint32_t rows) {
    const uint32_t column = forget(lane_columns());
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const __nv_bfloat16 *const row = from + (min(first + lane_row() + 8 * r, rows - 1) * stride + column);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            Eight values;
            load(values, row + HEAD / 2 * half);
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                tile.at[r][8 * half + i] = values.at[i];
            }
        }
    }
}

// Makes what is behind `rows` zero.
__device__ __forceinline__ void clear_rows(HeadTile &tile, uint32_t first, uint32_t rows) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        if (first + lane_row() + 8 * r >= rows) {
#pragma unroll
            for (int i = 0; i < 16; ++i) {
                tile.at[r][i] = 0.0f;
            }
        }
    }
}

// The way back; what is behind `rows` is not written.
__device__ __forceinline__ void store_tile(const HeadTile &tile, __nv_bfloat16 *to, uint32_t stride, uint32_t first, uint32_t rows) {
    const uint32_t column = forget(lane_columns());
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const uint32_t row = first + lane_row() + 8 * r;
        if (row < rows) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                Eight values;
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    values.at[i] = tile.at[r][8 * half + i];
                }
                store(to + (row * stride + column) + HEAD / 2 * half, values);
            }
        }
    }
}

// To shared memory, place by place.
__device__ __forceinline__ void share_tile(const HeadTile &tile, __nv_bfloat16 *shared, uint32_t first) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        __nv_bfloat16 *const row = shared + (first + lane_row() + 8 * r) * PITCH;
#pragma unroll
        for (int n = 0; n < 8; ++n) {
            reinterpret_cast<uint1 *>(row + lane_place_of(n))->x = pack_bf16(tile.at[r][2 * n], tile.at[r][2 * n + 1]);
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

// Where in sixteen rows of shared memory a lane's part of a right operand begins, with the rows as the operand's columns.
__device__ __forceinline__ uint32_t place_in_rows() {
    const uint32_t lane = threadIdx.x % WARP;
    return (lane % 8 + lane / 16 * 8) * PITCH + lane / 8 % 2 * 8;
}

// result += left * (sixteen rows in shared memory, from `rows`, at the lane's `place_in_rows`)^T, over all 64 columns. Two results by turns: a product
// need not wait for the one before.
__device__ __forceinline__ void add_product_with_rows(float (&result)[2][4], const LeftTile &left, const __nv_bfloat16 *rows) {
#pragma unroll
    for (int part = 0; part < 4; ++part) {
        uint32_t right[4];
        load_matrices(right, rows + 16 * part);
        mma_m16n8k16(result[0], left.part[part], right[0], right[1]);
        mma_m16n8k16(result[1], left.part[part], right[2], right[3]);
    }
}

// The same for sixteen rows as the operand's rows.
__device__ __forceinline__ uint32_t place_over_rows() {
    const uint32_t lane = threadIdx.x % WARP;
    return lane % 16 * PITCH + lane / 16 * 8;
}

// sums += left (16 x 16) * (sixteen rows in shared memory, from `rows`, at the lane's `place_over_rows`).
__device__ __forceinline__ void add_product_over_rows(Sums &sums, const uint32_t (&left)[4], const __nv_bfloat16 *rows) {
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
        uint32_t right[4];
        load_matrices_transposed(right, rows + 8 * n);
        mma_m16n8k16(sums.of_columns[n], left, right[0], right[1]);
        mma_m16n8k16(sums.of_columns[n + 1], left, right[2], right[3]);
    }
}

// LayerNorm of a head's row and its rotary angles; null weights are 1, null biases 0.
struct HeadNorm {
    const float *weight;
    const float *bias;
    // 0 or 1.
    uint32_t exists;
    float eps;
};

struct Rotary {
    // [T, 32] of each image, or of all.
    const float *cos;
    const float *sin;
    // From one image's to the next; the image is the block's.
    uint32_t stride;
};

// The lane's sixteen columns of a row of 64; where there is none, `otherwise`.
__device__ __forceinline__ void load_columns(float (&to)[16], const float *from, float otherwise) {
#pragma unroll
    for (int part = 0; part < 4; ++part) {
        Four values = {{otherwise, otherwise, otherwise, otherwise}};
        if (from != nullptr) {
            load(values, from + lane_columns() + part / 2 * (HEAD / 2) + part % 2 * 4);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            to[4 * part + j] = values.at[j];
        }
    }
}

// LayerNorm without weight and bias, in two passes; returns one over the deviation of each row.
__device__ __forceinline__ void normalize(HeadTile &tile, float eps, float (&rstd)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float sum = 0.0f, squares = 0.0f;
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            sum += tile.at[r][i];
        }
        const float mean = sum_of_row(sum) / HEAD;
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            tile.at[r][i] -= mean;
            squares += tile.at[r][i] * tile.at[r][i];
        }
        rstd[r] = fast_rsqrt(sum_of_row(squares) / HEAD + eps);
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            tile.at[r][i] *= rstd[r];
        }
    }
}

// Turns each pair (c, c + 32) of a row by the angle of its token; `direction` is 1 or -1. What becomes of rows behind `rows` is of no account.
__device__ __forceinline__ void rotate(HeadTile &tile, const Rotary &rotary, uint32_t first, uint32_t rows, float direction) {
    // Computed here and now: neither this nor the condition of a norm is worth a register, for
    // which the products over keys and queries have no room.
    const uint32_t start = blockIdx.y * forget(rotary.stride) + lane_columns();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const uint32_t at = min(first + lane_row() + 8 * r, rows - 1) * (HEAD / 2) + start;
        Eight cos, sin;
        load(cos, rotary.cos + at);
        load(sin, rotary.sin + at);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            float &a = tile.at[r][i], &b = tile.at[r][i + 8];
            const float c = cos.at[i], s = direction * sin.at[i], turned = a * c - b * s;
            b = b * c + a * s;
            a = turned;
        }
    }
}

__device__ __forceinline__ void norm_and_rotate(HeadTile &tile, const HeadNorm &norm, const Rotary &rotary, uint32_t first, uint32_t rows) {
    if (norm.exists != 0) {
        float rstd[2], weight[16], bias[16];
        load_columns(weight, norm.weight, 1.0f);
        load_columns(bias, norm.bias, 0.0f);
        normalize(tile, norm.eps, rstd);
#pragma unroll
        for (int i = 0; i < 16; ++i) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                tile.at[r][i] = tile.at[r][i] * weight[i] + bias[i];
            }
        }
    }
    rotate(tile, rotary, first, rows, 1.0f);
}

// Lanes that differ in one bit of their row give each other half of their values, and each adds what it gets to the other half, which it keeps.
template <int HALF> __device__ __forceinline__ void exchange_halves(float (&own)[16]) {
    const bool upper = (threadIdx.x & 2 * HALF) != 0;
#pragma unroll
    for (int i = 0; i < HALF; ++i) {
        const float kept = upper ? own[i + HALF] : own[i], given = upper ? own[i] : own[i + HALF];
        own[i] = kept + __shfl_xor_sync(ALL_LANES, given, 2 * HALF);
    }
}

// Adds the sums of columns of `value(row, place)` to 64 numbers of this warp in shared memory, place by place.
template <typename Value> __device__ __forceinline__ void add_column_sums(float *sums, Value value) {
    float own[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        own[i] = value(0, i) + value(1, i);
    }
    exchange_halves<8>(own);
    exchange_halves<4>(own);
    exchange_halves<2>(own);
    // Two columns are left to each lane: bits 4, 2 and 1 of its row have chosen among pieces of 8, 4 and 2 places.
    float2 &two = *reinterpret_cast<float2 *>(sums + threadIdx.x % WARP * 2);
    two = {two.x + own[0], two.y + own[1]};
}

// The backward of `norm_and_rotate`: `grad` becomes the gradient of `x`, the rows before, which is used up. The norm's gradients are added to 64 numbers
// each.
__device__ __forceinline__ void norm_and_rotate_backward(HeadTile &grad, HeadTile &x, const HeadNorm &norm, const Rotary &rotary, uint32_t first,
                                                         uint32_t rows, float *d_weight, float *d_bias) {
    rotate(grad, rotary, first, rows, -1.0f);
    // The condition of `norm_and_rotate` in other words, so that it is not kept since then.
    if (norm.exists != 1) {
        return;
    }
    float rstd[2];
    normalize(x, norm.eps, rstd);
    if (norm.bias != nullptr) {
        add_column_sums(d_bias, [&](int r, int i) { return grad.at[r][i]; });
    }
    if (norm.weight != nullptr) {
        add_column_sums(d_weight, [&](int r, int i) { return grad.at[r][i] * x.at[r][i]; });
        float weight[16];
        load_columns(weight, norm.weight, 1.0f);
#pragma unroll
        for (int i = 0; i < 16; ++i) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                grad.at[r][i] *= weight[i];
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
            grad.at[r][i] = rstd[r] * (grad.at[r][i] - mean_g - x.at[r][i] * mean_gn);
        }
    }
}

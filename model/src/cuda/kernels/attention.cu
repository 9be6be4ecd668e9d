// Attention of heads of 64 values, fused with QK-norm (a LayerNorm over each head's query and key), rotary positions, causal mask and softmax; no T x T matrix
// in memory, no atomics. Queries, keys and values are bf16 as the projection wrote them, statistics and sums f32. Rotary and norm are those of
// `explicit/vectorized.rs`, whose attention is the CPU's; the promises are in `tests/promises/engine_kernels/attention.rs`.
//
// Launch geometry: a grid of (heads, images), 256 threads. Dynamic shared memory, with R = tokens rounded up to 32: forward 3 * R * 144 bytes (at most
// 512 tokens), backward 4 * R * 144 + 8 * R (at most 352).
#include "mma.cuh"

#ifndef CUDA_CPU_SHIM
#define DYNAMIC_SHARED_MEMORY(type, name) extern __shared__ type name[]
#endif

// Mirrored in Rust: pointers first, then numbers, no padding.
struct HeadNorms {
    // [64] each: weight and bias of the query's norm, then of the key's; null is 1 and 0.
    const float *weight[2];
    const float *bias[2];
};

struct AttentionForward {
    // [N, 3, H, 64].
    const __nv_bfloat16 *qkv;
    HeadNorms norms;
    // [T, 32].
    const float *cos;
    const float *sin;
    // [N, H, 64], and [B, H, T] the logarithm of each softmax's sum.
    __nv_bfloat16 *out;
    float *lse;
    uint32_t tokens;
    uint32_t heads;
    // Whether queries and keys are normalised, and whether a token sees only itself and those before.
    uint32_t qk_norm;
    uint32_t causal;
    float eps;
    // Of scores: 1 / 8.
    float scale;
};
static_assert(sizeof(AttentionForward) == 96, "the mirror in Rust expects this size");

struct AttentionBackward {
    const __nv_bfloat16 *qkv;
    HeadNorms norms;
    const float *cos;
    const float *sin;
    // What the forward kernel wrote, and the gradient of `out`.
    const __nv_bfloat16 *out;
    const float *lse;
    const __nv_bfloat16 *d_out;
    // [N, 3, H, 64].
    __nv_bfloat16 *d_qkv;
    // [B, H, 4, 64]: gradients of the norms' parameters of one head and image, query's weight and bias, then key's. Null where there are none.
    float *partials;
    uint32_t tokens;
    uint32_t heads;
    uint32_t qk_norm;
    uint32_t causal;
    float eps;
    float scale;
};
static_assert(sizeof(AttentionBackward) == 120, "the mirror in Rust expects this size");

namespace {

constexpr uint32_t HEAD = 64;
constexpr uint32_t HEAD_WORDS = HEAD / 2;
constexpr uint32_t THREADS = 256;
constexpr uint32_t WARPS = THREADS / WARP;
// Rows of a warp's product, and steps of 16 and columns of 8 in a head.
constexpr uint32_t TILE = 16;
constexpr uint32_t STEPS = HEAD / 16;
constexpr uint32_t COLUMNS = HEAD / 8;
// Threads that stage one row, and keys that the forward pass takes at a time.
constexpr uint32_t ROW_LANES = 8;
constexpr uint32_t KEYS = 32;
constexpr float LOG2_E = 1.44269504f;

__device__ __forceinline__ uint32_t padded(uint32_t tokens) { return (tokens + KEYS - 1) / KEYS * KEYS; }

// What both kernels stage of a row: values 4 j to 4 j + 3 of lane j of eight, and those 32 further, which are the partners of its rotation.
struct HeadPart {
    float first[4], second[4];
};

__device__ __forceinline__ HeadPart load_part(const uint32_t *row, uint32_t lane) {
    const uint2 first = *reinterpret_cast<const uint2 *>(row + 2 * lane), second = *reinterpret_cast<const uint2 *>(row + HEAD_WORDS / 2 + 2 * lane);
    return {{low_half(first.x), high_half(first.x), low_half(first.y), high_half(first.y)},
            {low_half(second.x), high_half(second.x), low_half(second.y), high_half(second.y)}};
}

__device__ __forceinline__ void store_part(uint32_t *row, uint32_t lane, const HeadPart &part) {
    row[2 * lane] = pack_bf16(part.first[0], part.first[1]);
    row[2 * lane + 1] = pack_bf16(part.first[2], part.first[3]);
    row[HEAD_WORDS / 2 + 2 * lane] = pack_bf16(part.second[0], part.second[1]);
    row[HEAD_WORDS / 2 + 2 * lane + 1] = pack_bf16(part.second[2], part.second[3]);
}

__device__ __forceinline__ float row_lanes_sum(float value) {
#pragma unroll
    for (uint32_t bits = 1; bits < ROW_LANES; bits *= 2) {
        value += __shfl_xor_sync(ALL_LANES, value, bits);
    }
    return value;
}

// Where the head's rows of a sequence begin, and how far apart they are, in words.
struct Place {
    const uint32_t *start;
    size_t stride;
};

// Part 0, 1, 2: query, key, value.
__device__ __forceinline__ Place part_of_qkv(const __nv_bfloat16 *qkv, uint32_t part, uint32_t tokens, uint32_t heads) {
    const size_t stride = static_cast<size_t>(3) * heads * HEAD_WORDS;
    return {reinterpret_cast<const uint32_t *>(qkv) + blockIdx.y * tokens * stride + (part * heads + blockIdx.x) * HEAD_WORDS, stride};
}

__device__ __forceinline__ Place head_of_rows(const __nv_bfloat16 *rows, uint32_t tokens, uint32_t heads) {
    const size_t stride = static_cast<size_t>(heads) * HEAD_WORDS;
    return {reinterpret_cast<const uint32_t *>(rows) + blockIdx.y * tokens * stride + blockIdx.x * HEAD_WORDS, stride};
}

// Copies the head's rows; those behind the last are zero.
__device__ __forceinline__ void stage(uint32_t *shared, const Place &from, uint32_t tokens) {
    const uint32_t lane = threadIdx.x % ROW_LANES;
    for (uint32_t row = threadIdx.x / ROW_LANES; row < padded(tokens); row += THREADS / ROW_LANES) {
        const HeadPart part = row < tokens ? load_part(from.start + row * from.stride, lane) : HeadPart{};
        store_part(shared + row * SHARED_PITCH, lane, part);
    }
}

// The same for queries (`which` 0) and keys (1): normalised and rotated.
template <typename Args> __device__ __forceinline__ void stage_rotated(uint32_t *shared, const Args &args, uint32_t which) {
    const Place from = part_of_qkv(args.qkv, which, args.tokens, args.heads);
    const float *const weight = which == 0 ? args.norms.weight[0] : args.norms.weight[1], *const bias = which == 0 ? args.norms.bias[0] : args.norms.bias[1];
    const uint32_t lane = threadIdx.x % ROW_LANES;
    for (uint32_t row = threadIdx.x / ROW_LANES; row < padded(args.tokens); row += THREADS / ROW_LANES) {
        const bool exists = row < args.tokens;
        HeadPart part = exists ? load_part(from.start + row * from.stride, lane) : HeadPart{};
        if (args.qk_norm) {
            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                sum += part.first[i] + part.second[i];
            }
            const float mean = row_lanes_sum(sum) / HEAD;
            sum = 0.0f;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                part.first[i] -= mean;
                part.second[i] -= mean;
                sum += part.first[i] * part.first[i] + part.second[i] * part.second[i];
            }
            const float rstd = 1.0f / sqrtf(row_lanes_sum(sum) / HEAD + args.eps);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const uint32_t column = 4 * lane + i, partner = column + HEAD / 2;
                part.first[i] *= rstd;
                part.second[i] *= rstd;
                if (weight != nullptr) {
                    part.first[i] *= weight[column];
                    part.second[i] *= weight[partner];
                }
                if (bias != nullptr) {
                    part.first[i] += bias[column];
                    part.second[i] += bias[partner];
                }
            }
        }
        if (exists) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float cos = args.cos[row * (HEAD / 2) + 4 * lane + i], sin = args.sin[row * (HEAD / 2) + 4 * lane + i];
                const float first = part.first[i], second = part.second[i];
                part.first[i] = first * cos - second * sin;
                part.second[i] = second * cos + first * sin;
            }
        } else {
            part = HeadPart{};
        }
        store_part(shared + row * SHARED_PITCH, lane, part);
    }
}

// The tile that a warp takes in a round: back and forth, so that with a causal mask all warps see as many keys.
__device__ __forceinline__ uint32_t tile_of(uint32_t round) {
    const uint32_t warp = threadIdx.x / WARP;
    return round * WARPS + (round % 2 ? WARPS - 1 - warp : warp);
}

// Row of D's upper (0) or lower (1) half, and column of value `i` of D fragment `n`.
__device__ __forceinline__ uint32_t d_row(uint32_t first, uint32_t half) { return first + fragment_row() + 8 * half; }
__device__ __forceinline__ uint32_t d_column(uint32_t n, uint32_t i) { return 8 * n + 2 * fragment_column() + i; }

// Gradients of a norm's parameters over the rows that a lane has seen, by column 8 n + 2 t + i.
struct ParameterSums {
    float weight[COLUMNS][2], bias[COLUMNS][2];
};

// The gradient of 16 rotated queries or keys as that of the projection: turned back, through the norm, written as bf16.
template <typename Args>
__device__ __forceinline__ void finish_rows(const Args &args, uint32_t which, uint32_t first, FragmentD (&grad)[COLUMNS], ParameterSums &sums) {
    const Place raw = part_of_qkv(args.qkv, which, args.tokens, args.heads);
    const size_t to = raw.start - reinterpret_cast<const uint32_t *>(args.qkv);
    const float *const weight = which == 0 ? args.norms.weight[0] : args.norms.weight[1];
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
        const uint32_t row = d_row(first, half);
        const bool exists = row < args.tokens;
        if (exists) {
#pragma unroll
            for (uint32_t n = 0; n < COLUMNS / 2; ++n) {
#pragma unroll
                for (uint32_t i = 0; i < 2; ++i) {
                    const uint32_t angle = row * (HEAD / 2) + d_column(n, i);
                    const float cos = args.cos[angle], sin = args.sin[angle];
                    float &a = grad[n].at[2 * half + i], &b = grad[n + COLUMNS / 2].at[2 * half + i];
                    const float turned = a * cos + b * sin;
                    b = b * cos - a * sin;
                    a = turned;
                }
            }
        }
        if (args.qk_norm) {
            float normed[COLUMNS][2], sum = 0.0f;
#pragma unroll
            for (uint32_t n = 0; n < COLUMNS; ++n) {
                const uint32_t word = exists ? raw.start[row * raw.stride + 4 * n + fragment_column()] : 0;
                normed[n][0] = low_half(word);
                normed[n][1] = high_half(word);
                sum += normed[n][0] + normed[n][1];
            }
            const float mean = row_of_d_sum(sum) / HEAD;
            sum = 0.0f;
#pragma unroll
            for (uint32_t n = 0; n < COLUMNS; ++n) {
#pragma unroll
                for (uint32_t i = 0; i < 2; ++i) {
                    normed[n][i] -= mean;
                    sum += normed[n][i] * normed[n][i];
                }
            }
            const float rstd = 1.0f / sqrtf(row_of_d_sum(sum) / HEAD + args.eps);
            float sum_g = 0.0f, sum_gn = 0.0f;
#pragma unroll
            for (uint32_t n = 0; n < COLUMNS; ++n) {
#pragma unroll
                for (uint32_t i = 0; i < 2; ++i) {
                    float &g = grad[n].at[2 * half + i];
                    normed[n][i] *= rstd;
                    if (exists) {
                        sums.weight[n][i] += g * normed[n][i];
                        sums.bias[n][i] += g;
                    }
                    if (weight != nullptr) {
                        g *= weight[d_column(n, i)];
                    }
                    sum_g += g;
                    sum_gn += g * normed[n][i];
                }
            }
            const float mean_g = row_of_d_sum(sum_g) / HEAD, mean_gn = row_of_d_sum(sum_gn) / HEAD;
#pragma unroll
            for (uint32_t n = 0; n < COLUMNS; ++n) {
#pragma unroll
                for (uint32_t i = 0; i < 2; ++i) {
                    float &g = grad[n].at[2 * half + i];
                    g = rstd * (g - mean_g - normed[n][i] * mean_gn);
                }
            }
        }
        if (exists) {
            uint32_t *const out = reinterpret_cast<uint32_t *>(args.d_qkv) + to + row * raw.stride;
#pragma unroll
            for (uint32_t n = 0; n < COLUMNS; ++n) {
                out[4 * n + fragment_column()] = pack_bf16(grad[n].at[2 * half], grad[n].at[2 * half + 1]);
            }
        }
    }
}

// Adds the parameters' gradients over the block, in a fixed order, and writes weight's and bias's. All threads call it.
__device__ __forceinline__ void write_parameter_sums(const ParameterSums &sums, float *partial) {
    __shared__ float of_warp[WARPS][2][HEAD];
    // What was written before has been read.
    __syncthreads();
#pragma unroll
    for (uint32_t n = 0; n < COLUMNS; ++n) {
#pragma unroll
        for (uint32_t i = 0; i < 2; ++i) {
            float weight = sums.weight[n][i], bias = sums.bias[n][i];
#pragma unroll
            for (uint32_t bits = 4; bits < WARP; bits *= 2) {
                weight += __shfl_xor_sync(ALL_LANES, weight, bits);
                bias += __shfl_xor_sync(ALL_LANES, bias, bits);
            }
            if (fragment_row() == 0) {
                of_warp[threadIdx.x / WARP][0][d_column(n, i)] = weight;
                of_warp[threadIdx.x / WARP][1][d_column(n, i)] = bias;
            }
        }
    }
    __syncthreads();
    if (threadIdx.x < 2 * HEAD) {
        float sum = 0.0f;
        for (uint32_t warp = 0; warp < WARPS; ++warp) {
            sum += of_warp[warp][threadIdx.x / HEAD][threadIdx.x % HEAD];
        }
        partial[threadIdx.x] = sum;
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS) attention_forward(const __grid_constant__ AttentionForward args) {
    DYNAMIC_SHARED_MEMORY(uint32_t, shared);
    const uint32_t tokens = args.tokens, rows = padded(tokens) * SHARED_PITCH;
    uint32_t *const queries = shared, *const keys = queries + rows, *const values = keys + rows;
    stage_rotated(queries, args, 0);
    stage_rotated(keys, args, 1);
    stage(values, part_of_qkv(args.qkv, 2, tokens, args.heads), tokens);
    __syncthreads();

    const float to_exponent = args.scale * LOG2_E;
    const uint32_t tiles = (tokens + TILE - 1) / TILE;
    for (uint32_t round = 0; round * WARPS < tiles; ++round) {
        const uint32_t first = tile_of(round) * TILE;
        if (first >= tokens) {
            continue;
        }
        FragmentA query[STEPS];
#pragma unroll
        for (uint32_t step = 0; step < STEPS; ++step) {
            query[step] = a_of_rows(queries, first, step);
        }
        FragmentD out[COLUMNS] = {};
        // Of the upper and the lower row: the greatest score so far, and the sum of what follows from it.
        float greatest[2] = {-INFINITY, -INFINITY}, sum[2] = {};
        // Keys that any query of the tile sees.
        const uint32_t end = args.causal ? min(first + TILE, tokens) : tokens;
        for (uint32_t start = 0; start < end; start += KEYS) {
            FragmentD scores[KEYS / 8] = {};
#pragma unroll
            for (uint32_t n = 0; n < KEYS / 8; ++n) {
                if (start + 8 * n < end) {
#pragma unroll
                    for (uint32_t step = 0; step < STEPS; ++step) {
                        multiply_add(scores[n], query[step], b_of_rows(keys, start + 8 * n, step));
                    }
                }
#pragma unroll
                for (uint32_t i = 0; i < 4; ++i) {
                    const uint32_t key = start + d_column(n, i % 2);
                    if (key >= end || (args.causal && key > d_row(first, i / 2))) {
                        scores[n].at[i] = -INFINITY;
                    }
                }
            }
#pragma unroll
            for (uint32_t half = 0; half < 2; ++half) {
                float most = greatest[half];
#pragma unroll
                for (uint32_t n = 0; n < KEYS / 8; ++n) {
                    most = fmaxf(most, fmaxf(scores[n].at[2 * half], scores[n].at[2 * half + 1]));
                }
                most = row_of_d_max(most);
                // Key 0 is seen by all, so there is a greatest score after the first keys.
                const float shrink = exp2f((greatest[half] - most) * to_exponent);
                float more = 0.0f;
#pragma unroll
                for (uint32_t n = 0; n < KEYS / 8; ++n) {
#pragma unroll
                    for (uint32_t i = 0; i < 2; ++i) {
                        float &score = scores[n].at[2 * half + i];
                        score = exp2f((score - most) * to_exponent);
                        more += score;
                    }
                }
                sum[half] = sum[half] * shrink + row_of_d_sum(more);
                greatest[half] = most;
#pragma unroll
                for (uint32_t n = 0; n < COLUMNS; ++n) {
                    out[n].at[2 * half] *= shrink;
                    out[n].at[2 * half + 1] *= shrink;
                }
            }
#pragma unroll
            for (uint32_t pair = 0; pair < KEYS / 16; ++pair) {
                if (start + 16 * pair < end) {
                    const FragmentA probabilities = a_of_results(scores[2 * pair], scores[2 * pair + 1]);
#pragma unroll
                    for (uint32_t n = 0; n < COLUMNS; ++n) {
                        multiply_add(out[n], probabilities, b_as_it_lies(values, start + 16 * pair, 8 * n));
                    }
                }
            }
        }
        const Place to = head_of_rows(args.out, tokens, args.heads);
        uint32_t *const start = reinterpret_cast<uint32_t *>(args.out) + (to.start - reinterpret_cast<const uint32_t *>(args.out));
#pragma unroll
        for (uint32_t half = 0; half < 2; ++half) {
            const uint32_t row = d_row(first, half);
            if (row < tokens) {
                const float inverse = 1.0f / sum[half];
#pragma unroll
                for (uint32_t n = 0; n < COLUMNS; ++n) {
                    start[row * to.stride + 4 * n + fragment_column()] = pack_bf16(out[n].at[2 * half] * inverse, out[n].at[2 * half + 1] * inverse);
                }
                if (fragment_column() == 0) {
                    args.lse[(static_cast<size_t>(blockIdx.y) * args.heads + blockIdx.x) * tokens + row] = greatest[half] * args.scale + logf(sum[half]);
                }
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) attention_backward(const __grid_constant__ AttentionBackward args) {
    DYNAMIC_SHARED_MEMORY(uint32_t, shared);
    const uint32_t tokens = args.tokens, rows = padded(tokens) * SHARED_PITCH;
    uint32_t *const queries = shared, *const keys = queries + rows, *const values = keys + rows, *const grads = values + rows;
    // By row: the softmax's logarithm in powers of two, and the sum of the output times its gradient.
    float *const lse = reinterpret_cast<float *>(grads + rows), *const delta = lse + padded(tokens);
    stage_rotated(queries, args, 0);
    stage_rotated(keys, args, 1);
    stage(values, part_of_qkv(args.qkv, 2, tokens, args.heads), tokens);
    const Place d_out = head_of_rows(args.d_out, tokens, args.heads), out = head_of_rows(args.out, tokens, args.heads);
    stage(grads, d_out, tokens);
    const uint32_t lane = threadIdx.x % ROW_LANES;
    const size_t head = static_cast<size_t>(blockIdx.y) * args.heads + blockIdx.x;
    for (uint32_t row = threadIdx.x / ROW_LANES; row < padded(tokens); row += THREADS / ROW_LANES) {
        float sum = 0.0f;
        if (row < tokens) {
            const HeadPart a = load_part(d_out.start + row * d_out.stride, lane), b = load_part(out.start + row * out.stride, lane);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                sum += a.first[i] * b.first[i] + a.second[i] * b.second[i];
            }
        }
        sum = row_lanes_sum(sum);
        if (lane == 0) {
            delta[row] = sum;
            lse[row] = row < tokens ? args.lse[head * tokens + row] * LOG2_E : 0.0f;
        }
    }
    __syncthreads();

    const float to_exponent = args.scale * LOG2_E;
    const uint32_t tiles = (tokens + TILE - 1) / TILE;
    const auto seen = [&](uint32_t query, uint32_t key) { return query < tokens && key < tokens && !(args.causal && key > query); };

    // Gradients of queries, 16 a warp at a time, over the keys that they see.
    ParameterSums sums = {};
    for (uint32_t round = 0; round * WARPS < tiles; ++round) {
        const uint32_t first = tile_of(round) * TILE;
        if (first >= tokens) {
            continue;
        }
        FragmentA query[STEPS], grad[STEPS];
#pragma unroll
        for (uint32_t step = 0; step < STEPS; ++step) {
            query[step] = a_of_rows(queries, first, step);
            grad[step] = a_of_rows(grads, first, step);
        }
        FragmentD d_query[COLUMNS] = {};
        const uint32_t end = args.causal ? min(first + TILE, tokens) : tokens;
        for (uint32_t start = 0; start < end; start += TILE) {
            FragmentD d_scores[2];
#pragma unroll
            for (uint32_t n = 0; n < 2; ++n) {
                FragmentD scores = {}, d_probabilities = {};
#pragma unroll
                for (uint32_t step = 0; step < STEPS; ++step) {
                    multiply_add(scores, query[step], b_of_rows(keys, start + 8 * n, step));
                    multiply_add(d_probabilities, grad[step], b_of_rows(values, start + 8 * n, step));
                }
#pragma unroll
                for (uint32_t i = 0; i < 4; ++i) {
                    const uint32_t row = d_row(first, i / 2), key = start + d_column(n, i % 2);
                    const float probability = seen(row, key) ? exp2f(scores.at[i] * to_exponent - lse[row]) : 0.0f;
                    d_scores[n].at[i] = args.scale * probability * (d_probabilities.at[i] - delta[row]);
                }
            }
            const FragmentA d_scores_a = a_of_results(d_scores[0], d_scores[1]);
#pragma unroll
            for (uint32_t n = 0; n < COLUMNS; ++n) {
                multiply_add(d_query[n], d_scores_a, b_as_it_lies(keys, start, 8 * n));
            }
        }
        finish_rows(args, 0, first, d_query, sums);
    }
    if (args.partials != nullptr) {
        write_parameter_sums(sums, args.partials + head * 4 * HEAD);
    }

    // Gradients of keys and values, 16 a warp at a time, over the queries that see them: all products are transposed.
    sums = ParameterSums{};
    const size_t value_start = part_of_qkv(args.qkv, 2, tokens, args.heads).start - reinterpret_cast<const uint32_t *>(args.qkv);
    const size_t stride = static_cast<size_t>(3) * args.heads * HEAD_WORDS;
    for (uint32_t round = 0; round * WARPS < tiles; ++round) {
        const uint32_t first = tile_of(round) * TILE;
        if (first >= tokens) {
            continue;
        }
        FragmentA key[STEPS], value[STEPS];
#pragma unroll
        for (uint32_t step = 0; step < STEPS; ++step) {
            key[step] = a_of_rows(keys, first, step);
            value[step] = a_of_rows(values, first, step);
        }
        FragmentD d_key[COLUMNS] = {}, d_value[COLUMNS] = {};
        for (uint32_t start = args.causal ? first : 0; start < tokens; start += TILE) {
            FragmentD probabilities[2], d_scores[2];
#pragma unroll
            for (uint32_t n = 0; n < 2; ++n) {
                FragmentD scores = {}, d_probabilities = {};
#pragma unroll
                for (uint32_t step = 0; step < STEPS; ++step) {
                    multiply_add(scores, key[step], b_of_rows(queries, start + 8 * n, step));
                    multiply_add(d_probabilities, value[step], b_of_rows(grads, start + 8 * n, step));
                }
#pragma unroll
                for (uint32_t i = 0; i < 4; ++i) {
                    const uint32_t query = start + d_column(n, i % 2);
                    const float probability = seen(query, d_row(first, i / 2)) ? exp2f(scores.at[i] * to_exponent - lse[query]) : 0.0f;
                    probabilities[n].at[i] = probability;
                    d_scores[n].at[i] = args.scale * probability * (d_probabilities.at[i] - delta[query]);
                }
            }
            const FragmentA probabilities_a = a_of_results(probabilities[0], probabilities[1]), d_scores_a = a_of_results(d_scores[0], d_scores[1]);
#pragma unroll
            for (uint32_t n = 0; n < COLUMNS; ++n) {
                multiply_add(d_value[n], probabilities_a, b_as_it_lies(grads, start, 8 * n));
                multiply_add(d_key[n], d_scores_a, b_as_it_lies(queries, start, 8 * n));
            }
        }
        finish_rows(args, 1, first, d_key, sums);
#pragma unroll
        for (uint32_t half = 0; half < 2; ++half) {
            const uint32_t row = d_row(first, half);
            if (row < tokens) {
                uint32_t *const to = reinterpret_cast<uint32_t *>(args.d_qkv) + value_start + row * stride;
#pragma unroll
                for (uint32_t n = 0; n < COLUMNS; ++n) {
                    to[4 * n + fragment_column()] = pack_bf16(d_value[n].at[2 * half], d_value[n].at[2 * half + 1]);
                }
            }
        }
    }
    if (args.partials != nullptr) {
        write_parameter_sums(sums, args.partials + head * 4 * HEAD + 2 * HEAD);
    }
}

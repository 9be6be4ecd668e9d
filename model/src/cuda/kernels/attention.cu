// Attention of one head of one image a block, with what belongs to it: LayerNorm of queries and keys, rotary positions, scores, softmax, values; and the
// backward of all that. Products are of bf16 with f32 sums; scores exist for one tile at a time. Nothing but `qkv`, the output and one number a row
// is kept for the backward, which normalises and rotates once more and takes two passes, over tiles of queries and over tiles of keys, so that every sum
// has one owner and an order. Heads of 64 values, T tokens up to 512, causal or not.
//
// Launch geometry: 256 threads, a grid of (H, B). Dynamic shared memory in bytes, with R = T rounded up to a multiple of 16: `attention_forward` 288 R,
// `attention_backward` 296 R + 14336; above 48 KiB the launch must ask for it (at T = 512 it is 144 KiB and 162 KiB).
#include "heads.cuh"

// Mirrored in Rust.
struct Attention {
    // [B, T, 3, H, 64]: query, key, value, with biases.
    const __nv_bfloat16 *qkv;
    // [T, 32]: of the angle by which a token's pairs (c, c + 32) are turned.
    const float *cos;
    const float *sin;
    // [64] each; null weights are 1, null biases 0.
    const float *query_weight;
    const float *query_bias;
    const float *key_weight;
    const float *key_bias;
    // [B, T, H * 64], and [B, H, T]: the logarithm of the sum of a row's exponentials. Written by the forward, read by the backward.
    __nv_bfloat16 *out;
    float *lse;
    // Backward only from here on. [B, T, H * 64] and [B, T, 3, H, 64]: the gradients of the output and of `qkv`.
    const __nv_bfloat16 *d_out;
    __nv_bfloat16 *d_qkv;
    // [B, 3, H, 64]: column sums of the second before it is rounded.
    float *bias_partials;
    // [B * H, 4, 64]: gradients of the norms, query's weight and bias, key's weight and bias; zero where there is none. Null is not written.
    float *norm_partials;
    uint32_t tokens;
    uint32_t heads;
    // 0 or 1.
    uint32_t causal;
    uint32_t qk_norm;
    float eps;
};
static_assert(sizeof(Attention) == 128, "the mirror in Rust expects this size");

namespace {

constexpr uint32_t ATTENTION_THREADS = 256;
constexpr uint32_t ATTENTION_WARPS = ATTENTION_THREADS / WARP;
// Keys that the forward's softmax takes at a time.
constexpr uint32_t KEYS = 64;
constexpr float LOG2_E = 1.44269504f;
constexpr float SCALE = 0.125f;

// Sums over rows that the backward makes, 64 each: of the gradient of query, key and value, and of the norms in the order of `norm_partials`.
enum { QUERY_SUMS, KEY_SUMS, VALUE_SUMS, QUERY_WEIGHT_SUMS, QUERY_BIAS_SUMS, KEY_WEIGHT_SUMS, KEY_BIAS_SUMS, NUM_SUMS };

// What a block works on.
struct Head {
    const __nv_bfloat16 *qkv[3];
    // From one token to the next.
    size_t qkv_stride, out_stride;
    // In `out`; and the first of T numbers in `lse`.
    size_t out_start, lse_start;
    HeadNorm query_norm, key_norm;
    Rotary rotary;
    uint32_t tokens;
    // Tokens in whole tiles.
    uint32_t tiles, rows;
    bool causal;
};

__device__ __forceinline__ Head head_of(const Attention &args) {
    const uint32_t head = blockIdx.x, image = blockIdx.y, heads = args.heads, tiles = (args.tokens + TILE_ROWS - 1) / TILE_ROWS;
    const size_t width = static_cast<size_t>(heads) * HEAD;
    const __nv_bfloat16 *const query = args.qkv + image * args.tokens * 3 * width + head * HEAD;
    Head result;
    result.qkv[0] = query;
    result.qkv[1] = query + width;
    result.qkv[2] = query + 2 * width;
    result.qkv_stride = 3 * width;
    result.out_stride = width;
    result.out_start = image * args.tokens * width + head * HEAD;
    result.lse_start = (static_cast<size_t>(image) * heads + head) * args.tokens;
    result.query_norm = {args.query_weight, args.query_bias, args.qk_norm != 0, args.eps};
    result.key_norm = {args.key_weight, args.key_bias, args.qk_norm != 0, args.eps};
    result.rotary = {args.cos, args.sin};
    result.tokens = args.tokens;
    result.tiles = tiles;
    result.rows = tiles * TILE_ROWS;
    result.causal = args.causal != 0;
    return result;
}

// The tiles of a warp, which is the first in one round and the last in the next: with a causal mask, late queries see more keys.
__device__ __forceinline__ uint32_t tile_of_round(uint32_t round) {
    const uint32_t warp = threadIdx.x / WARP;
    return round * ATTENTION_WARPS + (round % 2 == 0 ? warp : ATTENTION_WARPS - 1 - warp);
}

// Copies a head's rows to shared memory as they are; zero behind the last token.
__device__ __forceinline__ void share_rows(__nv_bfloat16 *shared, const __nv_bfloat16 *from, size_t stride, const Head &head) {
    constexpr uint32_t VECTORS = HEAD / 8;
    for (uint32_t i = threadIdx.x; i < head.rows * VECTORS; i += ATTENTION_THREADS) {
        const uint32_t row = i / VECTORS, column = i % VECTORS * 8;
        uint4 values = {0, 0, 0, 0};
        if (row < head.tokens) {
            values = *reinterpret_cast<const uint4 *>(from + row * stride + column);
        }
        *reinterpret_cast<uint4 *>(shared + row * PITCH + column) = values;
    }
}

// The same, normalised and rotated.
__device__ __forceinline__ void share_rotated(__nv_bfloat16 *shared, const __nv_bfloat16 *from, const HeadNorm &norm, const Head &head) {
    for (uint32_t tile = threadIdx.x / WARP; tile < head.tiles; tile += ATTENTION_WARPS) {
        HeadTile rows;
        load_tile(rows, from, head.qkv_stride, tile * TILE_ROWS, head.tokens);
        norm_and_rotate(rows, norm, head.rotary, tile * TILE_ROWS, head.tokens);
        store_tile(rows, shared, PITCH, tile * TILE_ROWS, head.rows);
    }
}

__device__ __forceinline__ float max_of_row(float value) {
    value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, 1));
    return fmaxf(value, __shfl_xor_sync(ALL_LANES, value, 2));
}

// Sixteen queries, from `first` on: softmax as it goes over the keys, rescaled whenever a greater score comes.
__device__ __forceinline__ void attend(const Attention &args, const Head &head, uint32_t first, const __nv_bfloat16 *keys, const __nv_bfloat16 *values) {
    constexpr float FACTOR = SCALE * LOG2_E;
    HeadTile queries;
    load_tile(queries, head.qkv[0], head.qkv_stride, first, head.tokens);
    norm_and_rotate(queries, head.query_norm, head.rotary, first, head.tokens);
    const LeftTile left = left_tile(queries);
    const uint32_t end = head.causal ? min(first + TILE_ROWS, head.tokens) : head.tokens;
    Sums out = {};
    float most[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};
    for (uint32_t start = 0; start < end; start += KEYS) {
        float scores[KEYS / 8][4];
#pragma unroll
        for (int n = 0; n < static_cast<int>(KEYS / 8); ++n) {
            const uint32_t key = start + 8 * n;
#pragma unroll
            for (int place = 0; place < 4; ++place) {
                scores[n][place] = 0.0f;
            }
            if (key / TILE_ROWS * TILE_ROWS < end) {
                add_product_with_rows(scores[n], left, keys, key);
            }
#pragma unroll
            for (int place = 0; place < 4; ++place) {
                const uint32_t own = start + lane_column_of(n) + place % 2, row = first + lane_row() + place / 2 * 8;
                if (own >= head.tokens || (head.causal && own > row)) {
                    scores[n][place] = -INFINITY;
                }
            }
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float greatest = most[r];
#pragma unroll
            for (int n = 0; n < static_cast<int>(KEYS / 8); ++n) {
                greatest = fmaxf(greatest, fmaxf(scores[n][2 * r], scores[n][2 * r + 1]));
            }
            greatest = max_of_row(greatest);
            // Every row sees key 0, so that there is a greatest score from the first keys on.
            const float shrink = exp2f((most[r] - greatest) * FACTOR);
            most[r] = greatest;
            total[r] *= shrink;
#pragma unroll
            for (int n = 0; n < static_cast<int>(KEYS / 8); ++n) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    float &score = scores[n][2 * r + e];
                    score = exp2f((score - greatest) * FACTOR);
                    total[r] += score;
                }
                out.of_columns[n][2 * r] *= shrink;
                out.of_columns[n][2 * r + 1] *= shrink;
            }
        }
#pragma unroll
        for (int part = 0; part < static_cast<int>(KEYS / TILE_ROWS); ++part) {
            if (start + part * TILE_ROWS < end) {
                uint32_t probabilities[4];
                left_of(probabilities, scores[2 * part], scores[2 * part + 1]);
                add_product_over_rows(out, probabilities, values, start + part * TILE_ROWS);
            }
        }
    }
    HeadTile result = tile_of(out);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const float sum = sum_of_row(total[r]);
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            result.at[r][i] /= sum;
        }
        const uint32_t row = first + lane_row() + 8 * r;
        if (row < head.tokens && threadIdx.x % 4 == 0) {
            args.lse[head.lse_start + row] = most[r] * SCALE + logf(sum);
        }
    }
    store_tile(result, args.out + head.out_start, head.out_stride, first, head.tokens);
}

// Gradient of sixteen queries, from `first` on; leaves the numbers of their rows for the other pass. `keys` and `values` are shared.
__device__ __forceinline__ void query_gradient(const Attention &args, const Head &head, uint32_t first, const __nv_bfloat16 *keys,
                                               const __nv_bfloat16 *values, float2 *numbers, float *sums) {
    HeadTile tile, d_out;
    load_tile(d_out, args.d_out + head.out_start, head.out_stride, first, head.tokens);
    load_tile(tile, args.out + head.out_start, head.out_stride, first, head.tokens);
    float lse[2], delta[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const uint32_t row = first + lane_row() + 8 * r;
        float dot = 0.0f;
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            dot += d_out.at[r][i] * tile.at[r][i];
        }
        delta[r] = sum_of_row(dot);
        // In powers of two; a row that does not exist has probabilities of zero.
        lse[r] = row < head.tokens ? args.lse[head.lse_start + row] * LOG2_E : INFINITY;
        if (threadIdx.x % 4 == 0) {
            numbers[row] = {lse[r], delta[r]};
        }
    }
    const LeftTile left_d_out = left_tile(d_out);
    load_tile(tile, head.qkv[0], head.qkv_stride, first, head.tokens);
    norm_and_rotate(tile, head.query_norm, head.rotary, first, head.tokens);
    const LeftTile left = left_tile(tile);
    const uint32_t end = head.causal ? min(first + TILE_ROWS, head.tokens) : head.tokens;
    Sums gradient = {};
    for (uint32_t start = 0; start < end; start += TILE_ROWS) {
        float scores[2][4] = {}, d_scores[2][4] = {};
#pragma unroll
        for (int n = 0; n < 2; ++n) {
            add_product_with_rows(scores[n], left, keys, start + 8 * n);
            add_product_with_rows(d_scores[n], left_d_out, values, start + 8 * n);
#pragma unroll
            for (int place = 0; place < 4; ++place) {
                const int r = place / 2;
                const uint32_t key = start + lane_column_of(n) + place % 2, row = first + lane_row() + 8 * r;
                const float probability = exp2f(scores[n][place] * (SCALE * LOG2_E) - lse[r]);
                const bool seen = key < head.tokens && (!head.causal || key <= row);
                d_scores[n][place] = seen ? probability * (d_scores[n][place] - delta[r]) * SCALE : 0.0f;
            }
        }
        uint32_t left_d_scores[4];
        left_of(left_d_scores, d_scores[0], d_scores[1]);
        add_product_over_rows(gradient, left_d_scores, keys, start);
    }
    HeadTile grad = tile_of(gradient);
    load_tile(tile, head.qkv[0], head.qkv_stride, first, head.tokens);
    norm_and_rotate_backward(grad, tile, head.query_norm, head.rotary, first, head.tokens, sums + QUERY_WEIGHT_SUMS * HEAD, sums + QUERY_BIAS_SUMS * HEAD);
    add_column_sums(sums + QUERY_SUMS * HEAD, [&](int r, int i) { return grad.at[r][i]; });
    store_tile(grad, args.d_qkv + (head.qkv[0] - args.qkv), head.qkv_stride, first, head.tokens);
}

// Gradients of sixteen keys and their values, from `first` on. `queries` and `d_out` are shared; products are transposed, with keys as rows.
__device__ __forceinline__ void key_gradient(const Attention &args, const Head &head, uint32_t first, const __nv_bfloat16 *queries,
                                             const __nv_bfloat16 *d_out, const float2 *numbers, float *sums) {
    HeadTile tile;
    load_tile(tile, head.qkv[2], head.qkv_stride, first, head.tokens);
    const LeftTile left_values = left_tile(tile);
    load_tile(tile, head.qkv[1], head.qkv_stride, first, head.tokens);
    norm_and_rotate(tile, head.key_norm, head.rotary, first, head.tokens);
    const LeftTile left = left_tile(tile);
    Sums d_key = {}, d_value = {};
    for (uint32_t start = head.causal ? first : 0; start < head.rows; start += TILE_ROWS) {
        float scores[2][4] = {}, d_scores[2][4] = {};
#pragma unroll
        for (int n = 0; n < 2; ++n) {
            add_product_with_rows(scores[n], left, queries, start + 8 * n);
            add_product_with_rows(d_scores[n], left_values, d_out, start + 8 * n);
            // Of two queries: lse and delta, lse and delta.
            const float4 two = *reinterpret_cast<const float4 *>(numbers + start + lane_column_of(n));
#pragma unroll
            for (int place = 0; place < 4; ++place) {
                const uint32_t row = start + lane_column_of(n) + place % 2, key = first + lane_row() + place / 2 * 8;
                const bool seen = key < head.tokens && (!head.causal || key <= row);
                const float lse = place % 2 == 0 ? two.x : two.z, delta = place % 2 == 0 ? two.y : two.w;
                const float probability = seen ? exp2f(scores[n][place] * (SCALE * LOG2_E) - lse) : 0.0f;
                scores[n][place] = probability;
                d_scores[n][place] = probability * (d_scores[n][place] - delta) * SCALE;
            }
        }
        uint32_t left_scores[4];
        left_of(left_scores, scores[0], scores[1]);
        add_product_over_rows(d_value, left_scores, d_out, start);
        left_of(left_scores, d_scores[0], d_scores[1]);
        add_product_over_rows(d_key, left_scores, queries, start);
    }
    HeadTile grad = tile_of(d_value);
    add_column_sums(sums + VALUE_SUMS * HEAD, [&](int r, int i) { return grad.at[r][i]; });
    store_tile(grad, args.d_qkv + (head.qkv[2] - args.qkv), head.qkv_stride, first, head.tokens);
    grad = tile_of(d_key);
    load_tile(tile, head.qkv[1], head.qkv_stride, first, head.tokens);
    norm_and_rotate_backward(grad, tile, head.key_norm, head.rotary, first, head.tokens, sums + KEY_WEIGHT_SUMS * HEAD, sums + KEY_BIAS_SUMS * HEAD);
    add_column_sums(sums + KEY_SUMS * HEAD, [&](int r, int i) { return grad.at[r][i]; });
    store_tile(grad, args.d_qkv + (head.qkv[1] - args.qkv), head.qkv_stride, first, head.tokens);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS, 2) attention_forward(const __grid_constant__ Attention args) {
    DYNAMIC_SHARED_MEMORY(uint4, memory);
    const Head head = head_of(args);
    __nv_bfloat16 *const keys = reinterpret_cast<__nv_bfloat16 *>(memory), *const values = keys + head.rows * PITCH;
    share_rotated(keys, head.qkv[1], head.key_norm, head);
    share_rows(values, head.qkv[2], head.qkv_stride, head);
    __syncthreads();
    for (uint32_t round = 0; round * ATTENTION_WARPS < head.tiles; ++round) {
        const uint32_t tile = tile_of_round(round);
        if (tile < head.tiles) {
            attend(args, head, tile * TILE_ROWS, keys, values);
        }
    }
}

extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS, 2) attention_backward(const __grid_constant__ Attention args) {
    DYNAMIC_SHARED_MEMORY(uint4, memory);
    const Head head = head_of(args);
    __nv_bfloat16 *const first = reinterpret_cast<__nv_bfloat16 *>(memory), *const second = first + head.rows * PITCH;
    // By query: the logarithm of its sum of exponentials, in powers of two, and its output times the gradient of that.
    float2 *const numbers = reinterpret_cast<float2 *>(second + head.rows * PITCH);
    float *const of_warp = reinterpret_cast<float *>(numbers + head.rows);
    float *const sums = of_warp + threadIdx.x / WARP * (NUM_SUMS * HEAD);
    for (uint32_t i = threadIdx.x % WARP; i < NUM_SUMS * HEAD; i += WARP) {
        sums[i] = 0.0f;
    }
    share_rotated(first, head.qkv[1], head.key_norm, head);
    share_rows(second, head.qkv[2], head.qkv_stride, head);
    __syncthreads();
    for (uint32_t round = 0; round * ATTENTION_WARPS < head.tiles; ++round) {
        const uint32_t tile = tile_of_round(round);
        if (tile < head.tiles) {
            query_gradient(args, head, tile * TILE_ROWS, first, second, numbers, sums);
        }
    }
    // Keys and values make room for queries and the gradient of the output.
    __syncthreads();
    share_rotated(first, head.qkv[0], head.query_norm, head);
    share_rows(second, args.d_out + head.out_start, head.out_stride, head);
    __syncthreads();
    for (uint32_t round = 0; round * ATTENTION_WARPS < head.tiles; ++round) {
        const uint32_t tile = tile_of_round(round);
        if (tile < head.tiles) {
            key_gradient(args, head, tile * TILE_ROWS, first, second, numbers, sums);
        }
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < NUM_SUMS * HEAD; i += ATTENTION_THREADS) {
        float sum = 0.0f;
        for (uint32_t warp = 0; warp < ATTENTION_WARPS; ++warp) {
            sum += of_warp[warp * (NUM_SUMS * HEAD) + i];
        }
        const uint32_t quantity = i / HEAD, column = i % HEAD, image = blockIdx.y;
        if (quantity <= VALUE_SUMS) {
            args.bias_partials[((image * 3 + quantity) * args.heads + blockIdx.x) * HEAD + column] = sum;
        } else if (args.norm_partials != nullptr) {
            args.norm_partials[(image * args.heads + blockIdx.x) * (4 * HEAD) + (quantity - QUERY_WEIGHT_SUMS) * HEAD + column] = sum;
        }
    }
}

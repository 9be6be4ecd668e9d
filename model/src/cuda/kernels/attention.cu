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
    // [T, 32], one for all images or one each: of the angle by which a token's pairs (c, c + 32)
    // are turned.
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
    // From an image's first value in `cos` and `sin` to the next one's, a multiple of 4; 0 is one
    // table for all.
    uint32_t table_stride;
};
static_assert(sizeof(Attention) == 128, "the mirror in Rust expects this size");

namespace {

constexpr uint32_t ATTENTION_THREADS = 256;
constexpr uint32_t ATTENTION_WARPS = ATTENTION_THREADS / WARP;
// Keys that the forward's softmax takes at a time.
constexpr uint32_t KEY_TILES = 4;
constexpr uint32_t KEYS = KEY_TILES * TILE_ROWS;
constexpr float LOG2_E = 1.44269504f;
constexpr float SCALE = 0.125f;
constexpr float LOG2_SCALE = -3.0f;
// Of a score, so that the exponential is a power of two.
constexpr float FACTOR = SCALE * LOG2_E;

// Sums over rows that the backward makes, 64 each: of the gradient of query, key and value, and of the norms in the order of `norm_partials`.
enum { QUERY_SUMS, KEY_SUMS, VALUE_SUMS, QUERY_WEIGHT_SUMS, QUERY_BIAS_SUMS, KEY_WEIGHT_SUMS, KEY_BIAS_SUMS, NUM_SUMS };

// What a block works on.
struct Head {
    // Of its queries, keys and values the first in `qkv`.
    size_t start[3];
    // From one token to the next.
    uint32_t qkv_stride, out_stride;
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
    const uint32_t width = heads * HEAD;
    const size_t first_row = static_cast<size_t>(image) * args.tokens;
    Head result;
    result.start[0] = first_row * (3 * width) + head * HEAD;
    result.start[1] = result.start[0] + width;
    result.start[2] = result.start[1] + width;
    result.qkv_stride = 3 * width;
    result.out_stride = width;
    result.out_start = first_row * width + head * HEAD;
    result.lse_start = (static_cast<size_t>(image) * heads + head) * args.tokens;
    result.query_norm = {args.query_weight, args.query_bias, args.qk_norm, args.eps};
    result.key_norm = {args.key_weight, args.key_bias, args.qk_norm, args.eps};
    result.rotary = {args.cos, args.sin, args.table_stride};
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

// Copies a head's rows to shared memory, place by place; behind the last one it comes again.
__device__ __forceinline__ void share_rows(__nv_bfloat16 *shared, const __nv_bfloat16 *from, uint32_t stride, const Head &head) {
    constexpr uint32_t VECTORS = HEAD / 8;
    for (uint32_t i = threadIdx.x; i < head.rows * VECTORS; i += ATTENTION_THREADS) {
        const uint32_t row = i / VECTORS, vector = i % VECTORS;
        const uint4 values = *reinterpret_cast<const uint4 *>(from + min(row, head.tokens - 1) * stride + vector * 8);
        // Eight columns of a half are two places of each of its four pieces.
        uint1 *const to = reinterpret_cast<uint1 *>(shared + row * PITCH + vector / 4 * (HEAD / 2) + vector % 4 * 2);
        to[0].x = values.x;
        to[4].x = values.y;
        to[8].x = values.z;
        to[12].x = values.w;
    }
}

// Normalised and rotated.
__device__ __forceinline__ void share_rotated(__nv_bfloat16 *shared, const __nv_bfloat16 *from, const HeadNorm &norm, const Head &head) {
    for (uint32_t tile = threadIdx.x / WARP; tile < head.tiles; tile += ATTENTION_WARPS) {
        HeadTile rows;
        load_tile(rows, from, head.qkv_stride, tile * TILE_ROWS, head.tokens);
        norm_and_rotate(rows, norm, head.rotary, tile * TILE_ROWS, head.tokens);
        share_tile(rows, shared, tile * TILE_ROWS);
    }
}

__device__ __forceinline__ float max_of_row(float value) {
    value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, 1));
    return fmaxf(value, __shfl_xor_sync(ALL_LANES, value, 2));
}

// What sixteen queries have gathered: two rows a lane.
struct Softmax {
    Sums out;
    // The greatest score so far, and the lane's part of the sum of exponentials of scores less that.
    float most[2], total[2];
};

// Sixteen queries, from `first` on, meet `TILES` tiles of keys, from `start` on; where it is `MASKED`, the last of them has keys that a query must not see.
template <int TILES, bool MASKED>
__device__ __forceinline__ void attend_keys(Softmax &softmax, const LeftTile &left, const Head &head, uint32_t first, uint32_t start,
                                            const __nv_bfloat16 *keys, const __nv_bfloat16 *values) {
    float scores[TILES][2][4];
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            scores[tile][i / 4][i % 4] = 0.0f;
        }
        add_product_with_rows(scores[tile], left, keys + (start + tile * TILE_ROWS) * PITCH);
    }
    if (MASKED) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const uint32_t key = start + (TILES - 1) * TILE_ROWS + lane_place_of(i / 4) + i % 2, row = first + lane_row() + i % 4 / 2 * 8;
            if (key >= head.tokens || (head.causal && key > row)) {
                scores[TILES - 1][i / 4][i % 4] = -INFINITY;
            }
        }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float greatest = softmax.most[r];
#pragma unroll
        for (int n = 0; n < 2 * TILES; ++n) {
            greatest = fmaxf(greatest, fmaxf(scores[n / 2][n % 2][2 * r], scores[n / 2][n % 2][2 * r + 1]));
        }
        greatest = max_of_row(greatest);
        // Every row sees key 0, so that there is a greatest score from the first keys on.
        const float offset = greatest * FACTOR, shrink = fast_exp2(fmaf(softmax.most[r], FACTOR, -offset));
        softmax.most[r] = greatest;
        float total = softmax.total[r] * shrink;
#pragma unroll
        for (int i = 0; i < 4 * TILES; ++i) {
            float &score = scores[i / 4][i / 2 % 2][2 * r + i % 2];
            score = fast_exp2(fmaf(score, FACTOR, -offset));
            total += score;
        }
        softmax.total[r] = total;
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            softmax.out.of_columns[i / 2][2 * r + i % 2] *= shrink;
        }
    }
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
        uint32_t probabilities[4];
        left_of(probabilities, scores[tile][0], scores[tile][1]);
        add_product_over_rows(softmax.out, probabilities, values + (start + tile * TILE_ROWS) * PITCH);
    }
}

// Sixteen queries, from `first` on: softmax as it goes over the keys, rescaled whenever a greater score comes.
__device__ __forceinline__ void attend(const Attention &args, const Head &head, uint32_t first, const __nv_bfloat16 *keys, const __nv_bfloat16 *values) {
    HeadTile tile;
    load_tile(tile, args.qkv + head.start[0], head.qkv_stride, first, head.tokens);
    norm_and_rotate(tile, head.query_norm, head.rotary, first, head.tokens);
    const LeftTile left = left_tile(tile);
    keys += place_in_rows();
    values += place_over_rows();
    Softmax softmax = {{}, {-INFINITY, -INFINITY}, {0.0f, 0.0f}};
    // Whole tiles of keys that all queries see, and whether there is one more with others, too.
    const uint32_t seen = head.causal ? first / TILE_ROWS : head.tokens / TILE_ROWS;
    const bool masked = head.causal || head.tokens % TILE_ROWS != 0;
    uint32_t start = 0;
    for (; start + KEYS <= seen * TILE_ROWS; start += KEYS) {
        attend_keys<KEY_TILES, false>(softmax, left, head, first, start, keys, values);
    }
    // The same way for all threads of the warp.
    const uint32_t rest = seen % KEY_TILES;
    if (masked) {
        if (rest == 0) {
            attend_keys<1, true>(softmax, left, head, first, start, keys, values);
        } else if (rest == 1) {
            attend_keys<2, true>(softmax, left, head, first, start, keys, values);
        } else if (rest == 2) {
            attend_keys<3, true>(softmax, left, head, first, start, keys, values);
        } else {
            attend_keys<4, true>(softmax, left, head, first, start, keys, values);
        }
    } else {
        for (; start < head.tokens; start += TILE_ROWS) {
            attend_keys<1, false>(softmax, left, head, first, start, keys, values);
        }
    }
    tile = tile_of(softmax.out);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const float sum = sum_of_row(softmax.total[r]), per_sum = __fdividef(1.0f, sum);
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            tile.at[r][i] *= per_sum;
        }
        const uint32_t row = first + lane_row() + 8 * r;
        if (row < head.tokens && threadIdx.x % 4 == 0) {
            args.lse[head.lse_start + row] = softmax.most[r] * SCALE + __logf(sum);
        }
    }
    store_tile(tile, args.out + head.out_start, head.out_stride, first, head.tokens);
}

// For each tile of queries what the backward's second pass needs of them, all negative: of sixteen queries the logarithm of the sum of exponentials, in
// powers of two; then of sixteen the output times the gradient of that.
constexpr uint32_t TILE_NUMBERS = 2 * TILE_ROWS;

__device__ __forceinline__ void scale(Sums &sums, float by) {
#pragma unroll
    for (int i = 0; i < 32; ++i) {
        sums.of_columns[i / 4][i % 4] *= by;
    }
}

// Gradient of sixteen queries, from `first` on; leaves the numbers of their rows for the other pass. `keys` and `values` are shared.
__device__ __forceinline__ void query_gradient(const Attention &args, const Head &head, uint32_t first, const __nv_bfloat16 *keys,
                                               const __nv_bfloat16 *values, float *numbers, float *sums) {
    HeadTile tile, d_out;
    load_tile(d_out, args.d_out + head.out_start, head.out_stride, first, head.tokens);
    load_tile(tile, args.out + head.out_start, head.out_stride, first, head.tokens);
    // Negative; and what makes a probability times SCALE of a score.
    float lse[2], delta[2], scaled[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const uint32_t row = first + lane_row() + 8 * r;
        float dot = 0.0f;
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            dot += d_out.at[r][i] * tile.at[r][i];
        }
        delta[r] = -sum_of_row(dot);
        // A row that does not exist has probabilities of zero.
        lse[r] = row < head.tokens ? args.lse[head.lse_start + row] * -LOG2_E : -INFINITY;
        scaled[r] = lse[r] + LOG2_SCALE;
        if (threadIdx.x % 4 == 0) {
            float *const of_row = numbers + first / TILE_ROWS * TILE_NUMBERS + lane_row() + 8 * r;
            of_row[0] = lse[r];
            of_row[TILE_ROWS] = delta[r];
        }
    }
    const LeftTile left_d_out = left_tile(d_out);
    load_tile(tile, args.qkv + head.start[0], head.qkv_stride, first, head.tokens);
    norm_and_rotate(tile, head.query_norm, head.rotary, first, head.tokens);
    const LeftTile left = left_tile(tile);
    const __nv_bfloat16 *const keys_over = keys + place_over_rows();
    keys += place_in_rows();
    values += place_in_rows();
    Sums gradient = {};
    // A tile of keys; where it is masked, with some that a query must not see.
    const auto add = [&](uint32_t start, bool masked) {
        float scores[2][4] = {}, d_scores[2][4];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            d_scores[i / 4][i % 4] = delta[i % 4 / 2];
        }
        add_product_with_rows(scores, left, keys + start * PITCH);
        add_product_with_rows(d_scores, left_d_out, values + start * PITCH);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            float &d_score = d_scores[i / 4][i % 4];
            d_score *= fast_exp2(fmaf(scores[i / 4][i % 4], FACTOR, scaled[i % 4 / 2]));
            const uint32_t key = start + lane_place_of(i / 4) + i % 2, row = first + lane_row() + i % 4 / 2 * 8;
            if (masked && (key >= head.tokens || (head.causal && key > row))) {
                d_score = 0.0f;
            }
        }
        uint32_t left_d_scores[4];
        left_of(left_d_scores, d_scores[0], d_scores[1]);
        add_product_over_rows(gradient, left_d_scores, keys_over + start * PITCH);
    };
    const uint32_t seen = head.causal ? first : head.tokens / TILE_ROWS * TILE_ROWS;
#pragma unroll 1
    for (uint32_t start = 0; start < seen; start += TILE_ROWS) {
        add(start, false);
    }
    if (seen < head.tokens) {
        add(seen, true);
    }
    first = forget(first);
    HeadTile grad = tile_of(gradient);
    load_tile(tile, args.qkv + head.start[0], head.qkv_stride, forget(first), head.tokens);
    norm_and_rotate_backward(grad, tile, head.query_norm, head.rotary, first, head.tokens, sums + QUERY_WEIGHT_SUMS * HEAD, sums + QUERY_BIAS_SUMS * HEAD);
    add_column_sums(sums + QUERY_SUMS * HEAD, [&](int r, int i) { return grad.at[r][i]; });
    store_tile(grad, args.d_qkv + head.start[0], head.qkv_stride, first, head.tokens);
}

// Gradients of a tile of keys and their values. `queries` are shared, and behind them the gradient of the output; products are transposed, with keys as
// rows.
__device__ __forceinline__ void key_gradient(const Attention &args, const Head &head, uint32_t round, const __nv_bfloat16 *queries,
                                             float *numbers, float *sums) {
    uint32_t first = tile_of_round(round) * TILE_ROWS;
    HeadTile tile;
    load_tile(tile, args.qkv + head.start[2], head.qkv_stride, first, head.tokens);
    const LeftTile left_values = left_tile(tile);
    load_tile(tile, args.qkv + head.start[1], head.qkv_stride, first, head.tokens);
    norm_and_rotate(tile, head.key_norm, head.rotary, first, head.tokens);
    const LeftTile left = left_tile(tile);
    Sums d_key = {}, d_value = {};
    // A tile of queries; where it is masked, with some that do not see a key.
    const auto add = [&](uint32_t start, bool masked) {
        const __nv_bfloat16 *const in_rows = queries + start * PITCH + place_in_rows(), *const over_rows = queries + start * PITCH + place_over_rows();
        const uint32_t d_out = head.rows * PITCH;
        float scores[2][4] = {}, d_scores[2][4];
        float2 lse[2];
#pragma unroll
        for (int n = 0; n < 2; ++n) {
            const float2 *const of_two = reinterpret_cast<const float2 *>(numbers + start / TILE_ROWS * TILE_NUMBERS + lane_place_of(n));
            lse[n] = of_two[0];
            const float2 delta = of_two[TILE_ROWS / 2];
#pragma unroll
            for (int place = 0; place < 4; ++place) {
                d_scores[n][place] = place % 2 == 0 ? delta.x : delta.y;
            }
        }
        add_product_with_rows(scores, left, in_rows);
        add_product_with_rows(d_scores, left_values, in_rows + d_out);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            float &probability = scores[i / 4][i % 4];
            probability = fast_exp2(fmaf(probability, FACTOR, i % 2 == 0 ? lse[i / 4].x : lse[i / 4].y));
            const uint32_t row = start + lane_place_of(i / 4) + i % 2, key = first + lane_row() + i % 4 / 2 * 8;
            if (masked && key > row) {
                probability = 0.0f;
            }
            d_scores[i / 4][i % 4] *= probability;
        }
        uint32_t left_scores[4];
        left_of(left_scores, scores[0], scores[1]);
        add_product_over_rows(d_value, left_scores, over_rows + d_out);
        left_of(left_scores, d_scores[0], d_scores[1]);
        add_product_over_rows(d_key, left_scores, over_rows);
    };
    if (head.causal) {
        add(first, true);
    }
#pragma unroll 1
    for (uint32_t start = head.causal ? first + TILE_ROWS : 0; start < head.rows; start += TILE_ROWS) {
        add(start, false);
    }
    // Keys behind the last token have gradients that nobody asked for, and that must not get into the sums.
    scale(d_key, SCALE);
    first = tile_of_round(forget(round)) * TILE_ROWS;
    HeadTile grad = tile_of(d_value);
    clear_rows(grad, first, head.tokens);
    add_column_sums(sums + VALUE_SUMS * HEAD, [&](int r, int i) { return grad.at[r][i]; });
    store_tile(grad, args.d_qkv + head.start[2], head.qkv_stride, first, head.tokens);
    grad = tile_of(d_key);
    clear_rows(grad, first, head.tokens);
    load_tile(tile, args.qkv + head.start[1], head.qkv_stride, first, head.tokens);
    norm_and_rotate_backward(grad, tile, head.key_norm, head.rotary, first, head.tokens, sums + KEY_WEIGHT_SUMS * HEAD, sums + KEY_BIAS_SUMS * HEAD);
    add_column_sums(sums + KEY_SUMS * HEAD, [&](int r, int i) { return grad.at[r][i]; });
    store_tile(grad, args.d_qkv + head.start[1], head.qkv_stride, first, head.tokens);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS, 2) attention_forward(const __grid_constant__ Attention args) {
    DYNAMIC_SHARED_MEMORY(uint4, memory);
    const Head head = head_of(args);
    __nv_bfloat16 *const keys = reinterpret_cast<__nv_bfloat16 *>(memory), *const values = keys + head.rows * PITCH;
    share_rotated(keys, args.qkv + head.start[1], head.key_norm, head);
    share_rows(values, args.qkv + head.start[2], head.qkv_stride, head);
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
    float *const numbers = reinterpret_cast<float *>(second + head.rows * PITCH), *const of_warp = numbers + head.tiles * TILE_NUMBERS;
    float *const sums = of_warp + threadIdx.x / WARP * (NUM_SUMS * HEAD);
    for (uint32_t i = threadIdx.x % WARP; i < NUM_SUMS * HEAD; i += WARP) {
        sums[i] = 0.0f;
    }
    share_rotated(first, args.qkv + head.start[1], head.key_norm, head);
    share_rows(second, args.qkv + head.start[2], head.qkv_stride, head);
    __syncthreads();
    for (uint32_t round = 0; round * ATTENTION_WARPS < head.tiles; ++round) {
        const uint32_t tile = tile_of_round(round);
        if (tile < head.tiles) {
            query_gradient(args, head, tile * TILE_ROWS, first, second, numbers, sums);
        }
    }
    // Keys and values make room for queries and the gradient of the output.
    __syncthreads();
    share_rotated(first, args.qkv + head.start[0], head.query_norm, head);
    share_rows(second, args.d_out + head.out_start, head.out_stride, head);
    __syncthreads();
    for (uint32_t round = 0; round * ATTENTION_WARPS < head.tiles; ++round) {
        const uint32_t tile = tile_of_round(round);
        if (tile < head.tiles) {
            key_gradient(args, head, round, first, numbers, sums);
        }
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < NUM_SUMS * HEAD; i += ATTENTION_THREADS) {
        float sum = 0.0f;
        for (uint32_t warp = 0; warp < ATTENTION_WARPS; ++warp) {
            sum += of_warp[warp * (NUM_SUMS * HEAD) + i];
        }
        const uint32_t quantity = i / HEAD, column = column_of_place(i % HEAD), image = blockIdx.y;
        if (quantity <= VALUE_SUMS) {
            args.bias_partials[((image * 3 + quantity) * args.heads + blockIdx.x) * HEAD + column] = sum;
        } else if (args.norm_partials != nullptr) {
            args.norm_partials[(image * args.heads + blockIdx.x) * (4 * HEAD) + (quantity - QUERY_WEIGHT_SUMS) * HEAD + column] = sum;
        }
    }
}

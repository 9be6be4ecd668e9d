// Both ends of the blocks: pixels to the rows that the patch embedding's product reads, its result and the class token to the first stream, and back.
// B images of height H and width W, P patches of side p, row by row of a grid of H / p rows and
// W / p columns; T tokens (P in pretraining, else P + 1, or K + 1 with K kept patches), D a
// multiple of 8.
// The class token's gradient needs no kernel here: it is the sum of the rows 0, so `add_partials` over dx with a stride of T * D and B pieces.
//
// Launch geometry: `patchify_*` 256 threads, ceil(B * P * columns / 8 / 256) blocks; `assemble` 256 threads, ceil(B * T * D / 4 / 256) blocks;
// `disassemble` 256 threads, a grid of (ceil(D / 256), pieces), pieces of `rows_per_piece` of the B * P rows. No dynamic shared memory.
#include "columns.cuh"

// Mirrored in Rust.
struct Patchify {
    // f32 or bf16, [B, 3, H, W], or [B, P, 3 * p * p] with the values of a patch in the order (channel, row, column).
    const void *pixels;
    // [B * P, columns], in that order; the columns behind 3 * p * p are zero.
    __nv_bfloat16 *patches;
    uint32_t batch;
    // Both multiples of the patch.
    uint32_t height;
    uint32_t width;
    uint32_t patch;
    // 3 * p * p or more, a multiple of 8.
    uint32_t columns;
    // 1 where the pixels lie in patches.
    uint32_t in_patches;
};
static_assert(sizeof(Patchify) == 40, "the mirror in Rust expects this size");

// Mirrored in Rust.
struct Assemble {
    // [B * P, D], with bias, and [D].
    const float *embedding;
    const float *class_token;
    // [B, T - 1]: which patch of its image each token behind the class token is; null is all in
    // order, as many as there is room for.
    const uint32_t *kept;
    // [B * T, D]: in each image the class token, then its patches.
    float *x;
    uint32_t batch;
    uint32_t patches;
    uint32_t tokens;
    uint32_t width;
};
static_assert(sizeof(Assemble) == 48, "the mirror in Rust expects this size");

// Mirrored in Rust.
struct Disassemble {
    // [B * T, D]: the gradient of the stream.
    const float *dx;
    // [B, P]: the other way round from `kept` of `Assemble`, which token each patch is; 0, the
    // class token, for one that is none. Null is all in order. The host makes it along with
    // `kept`, so that nothing is searched for here, and no gradient cleared beforehand.
    const uint32_t *token_of;
    // [B * P, D]: that of the embedding; zero for a patch that is no token.
    __nv_bfloat16 *d_embedding;
    // [pieces, D]: sums of its columns before it is rounded, for the bias.
    float *partials;
    uint32_t batch;
    uint32_t patches;
    uint32_t tokens;
    uint32_t width;
    uint32_t rows_per_piece;
};
static_assert(sizeof(Disassemble) == 56, "the mirror in Rust expects this size");

namespace {

constexpr uint32_t EMBED_THREADS = 256;

__device__ __forceinline__ float as_float(float value) { return value; }
__device__ __forceinline__ float as_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename Value> __device__ __forceinline__ void patchify(const Patchify &args) {
    const uint64_t vector = static_cast<uint64_t>(blockIdx.x) * EMBED_THREADS + threadIdx.x;
    const uint32_t vectors = args.columns / 8, across = args.width / args.patch;
    const uint32_t patches = args.height / args.patch * across;
    const uint32_t values = 3 * args.patch * args.patch;
    const uint64_t row = vector / vectors;
    if (row >= static_cast<uint64_t>(args.batch) * patches) {
        return;
    }
    const uint32_t first = static_cast<uint32_t>(vector % vectors) * 8;
    const Value *const pixels = static_cast<const Value *>(args.pixels);
    Eight result = {};
    if (args.in_patches != 0) {
#pragma unroll
        for (uint32_t j = 0; j < 8; ++j) {
            if (first + j < values) {
                result.at[j] = as_float(pixels[row * values + first + j]);
            }
        }
    } else {
        const uint64_t image = row / patches;
        const uint32_t number = static_cast<uint32_t>(row % patches), top = number / across * args.patch, left = number % across * args.patch;
        uint32_t line = first / args.patch, x = first % args.patch;
#pragma unroll
        for (uint32_t j = 0; j < 8; ++j) {
            if (first + j < values) {
                const uint32_t channel = line / args.patch, y = line % args.patch;
                const uint64_t row_of_pixels = (image * 3 + channel) * args.height + top + y;
                result.at[j] = as_float(pixels[row_of_pixels * args.width + left + x]);
            }
            if (++x == args.patch) {
                x = 0;
                ++line;
            }
        }
    }
    store(args.patches + vector * 8, result);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(EMBED_THREADS) patchify_f32(const __grid_constant__ Patchify args) { patchify<float>(args); }

extern "C" __global__ void __launch_bounds__(EMBED_THREADS) patchify_bf16(const __grid_constant__ Patchify args) { patchify<__nv_bfloat16>(args); }

extern "C" __global__ void __launch_bounds__(EMBED_THREADS) assemble(const __grid_constant__ Assemble args) {
    const uint64_t vector = static_cast<uint64_t>(blockIdx.x) * EMBED_THREADS + threadIdx.x;
    const uint32_t vectors = args.width / 4;
    const uint64_t row = vector / vectors, image = row / args.tokens;
    if (image >= args.batch) {
        return;
    }
    const uint32_t column = static_cast<uint32_t>(vector % vectors) * 4, token = static_cast<uint32_t>(row % args.tokens);
    const float *from = args.class_token;
    if (token != 0) {
        const uint32_t patch = args.kept == nullptr ? token - 1 : args.kept[row - image - 1];
        from = args.embedding + (image * args.patches + patch) * args.width;
    }
    Four values;
    load(values, from + column);
    store(args.x + vector * 4, values);
}

extern "C" __global__ void __launch_bounds__(COLUMN_THREADS) disassemble(const __grid_constant__ Disassemble args) {
    const uint32_t rows = args.batch * args.patches, first = blockIdx.y * args.rows_per_piece, end = min(first + args.rows_per_piece, rows);
    const uint32_t column = lane_column();
    Eight sums = {};
    if (column < args.width) {
        for (uint32_t row = first + threadIdx.x / WARP; row < end; row += COLUMN_WARPS) {
            const uint32_t image = row / args.patches;
            const bool in_order = args.token_of == nullptr;
            const uint32_t token = in_order ? row % args.patches + 1 : args.token_of[row];
            Eight values = {};
            if (token != 0 && token < args.tokens) {
                load(values, args.dx + (static_cast<size_t>(image) * args.tokens + token) * args.width + column);
            }
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                sums.at[j] += values.at[j];
            }
            store(args.d_embedding + static_cast<size_t>(row) * args.width + column, values);
        }
    }
    write_partial_columns(sums, args.width, args.partials + static_cast<size_t>(blockIdx.y) * args.width);
}

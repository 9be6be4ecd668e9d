// What a classifier takes of an image: the mean of the final LayerNorm over its last tokens (all patches, or the last token alone), and the gradient of
// that back to the stream. Only one row an image is written, and read again. B images of T tokens, of which the last M are taken, D values, a multiple of 4
// and at most 1024.
//
// Launch geometry: 256 threads; `pool_forward` one block for each image, `pool_backward` one for each piece of `rows_per_piece` of the B * T rows. No
// dynamic shared memory. `add_partials` adds the pieces.
#include "rows.cuh"

// Mirrored in Rust.
struct Pool {
    // [B * T, D]: the stream behind the last block.
    const float *x;
    // [D]: of the final norm.
    const float *weight;
    const float *bias;
    // [B, D]: the mean over the image's last `taken` rows of the norm.
    float *pooled;
    uint32_t tokens;
    // M.
    uint32_t taken;
    uint32_t width;
    float eps;
};
static_assert(sizeof(Pool) == 48, "the mirror in Rust expects this size");

// Mirrored in Rust.
struct PoolBackward {
    // As in `Pool`.
    const float *x;
    const float *weight;
    // [B, D]: the gradient of `pooled`.
    const float *d_pooled;
    // Of the last addition to the stream, as in `NormBackward`: [D], LayerScale, and [B], drop path; null is 1.
    const float *scale;
    const float *factors;
    // [B * T, D]: gradient of the stream, and as `layer_norm_backward` writes them its bf16 copies. Zero for a token that is not taken.
    float *dx;
    __nv_bfloat16 *dx_bf16;
    __nv_bfloat16 *scaled_dx;
    // [pieces, 3, D]: gradients of weight and bias, and column sums of the image's factor times dx.
    float *partials;
    // B * T.
    uint32_t rows;
    uint32_t tokens;
    uint32_t taken;
    uint32_t width;
    uint32_t rows_per_piece;
    float eps;
};
static_assert(sizeof(PoolBackward) == 96, "the mirror in Rust expects this size");

namespace {

// Warps that share a row, as in the backward of the norm.
constexpr int POOL_SHARE = 2;

}  // namespace

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 2) pool_forward(const __grid_constant__ Pool args) {
    const uint32_t width = args.width, end = (blockIdx.x + 1) * args.tokens;
    RowSums<POOL_SHARE> row_sums;
    Row<POOL_SHARE> sums;
    clear(sums);
    for (uint32_t some = end - args.taken; some < end; some += ROW_WARPS / POOL_SHARE) {
        const uint32_t row = some + warp_number() / POOL_SHARE;
        // All warps take part in each row's sums; a row that is not there is nothing.
        Row<POOL_SHARE> x;
        clear(x);
        if (row < end) {
            load_row(x, args.x + static_cast<size_t>(row) * width, width);
        }
        const Statistics of_row = statistics(row_sums, x, width, args.eps);
        if (row >= end) {
            continue;
        }
        for_vectors<POOL_SHARE>(width, [&](int i, uint32_t) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                sums.vector[i].at[j] += (x.vector[i].at[j] - of_row.mean) * of_row.rstd;
            }
        });
    }
    // The norm's weight and bias are the same for all rows; the bias goes with the first warps' share.
    const float part = 1.0f / args.taken;
    for_vectors<POOL_SHARE>(width, [&](int i, uint32_t column) {
        Four weight, bias;
        load(weight, args.weight + column);
        load(bias, args.bias + column);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float mean = sums.vector[i].at[j] * part * weight.at[j];
            sums.vector[i].at[j] = warp_number() < POOL_SHARE ? mean + bias.at[j] : mean;
        }
    });
    write_partial_row(sums, width, args.pooled + static_cast<size_t>(blockIdx.x) * width);
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 2) pool_backward(const __grid_constant__ PoolBackward args) {
    const uint32_t width = args.width, first = blockIdx.x * args.rows_per_piece, end = min(first + args.rows_per_piece, args.rows);
    const float part = 1.0f / args.taken;
    RowSums<POOL_SHARE> row_sums;
    Row<POOL_SHARE> d_weight, d_bias, sums;
    clear(d_weight);
    clear(d_bias);
    clear(sums);
    for (uint32_t some = first; some < end; some += ROW_WARPS / POOL_SHARE) {
        const uint32_t row = some + warp_number() / POOL_SHARE, image = row / args.tokens;
        const size_t start = static_cast<size_t>(row) * width;
        const bool exists = row < end, taken = exists && row % args.tokens >= args.tokens - args.taken;
        // Of a token that is not taken all is zero, and its gradient stays so.
        Row<POOL_SHARE> normed, grad;
        clear(normed);
        clear(grad);
        if (taken) {
            load_row(normed, args.x + start, width);
            load_row(grad, args.d_pooled + static_cast<size_t>(image) * width, width);
        }
        const Statistics of_row = statistics(row_sums, normed, width, args.eps);
        // Without a row there is no deviation, which an epsilon of zero would not hide.
        const float rstd = taken ? of_row.rstd : 0.0f;
        for_vectors<POOL_SHARE>(width, [&](int i, uint32_t column) {
            Four weight;
            load(weight, args.weight + column);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                float &n = normed.vector[i].at[j], &g = grad.vector[i].at[j];
                n = (n - of_row.mean) * rstd;
                g *= part;
                d_weight.vector[i].at[j] += g * n;
                d_bias.vector[i].at[j] += g;
                g *= weight.at[j];
            }
        });
        norm_gradient(row_sums, grad, normed, rstd, width);
        if (!exists) {
            continue;
        }
        const float factor = factor_of_row(args.factors, forget(row), args.tokens);
        for_vectors<POOL_SHARE>(width, [&](int i, uint32_t column) {
            const Four &dx = grad.vector[i];
            // The gradient of what was added.
            Four added;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                added.at[j] = factor * dx.at[j];
                sums.vector[i].at[j] += added.at[j];
            }
            store(args.dx + start + column, dx);
            store_copies(added, args.scale, args.dx_bf16, args.scaled_dx, start, column);
        });
    }
    float *const partials = args.partials + static_cast<size_t>(blockIdx.x) * 3 * width;
    write_partial_row(d_weight, width, partials);
    write_partial_row(d_bias, width, partials + width);
    write_partial_row(sums, width, partials + 2 * width);
}

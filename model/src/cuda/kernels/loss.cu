// The end of the forward pass and the start of the backward one, in one kernel: final LayerNorm, cosine of each prediction with the embedding that comes
// next, the gradient of minus their mean back to the stream, and the copy diagnostics. Nothing flows back to the embeddings as targets.
// B images of T tokens, of which the first P predict (T is P or P + 1), D values, a multiple of 4 and at most 1024.
//
// Launch geometry: 256 threads, one block for each piece of `rows_per_piece` of the B * T rows. No dynamic shared memory. `add_partials` adds the pieces.
#include "rows.cuh"

// Mirrored in Rust.
struct Loss {
    // [B * T, D]: the stream behind the last block.
    const float *x;
    // [D]: of the final norm.
    const float *weight;
    const float *bias;
    // [B * P, D]: the embedding. Row t of an image is what token t predicts.
    const float *next;
    // [B * T, D]: the first stream, what token t is.
    const float *current;
    // Of the last addition to the stream, as in `NormBackward`: [D], LayerScale, and [B], drop
    // path; null is 1.
    const float *scale;
    const float *factors;
    // [B * T, D]: gradient of the stream, and as `layer_norm_backward` writes them its bf16 copies. Zero for a token that predicts nothing.
    float *dx;
    __nv_bfloat16 *dx_bf16;
    __nv_bfloat16 *scaled_dx;
    // [pieces, 3, D]: gradients of weight and bias, and column sums of the image's factor times dx.
    float *partials;
    // [pieces, 3]: sums of the cosines with what comes next and with what is there, and how often the second is greater.
    float *report;
    // B * T.
    uint32_t rows;
    uint32_t patches;
    uint32_t tokens;
    uint32_t width;
    uint32_t rows_per_piece;
    float eps;
    // The gradient of the loss by one cosine: minus the share of this batch over B * P.
    float factor;
};
static_assert(sizeof(Loss) == 128, "the mirror in Rust expects this size");

namespace {

// Shorter vectors are divided by this, as in torch.nn.functional.normalize.
constexpr float LEAST_LENGTH = 1e-12f;

constexpr int NUM_REPORTED = 3;

// Warps that share a row, as in the backward of the norm.
constexpr int LOSS_SHARE = 2;

}  // namespace

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 2) cosine_loss(const __grid_constant__ Loss args) {
    __shared__ float of_warp[NUM_REPORTED][ROW_WARPS];
    const uint32_t width = args.width, first = blockIdx.x * args.rows_per_piece, end = min(first + args.rows_per_piece, args.rows);
    RowSums<LOSS_SHARE> row_sums;
    Row<LOSS_SHARE> d_weight, d_bias, sums;
    clear(d_weight);
    clear(d_bias);
    clear(sums);
    // The same in every lane.
    float reported[NUM_REPORTED] = {};
    for (uint32_t some = first; some < end; some += ROW_WARPS / LOSS_SHARE) {
        const uint32_t row = some + warp_number() / LOSS_SHARE, image = row / args.tokens, token = row % args.tokens;
        const size_t start = static_cast<size_t>(row) * width;
        const bool exists = row < end, predicts = exists && token < args.patches;
        // Of a token that predicts nothing all is zero, and its gradient stays so.
        Row<LOSS_SHARE> normed, grad;
        clear(normed);
        clear(grad);
        if (predicts) {
            load_row(normed, args.x + start, width);
            load_row(grad, args.next + (static_cast<size_t>(image) * args.patches + token) * width, width);
        }
        const Statistics of_row = statistics(row_sums, normed, width, args.eps);
        // Without a row there is no deviation, which an epsilon of zero would not hide.
        const float rstd = predicts ? of_row.rstd : 0.0f;
        enum { P_P, P_Z, Z_Z, P_C, C_C, PRODUCTS };
        float products[PRODUCTS] = {};
        for_vectors<LOSS_SHARE>(width, [&](int i, uint32_t column) {
            Four weight, bias, c = {};
            load(weight, args.weight + column);
            load(bias, args.bias + column);
            if (predicts) {
                load(c, args.current + start + column);
            }
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                float &n = normed.vector[i].at[j];
                n = (n - of_row.mean) * rstd;
                const float p = n * weight.at[j] + bias.at[j], z = grad.vector[i].at[j];
                products[P_P] += p * p;
                products[P_Z] += p * z;
                products[Z_Z] += z * z;
                products[P_C] += p * c.at[j];
                products[C_C] += c.at[j] * c.at[j];
            }
        });
        add_over_row(row_sums, products);
        const float p_length = sqrtf(products[P_P]);
        const float per_p = 1.0f / fmaxf(p_length, LEAST_LENGTH), per_z = 1.0f / fmaxf(sqrtf(products[Z_Z]), LEAST_LENGTH);
        const float per_c = 1.0f / fmaxf(sqrtf(products[C_C]), LEAST_LENGTH);
        const float next = products[P_Z] * per_p * per_z, current = products[P_C] * per_p * per_c;
        reported[0] += next;
        reported[1] += current;
        reported[2] += current > next ? 1.0f : 0.0f;
        // d cos / d p = (z / |z| - cos * p / |p|) / |p|; below the least length p is divided by a constant.
        const float along = p_length > LEAST_LENGTH ? next * per_p : 0.0f;
        for_vectors<LOSS_SHARE>(width, [&](int i, uint32_t column) {
            Four weight, bias;
            load(weight, args.weight + column);
            load(bias, args.bias + column);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float n = normed.vector[i].at[j], p = n * weight.at[j] + bias.at[j];
                float &g = grad.vector[i].at[j];
                g = predicts ? args.factor * per_p * (g * per_z - along * p) : 0.0f;
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
        for_vectors<LOSS_SHARE>(width, [&](int i, uint32_t column) {
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
    if (lane_number() == 0) {
#pragma unroll
        for (int quantity = 0; quantity < NUM_REPORTED; ++quantity) {
            of_warp[quantity][warp_number()] = reported[quantity];
        }
    }
    __syncthreads();
    if (threadIdx.x < NUM_REPORTED) {
        float sum = 0.0f;
        // One warp of each row.
        for (uint32_t warp = 0; warp < ROW_WARPS; warp += LOSS_SHARE) {
            sum += of_warp[threadIdx.x][warp];
        }
        args.report[blockIdx.x * NUM_REPORTED + threadIdx.x] = sum;
    }
}

// LayerNorm over rows of the residual stream: forward, alone or after the addition of a block's output; backward, which also writes what the next products
// read; and the second stage of every sum over rows. The stream and its gradient are f32, what products read and write is bf16.
// N rows of D values, D a multiple of 4 and at most 1024. The promises are in `tests/promises/engine_kernels.rs`.
//
// Launch geometry: `layer_norm_forward`, `residual_norm_forward` 256 threads, ceil(N / 8) blocks; `layer_norm_backward` 256 threads, one block for each
// piece of `rows_per_piece` rows; `add_partials` (32, 32) threads, ceil(sums / 32) blocks. No dynamic shared memory.
#include "rows.cuh"

// Mirrored in Rust, as all structs of arguments: pointers first, then numbers, no padding but at the end.
struct NormForward {
    // [N, D]: the stream, and (`residual_norm_forward` only) what the block adds to it.
    const float *x;
    const __nv_bfloat16 *y;
    // [D]: LayerScale; null is 1.
    const float *scale;
    // [images]: what else y is multiplied by, one factor for the `tokens` rows of an image (drop
    // path: 0, or one over the probability to stay); null is 1.
    const float *factors;
    // [N, D]: x + factor * scale * y. May be x itself.
    float *x_out;
    // [D]. Without a weight there is no norm: only `x_out` is written.
    const float *weight;
    const float *bias;
    // [N, D], and [N] each.
    __nv_bfloat16 *h;
    float *mean;
    float *rstd;
    uint32_t rows;
    uint32_t width;
    // Rows of an image; read only if there are factors.
    uint32_t tokens;
    float eps;
};
static_assert(sizeof(NormForward) == 96, "the mirror in Rust expects this size");

struct NormBackward {
    // [N, D]: the gradient of the norm's output, the norm's input, and [N] each its statistics.
    const __nv_bfloat16 *dh;
    const float *x;
    const float *mean;
    const float *rstd;
    // [D].
    const float *weight;
    // Of what was added to the stream last before the norm. [D]: its LayerScale; null is 1, or
    // nothing was added.
    const float *scale;
    // [images]: its factor, as in `NormForward`; null is 1.
    const float *factors;
    // [N, D]: the gradient of the stream, to which the norm's is added.
    float *dx;
    // [N, D]: factor times that sum, and scale times factor times that sum, for the products of
    // the block before; null is not written. Without a scale both would be the same, and the
    // second is not written.
    __nv_bfloat16 *dx_bf16;
    __nv_bfloat16 *scaled_dx;
    // [pieces, 3, D]: gradients of weight and bias, and column sums of factor times the new dx.
    float *partials;
    uint32_t rows;
    uint32_t width;
    uint32_t rows_per_piece;
    // Rows of an image; read only if there are factors.
    uint32_t tokens;
};
static_assert(sizeof(NormBackward) == 104, "the mirror in Rust expects this size");

// One sum over pieces goes to four places at most: out[j / width][j % width] += the sum over pieces of partials[piece * stride + j], j < outputs * width.
constexpr int MAX_OUTPUTS = 4;
struct AddPartials {
    const float *partials;
    // Null is left out.
    float *out[MAX_OUTPUTS];
    uint64_t stride;
    uint32_t pieces;
    uint32_t width;
    uint32_t outputs;
};
static_assert(sizeof(AddPartials) == 64, "the mirror in Rust expects this size");

namespace {

template <bool RESIDUAL> __device__ __forceinline__ void norm_forward(const NormForward &args) {
    const uint32_t row = blockIdx.x * ROW_WARPS + warp_number(), width = args.width;
    if (row >= args.rows) {
        return;
    }
    const size_t start = static_cast<size_t>(row) * width;
    Row<1> x;
    load_row(x, args.x + start, width);
    if (RESIDUAL) {
        // All of it before the first store, behind which a load would wait: what is stored may be what is loaded, for all the compiler knows.
        uint2 raw[Row<1>::VECTORS];
        for_vectors<1>(width, [&](int i, uint32_t column) { raw[i] = *reinterpret_cast<const uint2 *>(args.y + start + column); });
        const float factor = factor_of_row(args.factors, row, args.tokens);
        for_vectors<1>(width, [&](int i, uint32_t column) {
            Four y = {{low_half(raw[i].x), high_half(raw[i].x), low_half(raw[i].y), high_half(raw[i].y)}}, scale = {{1.0f, 1.0f, 1.0f, 1.0f}};
            if (args.scale != nullptr) {
                load(scale, args.scale + column);
            }
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                x.vector[i].at[j] += factor * scale.at[j] * y.at[j];
            }
            store(args.x_out + start + column, x.vector[i]);
        });
        if (args.weight == nullptr) {
            return;
        }
    }
    RowSums<1> sums;
    const Statistics of_row = statistics(sums, x, width, args.eps);
    for_vectors<1>(width, [&](int i, uint32_t column) {
        Four weight, bias, h;
        load(weight, args.weight + column);
        load(bias, args.bias + column);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            h.at[j] = (x.vector[i].at[j] - of_row.mean) * of_row.rstd * weight.at[j] + bias.at[j];
        }
        store(args.h + start + column, h);
    });
    if (lane_number() == 0) {
        args.mean[row] = of_row.mean;
        args.rstd[row] = of_row.rstd;
    }
}

// Warps that share a row in the backward: with its sums over rows, a whole one takes more registers than leave room for a second block.
constexpr int SHARE = 2;

// Pieces that `add_partials` adds at once.
constexpr uint32_t LINES = 32;

}  // namespace

extern "C" __global__ void __launch_bounds__(ROW_THREADS) layer_norm_forward(const __grid_constant__ NormForward args) { norm_forward<false>(args); }

extern "C" __global__ void __launch_bounds__(ROW_THREADS) residual_norm_forward(const __grid_constant__ NormForward args) { norm_forward<true>(args); }

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 2) layer_norm_backward(const __grid_constant__ NormBackward args) {
    const uint32_t width = args.width, first = blockIdx.x * args.rows_per_piece, end = min(first + args.rows_per_piece, args.rows);
    RowSums<SHARE> row_sums;
    Row<SHARE> d_weight, d_bias, sums;
    clear(d_weight);
    clear(d_bias);
    clear(sums);
    for (uint32_t some = first; some < end; some += ROW_WARPS / SHARE) {
        const uint32_t row = some + threadIdx.x / (SHARE * WARP);
        const bool exists = row < end;
        const size_t start = static_cast<size_t>(row) * width;
        // The input, normalised, the gradient by it, and that of the stream so far: all loads before the first store.
        Row<SHARE> normed, grad, dx;
        clear(normed);
        clear(grad);
        float mean = 0.0f, rstd = 0.0f;
        if (exists) {
            load_row(normed, args.x + start, width);
            load_row(grad, args.dh + start, width);
            load_row(dx, args.dx + start, width);
            mean = args.mean[row];
            rstd = args.rstd[row];
        }
        for_vectors<SHARE>(width, [&](int i, uint32_t column) {
            Four weight;
            load(weight, args.weight + column);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                float &n = normed.vector[i].at[j], &g = grad.vector[i].at[j];
                n = (n - mean) * rstd;
                d_weight.vector[i].at[j] += g * n;
                d_bias.vector[i].at[j] += g;
                g *= weight.at[j];
            }
        });
        norm_gradient(row_sums, grad, normed, rstd, width);
        if (!exists) {
            continue;
        }
        const uint32_t row_again = forget(row);
        const size_t start_again = static_cast<size_t>(row_again) * width;
        const float factor = factor_of_row(args.factors, row_again, args.tokens);
        for_vectors<SHARE>(width, [&](int i, uint32_t column) {
            // The gradient of what was added.
            Four added;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                float &value = dx.vector[i].at[j];
                value += grad.vector[i].at[j];
                added.at[j] = factor * value;
                sums.vector[i].at[j] += added.at[j];
            }
            store(args.dx + start_again + column, dx.vector[i]);
            store_copies(added, args.scale, args.dx_bf16, args.scaled_dx, start_again, column);
        });
    }
    float *const partials = args.partials + static_cast<size_t>(blockIdx.x) * 3 * width;
    write_partial_row(d_weight, width, partials);
    write_partial_row(d_bias, width, partials + width);
    write_partial_row(sums, width, partials + 2 * width);
}

extern "C" __global__ void __launch_bounds__(WARP *LINES) add_partials(const __grid_constant__ AddPartials args) {
    __shared__ float of_line[LINES][WARP];
    const uint32_t number = blockIdx.x * WARP + threadIdx.x;
    const bool exists = number < args.outputs * args.width;
    float sum = 0.0f;
    if (exists) {
#pragma unroll 4
        for (uint32_t piece = threadIdx.y; piece < args.pieces; piece += LINES) {
            sum += args.partials[piece * args.stride + number];
        }
    }
    of_line[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y != 0 || !exists) {
        return;
    }
    sum = 0.0f;
    for (uint32_t line = 0; line < LINES; ++line) {
        sum += of_line[line][threadIdx.x];
    }
    const uint32_t output = number / args.width;
    // Not an index: that would move the arguments to local memory.
    float *const out = output == 0 ? args.out[0] : output == 1 ? args.out[1] : output == 2 ? args.out[2] : args.out[3];
    if (out != nullptr) {
        out[number % args.width] += sum;
    }
}

// The kernels of the training step (`model/src/cuda/kernels`), compiled for the CPU, and C functions that launch them with the geometry that their files
// ask for. Built by build.rs, called by `engine_kernels.rs`. Also kernels that show what the shim does with a warp.
#include "cuda_cpu_shim.h"
#include "mma_emulation.h"

#include "../../../model/src/cuda/kernels/activation.cu"
#include "../../../model/src/cuda/kernels/attention.cu"
#include "../../../model/src/cuda/kernels/embed.cu"
#include "../../../model/src/cuda/kernels/loss.cu"
#include "../../../model/src/cuda/kernels/norm.cu"
#include "../../../model/src/cuda/kernels/optimizer.cu"

namespace {

using cuda_cpu_shim::launch;
using cuda_cpu_shim::ThreadOrder;

ThreadOrder thread_order(bool backward) { return backward ? ThreadOrder::backward : ThreadOrder::forward; }

uint32_t divide_up(uint64_t value, uint64_t by) { return static_cast<uint32_t>((value + by - 1) / by); }

// One warp: d (16 x 8) = a (16 x 16) * b (16 x 8), all row by row; b as it lies, or its transpose, is loaded through shared memory.
void multiply(const __nv_bfloat16 *a, const __nv_bfloat16 *b, float *d, bool transposed) {
    DYNAMIC_SHARED_MEMORY(__nv_bfloat16, shared);
    const uint32_t lane = threadIdx.x, g = lane / 4, t = lane % 4;
    // Rows of eight values: sixteen of b, or the two halves of each of its eight columns.
    for (uint32_t i = lane; i < 16 * 8; i += WARP) {
        const uint32_t row = i / 8, column = i % 8;
        shared[transposed ? (row / 8 * 8 + column) * 8 + row % 8 : i] = b[i];
    }
    __syncwarp();
    uint32_t left[4], right[4];
    for (uint32_t word = 0; word < 4; ++word) {
        std::memcpy(&left[word], a + (g + word % 2 * 8) * 16 + 2 * t + word / 2 * 8, sizeof left[word]);
    }
    // Two matrices would do; the others are the same ones again.
    (transposed ? load_matrices : load_matrices_transposed)(right, shared + lane % 16 * 8);
    float result[4] = {};
    mma_m16n8k16(result, left, right[0], right[1]);
    mma_m16n8k16(result, left, right[2], right[3]);
    for (uint32_t place = 0; place < 4; ++place) {
        d[(g + place / 2 * 8) * 8 + 2 * t + place % 2] = result[place] / 2;
    }
}

void shuffle_in_a_branch() {
    if (threadIdx.x < 40) {
        warp_sum(1.0f);
    }
}

}  // namespace

extern "C" {

void engine_shim_norm_forward(bool residual, const NormForward *args, bool backward) {
    launch(dim3(divide_up(args->rows, ROW_WARPS)), dim3(ROW_THREADS), 0, thread_order(backward),
           [=] { (residual ? residual_norm_forward : layer_norm_forward)(*args); });
}

void engine_shim_norm_backward(const NormBackward *args, bool backward) {
    launch(dim3(divide_up(args->rows, args->rows_per_piece)), dim3(ROW_THREADS), 0, thread_order(backward), [=] { layer_norm_backward(*args); });
}

void engine_shim_add_partials(const AddPartials *args, bool backward) {
    launch(dim3(divide_up(static_cast<uint64_t>(args->outputs) * args->width, WARP)), dim3(WARP, LINES), 0, thread_order(backward),
           [=] { add_partials(*args); });
}

void engine_shim_activation_forward(bool gated, const Activation *args, bool backward) {
    const uint64_t vectors = static_cast<uint64_t>(args->rows) * args->width / 8;
    launch(dim3(divide_up(vectors, COLUMN_THREADS)), dim3(COLUMN_THREADS), 0, thread_order(backward),
           [=] { (gated ? gated_activation_forward : activation_forward)(*args); });
}

void engine_shim_activation_backward(bool gated, const Activation *args, bool backward) {
    launch(dim3(divide_up(args->width, BLOCK_COLUMNS), divide_up(args->rows, args->rows_per_piece)), dim3(COLUMN_THREADS), 0, thread_order(backward),
           [=] { (gated ? gated_activation_backward : activation_backward)(*args); });
}

void engine_shim_patchify(bool bf16, const Patchify *args, bool backward) {
    const uint64_t across = args->side / args->patch, vectors = args->batch * across * across * args->columns / 8;
    launch(dim3(divide_up(vectors, EMBED_THREADS)), dim3(EMBED_THREADS), 0, thread_order(backward),
           [=] { (bf16 ? patchify_bf16 : patchify_f32)(*args); });
}

void engine_shim_assemble(const Assemble *args, bool backward) {
    const uint64_t vectors = static_cast<uint64_t>(args->batch) * args->tokens * args->width / 4;
    launch(dim3(divide_up(vectors, EMBED_THREADS)), dim3(EMBED_THREADS), 0, thread_order(backward), [=] { assemble(*args); });
}

void engine_shim_disassemble(const Disassemble *args, bool backward) {
    const uint32_t pieces = divide_up(static_cast<uint64_t>(args->batch) * args->patches, args->rows_per_piece);
    launch(dim3(divide_up(args->width, BLOCK_COLUMNS), pieces), dim3(COLUMN_THREADS), 0, thread_order(backward), [=] { disassemble(*args); });
}

void engine_shim_cosine_loss(const Loss *args, bool backward) {
    launch(dim3(divide_up(args->rows, args->rows_per_piece)), dim3(ROW_THREADS), 0, thread_order(backward), [=] { cosine_loss(*args); });
}

void engine_shim_layer_scale_finish(const LayerScale *args, uint32_t rows, bool backward) {
    launch(dim3(rows), dim3(STEP_THREADS), 0, thread_order(backward), [=] { layer_scale_finish(*args); });
}

void engine_shim_gradient_norm(const GradientNorm *args, bool backward) {
    launch(dim3(divide_up(args->len, NORM_PIECE)), dim3(STEP_THREADS), 0, thread_order(backward), [=] { norm_partials(*args); });
    launch(dim3(1), dim3(FINAL_THREADS), 0, thread_order(backward), [=] { norm_final(*args); });
}

void engine_shim_adamw_update(const AdamW *args, bool backward) {
    launch(dim3(divide_up(args->len, UPDATE_PIECE)), dim3(STEP_THREADS), 0, thread_order(backward), [=] { adamw_update(*args); });
}

void engine_shim_copy_to_bf16(const CopyToBf16 *args, bool backward) {
    launch(dim3(divide_up(args->len, UPDATE_PIECE)), dim3(STEP_THREADS), 0, thread_order(backward), [=] { copy_to_bf16(*args); });
}

void engine_shim_attention(bool gradient, const Attention *args, uint32_t batch, bool backward) {
    const size_t rows = divide_up(args->tokens, TILE_ROWS) * TILE_ROWS;
    const size_t shared_bytes = gradient ? 296 * rows + 14336 : 288 * rows;
    launch(dim3(args->heads, batch), dim3(ATTENTION_THREADS), shared_bytes, thread_order(backward),
           [=] { (gradient ? attention_backward : attention_forward)(*args); });
}

void engine_shim_multiply(const __nv_bfloat16 *a, const __nv_bfloat16 *b, float *d, bool transposed, bool backward) {
    launch(dim3(1), dim3(WARP), 16 * 8 * sizeof(__nv_bfloat16), thread_order(backward), [=] { multiply(a, b, d, transposed); });
}

void engine_shim_shuffle_in_a_branch() { launch(dim3(1), dim3(64), 0, ThreadOrder::forward, shuffle_in_a_branch); }

}  // extern "C"

#include "step_launch.h"

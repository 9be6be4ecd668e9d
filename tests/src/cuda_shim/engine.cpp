// The kernels of the training step (`model/src/cuda/kernels`), compiled for the CPU, and C functions that launch them. Built by build.rs, called by
// `engine_kernels.rs` and `emulated_device.rs`. Also kernels that show what the shim does with a warp.
#include "cuda_cpu_shim.h"
#include "mma_emulation.h"

#include "../../../model/src/cuda/kernels/activation.cu"
#include "../../../model/src/cuda/kernels/attention.cu"
#include "../../../model/src/cuda/kernels/embed.cu"
#include "../../../model/src/cuda/kernels/loss.cu"
#include "../../../model/src/cuda/kernels/norm.cu"
#include "../../../model/src/cuda/kernels/optimizer.cu"
#include "../../../model/src/cuda/kernels/pool.cu"

namespace {

using cuda_cpu_shim::launch;
using cuda_cpu_shim::ThreadOrder;

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

void engine_shim_multiply(const __nv_bfloat16 *a, const __nv_bfloat16 *b, float *d, bool transposed, uint64_t order) {
    launch(dim3(1), dim3(WARP), 16 * 8 * sizeof(__nv_bfloat16), ThreadOrder::of(order), [=] { multiply(a, b, d, transposed); });
}

void engine_shim_shuffle_in_a_branch() { launch(dim3(1), dim3(64), 0, ThreadOrder::forward, shuffle_in_a_branch); }

}  // extern "C"

#include "step_launch.h"

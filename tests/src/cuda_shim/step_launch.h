// The table of the training step's kernels, and a launch as the step asks for it (`model/src/cuda/mod.rs`): each kernel has one parameter, a struct.
// Included by engine.cpp.
#pragma once
#include "launch_by_name.h"

namespace {

const cuda_cpu_shim::NamedKernel STEP_KERNELS[] = {
    NAMED_KERNEL(layer_norm_forward),
    NAMED_KERNEL(residual_norm_forward),
    NAMED_KERNEL(layer_norm_backward),
    NAMED_KERNEL(add_partials),
    NAMED_KERNEL(activation_forward),
    NAMED_KERNEL(activation_backward),
    NAMED_KERNEL(gated_activation_forward),
    NAMED_KERNEL(gated_activation_backward),
    NAMED_KERNEL(patchify_f32),
    NAMED_KERNEL(patchify_bf16),
    NAMED_KERNEL(assemble),
    NAMED_KERNEL(disassemble),
    NAMED_KERNEL(attention_forward),
    NAMED_KERNEL(attention_backward),
    NAMED_KERNEL(cosine_loss),
    NAMED_KERNEL(pool_forward),
    NAMED_KERNEL(pool_backward),
    NAMED_KERNEL(layer_scale_finish),
    NAMED_KERNEL(norm_partials),
    NAMED_KERNEL(norm_final),
    NAMED_KERNEL(adamw_update),
    NAMED_KERNEL(copy_to_bf16),
    NAMED_KERNEL(add_values),
};
const cuda_cpu_shim::KernelTable STEP_TABLE(STEP_KERNELS);

}  // namespace

extern "C" bool engine_shim_launch(const char *kernel, const void *args, const uint32_t grid[3], const uint32_t block[3], uint32_t shared_bytes,
                                   uint64_t order) {
    void *const params[] = {const_cast<void *>(args)};
    const cuda_cpu_shim::NamedKernel *const named = cuda_cpu_shim::KernelTable::find(kernel);
    std::function<void()> bound;
    if (named == nullptr || named->num_params != 1 ||
        !cuda_cpu_shim::launch_by_name(kernel, bound, dim3(grid[0], grid[1], grid[2]), dim3(block[0], block[1], block[2]), shared_bytes, params,
                                       ThreadOrder::of(order))) {
        return false;
    }
    bound();
    return true;
}

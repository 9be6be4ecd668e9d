// Launches any kernel of the training step by its name, as the step asks for it (`model/src/kernel_step`). Included by engine.cpp.
#pragma once

extern "C" bool engine_shim_launch(const char *kernel, const void *args, const uint32_t grid[3], const uint32_t block[3], uint32_t shared_bytes,
                                   bool backward) {
#define NEPA_KERNEL(name, Arguments)                                                                                                                       \
    if (std::strcmp(kernel, #name) == 0) {                                                                                                                 \
        const Arguments own = *static_cast<const Arguments *>(args);                                                                                       \
        launch(dim3(grid[0], grid[1], grid[2]), dim3(block[0], block[1], block[2]), shared_bytes, thread_order(backward), [=] { name(own); });               \
        return true;                                                                                                                                       \
    }
    NEPA_KERNEL(layer_norm_forward, NormForward)
    NEPA_KERNEL(residual_norm_forward, NormForward)
    NEPA_KERNEL(layer_norm_backward, NormBackward)
    NEPA_KERNEL(add_partials, AddPartials)
    NEPA_KERNEL(activation_forward, Activation)
    NEPA_KERNEL(activation_backward, Activation)
    NEPA_KERNEL(gated_activation_forward, Activation)
    NEPA_KERNEL(gated_activation_backward, Activation)
    NEPA_KERNEL(patchify_f32, Patchify)
    NEPA_KERNEL(patchify_bf16, Patchify)
    NEPA_KERNEL(assemble, Assemble)
    NEPA_KERNEL(disassemble, Disassemble)
    NEPA_KERNEL(attention_forward, Attention)
    NEPA_KERNEL(attention_backward, Attention)
    NEPA_KERNEL(cosine_loss, Loss)
    NEPA_KERNEL(layer_scale_finish, LayerScale)
    NEPA_KERNEL(norm_partials, GradientNorm)
    NEPA_KERNEL(norm_final, GradientNorm)
    NEPA_KERNEL(adamw_update, AdamW)
    NEPA_KERNEL(copy_to_bf16, CopyToBf16)
#undef NEPA_KERNEL
    return false;
}

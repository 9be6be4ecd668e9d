// The MLP's activation: act(up), or act(gate) * up, and their backward, which also sums the columns of the gradient for the biases and can write the
// activation once more, so that a step need not keep it. N rows of M values (gated: 2 M, first all of up, then all of gate), M a multiple of 8; all in
// memory bf16, all in between f32.
//
// Launch geometry: `*_forward` 256 threads, ceil(N * M / 8 / 256) blocks; `*_backward` 256 threads, a grid of (ceil(M / 256), pieces), one row of blocks for
// each piece of `rows_per_piece` rows. No dynamic shared memory.
#include "columns.cuh"

// Mirrored in Rust.
struct Activation {
    // [N, M], gated [N, 2 M]: with biases.
    const __nv_bfloat16 *x;
    // [N, M]: the gradient of the result; backward only.
    const __nv_bfloat16 *grad;
    // [N, M]: the result. Backward: null is not written.
    __nv_bfloat16 *result;
    // Backward only, [N, M] or [N, 2 M]: the gradient of x. If not gated it may be `grad` itself.
    __nv_bfloat16 *dx;
    // Backward only, [pieces, M] or [pieces, 2 M]: sums of the columns of the gradient, before it is rounded.
    float *partials;
    uint32_t rows;
    // M.
    uint32_t width;
    uint32_t rows_per_piece;
    // ACTIVATION_GELU, _SILU or _RELU.
    uint32_t kind;
};
static_assert(sizeof(Activation) == 56, "the mirror in Rust expects this size");

constexpr uint32_t ACTIVATION_GELU = 0;
constexpr uint32_t ACTIVATION_SILU = 1;
constexpr uint32_t ACTIVATION_RELU = 2;

namespace {

struct Activated {
    float value, slope;
};

// What is not used is not computed. GELU is the one with erf: x times the normal distribution's share below x. That is made of the density, which the slope
// needs as well, by Abramowitz and Stegun 26.2.17, to 1e-7; `erff` takes more instructions than the memory takes time.
template <uint32_t KIND> __device__ __forceinline__ Activated activated(float x) {
    if (KIND == ACTIVATION_GELU) {
        const float density = 0.39894228f * exp2f(-0.72134752f * x * x);
        const float t = __fdividef(1.0f, 1.0f + 0.2316419f * fabsf(x));
        const float tail = density * t * (0.31938153f + t * (-0.356563782f + t * (1.781477937f + t * (-1.821255978f + t * 1.330274429f))));
        const float below = x < 0.0f ? tail : 1.0f - tail;
        return {x * below, below + x * density};
    }
    if (KIND == ACTIVATION_SILU) {
        const float sigmoid = __fdividef(1.0f, 1.0f + __expf(-x));
        return {x * sigmoid, sigmoid * (1.0f + x * (1.0f - sigmoid))};
    }
    return {fmaxf(x, 0.0f), x > 0.0f ? 1.0f : 0.0f};
}

template <uint32_t KIND, bool GATED> __device__ __forceinline__ void activation_forward_values(const Activation &args) {
    const size_t start = (static_cast<size_t>(blockIdx.x) * COLUMN_THREADS + threadIdx.x) * 8;
    if (start >= static_cast<size_t>(args.rows) * args.width) {
        return;
    }
    Eight result, up;
    if (GATED) {
        // The row's own start in x is as far again.
        const __nv_bfloat16 *const row = args.x + start + start / args.width * args.width;
        load(up, row);
        load(result, row + args.width);
    } else {
        load(result, args.x + start);
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        result.at[j] = activated<KIND>(result.at[j]).value * (GATED ? up.at[j] : 1.0f);
    }
    store(args.result + start, result);
}

template <uint32_t KIND, bool GATED> __device__ __forceinline__ void activation_backward_columns(const Activation &args) {
    constexpr uint32_t PARTS = GATED ? 2 : 1;
    const uint32_t width = args.width, first = blockIdx.y * args.rows_per_piece, end = min(first + args.rows_per_piece, args.rows);
    const uint32_t column = lane_column();
    Eight sums = {}, gate_sums = {};
    if (column < width) {
        for (uint32_t row = first + threadIdx.x / WARP; row < end; row += COLUMN_WARPS) {
            const size_t at = static_cast<size_t>(row) * width + column, wide = static_cast<size_t>(row) * PARTS * width + column;
            Eight grad, up, gate, result;
            load(grad, args.grad + at);
            load(up, args.x + wide);
            if (GATED) {
                load(gate, args.x + wide + width);
            }
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const Activated act = activated<KIND>(GATED ? gate.at[j] : up.at[j]);
                result.at[j] = GATED ? act.value * up.at[j] : act.value;
                if (GATED) {
                    gate.at[j] = grad.at[j] * up.at[j] * act.slope;
                    gate_sums.at[j] += gate.at[j];
                }
                up.at[j] = grad.at[j] * (GATED ? act.value : act.slope);
                sums.at[j] += up.at[j];
            }
            store(args.dx + wide, up);
            if (GATED) {
                store(args.dx + wide + width, gate);
            }
            if (args.result != nullptr) {
                store(args.result + at, result);
            }
        }
    }
    float *const partial = args.partials + static_cast<size_t>(blockIdx.y) * PARTS * width;
    write_partial_columns(sums, width, partial);
    if (GATED) {
        write_partial_columns(gate_sums, width, partial + width);
    }
}

template <bool GATED, bool BACKWARD> __device__ __forceinline__ void activation(const Activation &args) {
    // The same way for all threads.
    if (args.kind == ACTIVATION_GELU) {
        BACKWARD ? activation_backward_columns<ACTIVATION_GELU, GATED>(args) : activation_forward_values<ACTIVATION_GELU, GATED>(args);
    } else if (args.kind == ACTIVATION_SILU) {
        BACKWARD ? activation_backward_columns<ACTIVATION_SILU, GATED>(args) : activation_forward_values<ACTIVATION_SILU, GATED>(args);
    } else {
        BACKWARD ? activation_backward_columns<ACTIVATION_RELU, GATED>(args) : activation_forward_values<ACTIVATION_RELU, GATED>(args);
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(COLUMN_THREADS) activation_forward(const __grid_constant__ Activation args) {
    activation<false, false>(args);
}

extern "C" __global__ void __launch_bounds__(COLUMN_THREADS) activation_backward(const __grid_constant__ Activation args) {
    activation<false, true>(args);
}

extern "C" __global__ void __launch_bounds__(COLUMN_THREADS) gated_activation_forward(const __grid_constant__ Activation args) {
    activation<true, false>(args);
}

extern "C" __global__ void __launch_bounds__(COLUMN_THREADS) gated_activation_backward(const __grid_constant__ Activation args) {
    activation<true, true>(args);
}

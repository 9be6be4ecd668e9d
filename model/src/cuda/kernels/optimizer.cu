// The end of a step, over flat buffers in the order of `nepa_model::Weights`: the sum of two gradients, LayerScale's gradients, the global norm, and one
// pass for AdamW, the moving average and the bf16 copy of the weights. The arithmetic is that of `trainer/src/optimizer.rs`, element by element. The norm and the clipping stay on the
// device; where the norm is not finite nothing is updated, so that the caller may look at it later.
//
// Launch geometry: `layer_scale_finish` 256 threads, one block for each output row of the weight; `norm_partials` 256 threads, ceil(len / 16384) blocks;
// `norm_final` 1024 threads, one block; `adamw_update`, `copy_to_bf16` and `add_values` 256 threads, ceil(len / 1024) blocks. No dynamic shared memory.
#include "common.cuh"

// Mirrored in Rust. A linear layer from K to D values whose output LayerScale multiplies.
struct LayerScale {
    // [D, K]: the masters, and G = (gradient of the stream)^T (input of the layer), summed over the step; becomes the gradient of the weight.
    const float *weight;
    float *d_weight;
    // [D]: the same of the bias, where G is the column sums of the stream's gradient; null if there is none.
    const float *bias;
    float *d_bias;
    // [D]: LayerScale; its gradient is added.
    const float *scale;
    float *d_scale;
    // K, a multiple of 4.
    uint32_t columns;
};
static_assert(sizeof(LayerScale) == 56, "the mirror in Rust expects this size");

// Mirrored in Rust. What the norm of a step's gradient says.
struct NormResult {
    double norm;
    // To multiply gradients by: max_norm / (norm + 1e-6), but never more than 1.
    float clip;
    // 0 if nothing may be updated.
    uint32_t finite;
};
static_assert(sizeof(NormResult) == 16, "the mirror in Rust expects this size");

// Mirrored in Rust.
struct GradientNorm {
    // [len], and [ceil(len / 16384)].
    const float *gradient;
    double *partials;
    NormResult *result;
    // Infinite does not clip.
    double max_norm;
    uint64_t len;
};
static_assert(sizeof(GradientNorm) == 40, "the mirror in Rust expects this size");

// Mirrored in Rust. Consecutive weights with the same settings, of one update.
struct Segment {
    uint64_t start, end;
    // What a weight is multiplied by before its step (decoupled decay), and the size of the step.
    float keep, step_size;
    // Not 0 if weights and moments stay as they are.
    uint32_t frozen;
    uint32_t unused;
};
static_assert(sizeof(Segment) == 32, "the mirror in Rust expects this size");

// Mirrored in Rust.
struct AdamW {
    // [len] each.
    float *weights;
    const float *gradient;
    float *m;
    float *v;
    // [len]; null if no average is kept, and if there is no copy.
    float *average;
    __nv_bfloat16 *copy;
    // In order, without gaps, from 0 to len.
    const Segment *segments;
    const NormResult *norm;
    uint64_t len;
    // The root of 1 - beta2^step.
    float correction2;
    float beta1, rest1;
    float beta2, rest2;
    float eps;
    // Of the average; 0 and 1 in the first step, which makes a copy whatever the average holds.
    float decay, rest;
    uint32_t num_segments;
};
static_assert(sizeof(AdamW) == 112, "the mirror in Rust expects this size");

// Mirrored in Rust.
struct CopyToBf16 {
    // [len] each.
    const float *values;
    __nv_bfloat16 *copy;
    uint64_t len;
};
static_assert(sizeof(CopyToBf16) == 24, "the mirror in Rust expects this size");

// Mirrored in Rust.
struct AddValues {
    // [len] each; the second is added to the first.
    float *sums;
    const float *values;
    uint64_t len;
};
static_assert(sizeof(AddValues) == 24, "the mirror in Rust expects this size");

namespace {

constexpr uint32_t STEP_THREADS = 256;
constexpr uint32_t STEP_WARPS = STEP_THREADS / WARP;
// Values of one partial sum of the norm, and of a block of the update.
constexpr uint64_t NORM_PIECE = 16384;
constexpr uint64_t UPDATE_PIECE = 4 * STEP_THREADS;
constexpr uint32_t FINAL_THREADS = 1024;

// A value of each warp of the largest block. Not in the template below: the shim of the tests would not find it there.
__device__ __forceinline__ float *of_warps(float) {
    __shared__ float values[FINAL_THREADS / WARP];
    return values;
}
__device__ __forceinline__ double *of_warps(double) {
    __shared__ double values[FINAL_THREADS / WARP];
    return values;
}

// The sum over a block, in thread 0. All threads call it, once.
template <typename Value, uint32_t WARPS> __device__ __forceinline__ Value block_sum(Value value) {
    Value *const of_warp = of_warps(value);
    value = warp_sum(value);
    if (threadIdx.x % WARP == 0) {
        of_warp[threadIdx.x / WARP] = value;
    }
    __syncthreads();
    Value sum = 0;
    if (threadIdx.x == 0) {
        for (uint32_t warp = 0; warp < WARPS; ++warp) {
            sum += of_warp[warp];
        }
    }
    return sum;
}

// Up to four values from `start` on, of which there are `len`.
__device__ __forceinline__ Four load_some(const float *from, uint64_t start, uint64_t len) {
    Four values = {};
    if (start + 4 <= len) {
        load(values, from + start);
    } else {
        for (int j = 0; j < 4; ++j) {
            values.at[j] = start + j < len ? from[start + j] : 0.0f;
        }
    }
    return values;
}

__device__ __forceinline__ void store_one(float *to, float value) { *to = value; }
__device__ __forceinline__ void store_one(__nv_bfloat16 *to, float value) { *to = __float2bfloat16(value); }

template <typename Value> __device__ __forceinline__ void store_some(Value *to, const Four &values, uint64_t start, uint64_t len) {
    if (start + 4 <= len) {
        store(to + start, values);
    } else {
        for (int j = 0; j < 4 && start + j < len; ++j) {
            store_one(to + start + j, values.at[j]);
        }
    }
}

// The segment that holds an element.
__device__ __forceinline__ uint32_t find_segment(const Segment *segments, uint32_t num_segments, uint64_t element) {
    uint32_t low = 0, high = num_segments - 1;
    while (low < high) {
        const uint32_t middle = (low + high) / 2;
        if (segments[middle].end <= element) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(STEP_THREADS) layer_scale_finish(const __grid_constant__ LayerScale args) {
    const uint32_t row = blockIdx.x;
    const float scale = args.scale[row];
    const size_t start = static_cast<size_t>(row) * args.columns;
    float sum = 0.0f;
    for (uint32_t column = 4 * threadIdx.x; column < args.columns; column += 4 * STEP_THREADS) {
        Four weight, gradient;
        load(weight, args.weight + start + column);
        load(gradient, args.d_weight + start + column);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            sum += weight.at[j] * gradient.at[j];
            gradient.at[j] *= scale;
        }
        store(args.d_weight + start + column, gradient);
    }
    sum = block_sum<float, STEP_WARPS>(sum);
    if (threadIdx.x == 0) {
        if (args.bias != nullptr) {
            const float gradient = args.d_bias[row];
            sum += gradient * args.bias[row];
            args.d_bias[row] = scale * gradient;
        }
        args.d_scale[row] += sum;
    }
}

extern "C" __global__ void __launch_bounds__(STEP_THREADS) norm_partials(const __grid_constant__ GradientNorm args) {
    const uint64_t first = blockIdx.x * NORM_PIECE;
    double sum = 0.0;
#pragma unroll 4
    for (uint64_t start = 4 * threadIdx.x; start < NORM_PIECE; start += UPDATE_PIECE) {
        const Four values = load_some(args.gradient, first + start, args.len);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            sum += static_cast<double>(values.at[j]) * values.at[j];
        }
    }
    sum = block_sum<double, STEP_WARPS>(sum);
    if (threadIdx.x == 0) {
        args.partials[blockIdx.x] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(FINAL_THREADS) norm_final(const __grid_constant__ GradientNorm args) {
    const uint64_t pieces = (args.len + NORM_PIECE - 1) / NORM_PIECE;
    double sum = 0.0;
    for (uint64_t piece = threadIdx.x; piece < pieces; piece += FINAL_THREADS) {
        sum += args.partials[piece];
    }
    sum = block_sum<double, FINAL_THREADS / WARP>(sum);
    if (threadIdx.x == 0) {
        const double norm = sqrt(sum);
        args.result->norm = norm;
        args.result->clip = static_cast<float>(fmin(args.max_norm / (norm + 1e-6), 1.0));
        // False for a NaN as well.
        args.result->finite = norm < HUGE_VAL ? 1 : 0;
    }
}

extern "C" __global__ void __launch_bounds__(STEP_THREADS) adamw_update(const __grid_constant__ AdamW args) {
    const uint64_t first = blockIdx.x * UPDATE_PIECE, start = first + 4 * threadIdx.x;
    if (start >= args.len || args.norm->finite == 0) {
        return;
    }
    const float clip = args.norm->clip;
    Four weight = load_some(args.weights, start, args.len), gradient = load_some(args.gradient, start, args.len);
    Four m = load_some(args.m, start, args.len), v = load_some(args.v, start, args.len), average = {};
    if (args.average != nullptr && args.decay != 0.0f) {
        average = load_some(args.average, start, args.len);
    }
    // All threads of the block search for the same one, and then go on from there.
    uint32_t segment = find_segment(args.segments, args.num_segments, first);
    Segment own = {};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        if (start + j >= own.end && start + j < args.len) {
            while (start + j >= args.segments[segment].end) {
                ++segment;
            }
            own = args.segments[segment];
        }
        if (own.frozen == 0) {
            const float g = gradient.at[j] * clip;
            m.at[j] = args.beta1 * m.at[j] + args.rest1 * g;
            v.at[j] = args.beta2 * v.at[j] + args.rest2 * g * g;
            weight.at[j] = weight.at[j] * own.keep - own.step_size * m.at[j] / (sqrtf(v.at[j]) / args.correction2 + args.eps);
        }
        average.at[j] = args.decay * average.at[j] + args.rest * weight.at[j];
    }
    store_some(args.weights, weight, start, args.len);
    store_some(args.m, m, start, args.len);
    store_some(args.v, v, start, args.len);
    if (args.average != nullptr) {
        store_some(args.average, average, start, args.len);
    }
    if (args.copy != nullptr) {
        store_some(args.copy, weight, start, args.len);
    }
}

extern "C" __global__ void __launch_bounds__(STEP_THREADS) copy_to_bf16(const __grid_constant__ CopyToBf16 args) {
    const uint64_t start = blockIdx.x * UPDATE_PIECE + 4 * threadIdx.x;
    if (start < args.len) {
        store_some(args.copy, load_some(args.values, start, args.len), start, args.len);
    }
}

extern "C" __global__ void __launch_bounds__(STEP_THREADS) add_values(const __grid_constant__ AddValues args) {
    const uint64_t start = blockIdx.x * UPDATE_PIECE + 4 * threadIdx.x;
    if (start < args.len) {
        Four sum = load_some(args.sums, start, args.len);
        const Four value = load_some(args.values, start, args.len);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            sum.at[j] += value.at[j];
        }
        store_some(args.sums, sum, start, args.len);
    }
}

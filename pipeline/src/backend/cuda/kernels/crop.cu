// Decoded images to the normalised samples of a batch: crop, antialiased resize, flip, normalise. `crop_*` takes images that were decoded on the
// device, `convert_*` takes crops that the CPU made. Each writes f32 or bf16, as planes ([3, S, S]) or as patches ([P, 3 * p * p]).
// The arithmetic is that of `render/resample.rs`, the turning of the image that of `image_decode/orientation.rs`; a promise in the package `tests`
// compares the two. Launched from `pipeline/src/cuda`; compiled by nvcc to PTX, and by an ordinary C++ compiler for tests without a GPU.
//
// Launch geometry: `crop_*` 16 x 16 threads, a grid of (ceil(S / 16), ceil(S / 16), number of jobs); `convert_*` 256 threads, a grid of
// ceil(S * S / 256) blocks, one crop a launch. No dynamic shared memory.
#include <cstddef>
#include <cstdint>
#ifndef CUDA_CPU_SHIM
#include <cuda_bf16.h>
#endif

// One crop. `pipeline/src/cuda` mirrors it with #[repr(C)]: every field has a size of its own and the compiler adds no padding.
// The caller has checked that the rectangle lies inside the image, as the CPU path does.
struct CropJob {
    // The image as stored: 8-bit RGB, interleaved, row by row; on the device.
    const uint8_t *image;
    // From the start of a row to that of the next.
    uint64_t pitch_bytes;
    // 3 * S * S values of the kernel's type, on the device.
    void *slot;
    // The rectangle in pixels of the UPRIGHT image. Double as in `CropRect`, because both paths must round its ends to the same pixels, and because a
    // float knows the place in an image of 10000 pixels to a thousandth only.
    double rect_x, rect_y, rect_width, rect_height;
    // Of the stored image.
    uint32_t image_width, image_height;
    // Three bits: ORIENTATION_SWAPS_AXES, _MIRRORS_X, _MIRRORS_Y.
    uint32_t orientation;
    // 1 mirrors the upright crop left to right.
    uint32_t flip;
    // FILTER_BILINEAR or FILTER_BICUBIC.
    uint32_t filter;
    // EDGE_RECT or EDGE_IMAGE.
    uint32_t edge;
};
static_assert(sizeof(CropJob) == 80, "the mirror in Rust expects this size");

// The crops of one launch, by value: kernel arguments lie in constant memory, so that a launch needs no copy of its own. Mirrored in Rust.
constexpr int MAX_JOBS = 32;
struct CropJobs {
    CropJob job[MAX_JOBS];
};

// value * factor + offset is the normalised value of an 8-bit one: factor = 1 / (255 * std), offset = -mean / std. Mirrored in Rust as well.
struct Normalization {
    float factor[3];
    float offset[3];
};
static_assert(sizeof(Normalization) == 24, "the mirror in Rust expects this size");

// As `Orientation` has them: first the axes may be swapped, then each STORED axis may run against the upright one that it belongs to.
constexpr uint32_t ORIENTATION_SWAPS_AXES = 1;
constexpr uint32_t ORIENTATION_MIRRORS_X = 2;
constexpr uint32_t ORIENTATION_MIRRORS_Y = 4;

// Triangle, and cubic convolution with a = -0.5.
constexpr uint32_t FILTER_BILINEAR = 0;
constexpr uint32_t FILTER_BICUBIC = 1;

// Whether the filter reads only pixels that the rectangle touches, or all of the image.
constexpr uint32_t EDGE_RECT = 0;
constexpr uint32_t EDGE_IMAGE = 1;

namespace {

// A block renders TILE x TILE output pixels, a thread each.
constexpr int TILE = 16;
constexpr int THREADS = TILE * TILE;
// The first pass filters along one axis, for LINES lines at a time and over TAPS taps at a time, so that shared memory does not grow with the scale.
constexpr int TAPS = 32;
constexpr int LINES = 32;
// Threads that sum the weights of one position of one axis.
constexpr int LANES = THREADS / (2 * TILE);
// Elements of the first pass that one thread computes at a time.
constexpr int ELEMENTS = LINES * TILE / THREADS;

// An axis of the stored image: 0 is x, 1 is y.
struct Axis {
    // Start of the rectangle, and pixels of the image an output pixel.
    double start, scale;
    // Reach of the filter on both sides in pixels of the image; a filter that shrinks is stretched by the scale.
    double radius;
    float inverse_stretch;
    // Pixels that may be read: low up to and without high.
    int low, high;
    // No position reads more pixels than these.
    int most_taps;
    // First output pixel of the tile along the axis, and whether the output runs against it.
    int output_start;
    bool reversed;
};

// What the threads of a block share.
struct Tile {
    Axis axes[2];
    // The axis that is filtered first.
    int first_axis;
    // By axis and output pixel along it: where the filter's centre lies, the pixels it reads (begin up to and without end), the sum of its weights.
    double center[2][TILE];
    int begin[2][TILE];
    int end[2][TILE];
    float partial_sum[2][TILE][LANES];
    float weight_sum[2][TILE];
    // The weights in use, of the first pass and of the second. The odd pitch spreads rows over the memory banks.
    float tap_weight[TILE][TAPS + 1];
    float line_weight[TILE][LINES + 1];
    // The image after the first pass.
    float halfway[3][LINES][TILE + 1];
};

__device__ float filter_weight(uint32_t filter, float x) {
    x = fabsf(x);
    if (filter == FILTER_BILINEAR) {
        return fmaxf(1.0f - x, 0.0f);
    }
    if (x < 1.0f) {
        return (1.5f * x - 2.5f) * x * x + 1.0f;
    }
    return x < 2.0f ? ((x - 5.0f) * x + 8.0f) * x * -0.5f + 2.0f : 0.0f;
}

// The weight of a pixel for an output pixel, before the sum of all is made 1.
__device__ float raw_weight(const Tile &tile, uint32_t filter, int axis, int position, int pixel) {
    // The subtraction needs doubles, the rest does not.
    const double distance = pixel + 0.5 - tile.center[axis][position];
    return filter_weight(filter, static_cast<float>(distance) * tile.axes[axis].inverse_stretch);
}

__device__ float weight(const Tile &tile, uint32_t filter, int axis, int position, int pixel) {
    if (pixel < tile.begin[axis][position] || pixel >= tile.end[axis][position]) {
        return 0.0f;
    }
    return raw_weight(tile, filter, axis, position, pixel) / tile.weight_sum[axis][position];
}

// Whether output x (and not y) runs along the axis of the stored image.
__device__ bool belongs_to_output_x(const CropJob &job, int axis) {
    return (axis == 0) != ((job.orientation & ORIENTATION_SWAPS_AXES) != 0);
}

__device__ Axis stored_axis(const CropJob &job, int axis, int side) {
    const bool along_x = belongs_to_output_x(job, axis);
    const double limit = axis == 0 ? job.image_width : job.image_height;
    const double length = along_x ? job.rect_width : job.rect_height;
    const bool mirrored = (job.orientation & (axis == 0 ? ORIENTATION_MIRRORS_X : ORIENTATION_MIRRORS_Y)) != 0;
    Axis result;
    result.start = along_x ? job.rect_x : job.rect_y;
    if (mirrored) {
        result.start = fmax(limit - result.start - length, 0.0);
    }
    result.scale = length / side;
    const double stretch = fmax(result.scale, 1.0);
    result.radius = (job.filter == FILTER_BICUBIC ? 2.0 : 1.0) * stretch;
    result.inverse_stretch = static_cast<float>(1.0 / stretch);
    double low = 0.0, high = limit;
    if (job.edge == EDGE_RECT) {
        low = fmin(fmax(floor(result.start), 0.0), limit - 1.0);
        high = fmax(fmin(ceil(result.start + length), limit), low + 1.0);
    }
    result.low = static_cast<int>(low);
    result.high = static_cast<int>(high);
    result.most_taps = static_cast<int>(fmin(2.0 * ceil(result.radius) + 1.0, high - low));
    result.output_start = static_cast<int>(along_x ? blockIdx.x : blockIdx.y) * TILE;
    result.reversed = mirrored != (along_x && job.flip != 0);
    return result;
}

// Pillow 13's choice, as `rows_come_first` in `render/resample.rs` makes it: whether the pass along a stored row comes first.
__device__ bool rows_come_first(const CropJob &job, int side) {
    const bool swaps = (job.orientation & ORIENTATION_SWAPS_AXES) != 0;
    double width = job.rect_width, height = job.rect_height;
    if (job.edge == EDGE_IMAGE) {
        width = swaps ? job.image_height : job.image_width;
        height = swaps ? job.image_width : job.image_height;
    }
    return (height <= side || height - side <= 2.0 * (width - side)) != swaps;
}

// Where each position of each axis reads, and the sum of its weights. All threads of the block call it; the sums need one more barrier before use.
__device__ void prepare_tile(Tile &tile, const CropJob &job, int side, int thread) {
    if (thread < 2) {
        tile.axes[thread] = stored_axis(job, thread, side);
    }
    if (thread == 0) {
        tile.first_axis = rows_come_first(job, side) ? 0 : 1;
    }
    __syncthreads();
    const int axis = thread / (TILE * LANES), position = thread / LANES % TILE, lane = thread % LANES;
    if (lane == 0) {
        const Axis &along = tile.axes[axis];
        const int output = along.output_start + position;
        int begin = 0, end = 0;
        if (output < side) {
            const double center = along.start + ((along.reversed ? side - 1 - output : output) + 0.5) * along.scale;
            // Limited as doubles: an integer would overflow if the rectangle were not what it should be, and read anywhere.
            const double low = along.low, high = along.high;
            begin = static_cast<int>(fmin(fmax(floor(center - along.radius), low), high - 1.0));
            end = static_cast<int>(fmax(fmin(ceil(center + along.radius), high), begin + 1.0));
            tile.center[axis][position] = center;
        }
        tile.begin[axis][position] = begin;
        tile.end[axis][position] = end;
    }
    __syncthreads();
    float sum = 0.0f;
    for (int pixel = tile.begin[axis][position] + lane; pixel < tile.end[axis][position]; pixel += LANES) {
        sum += raw_weight(tile, job.filter, axis, position, pixel);
    }
    tile.partial_sum[axis][position][lane] = sum;
    __syncthreads();
    if (lane == 0) {
        sum = 0.0f;
        for (int i = 0; i < LANES; ++i) {
            sum += tile.partial_sum[axis][position][i];
        }
        tile.weight_sum[axis][position] = sum;
    }
}

// The nearest 8-bit value, halves up, as the CPU path rounds after each of its passes.
__device__ float round_to_8_bits(float value) {
    return fminf(fmaxf(floorf(value + 0.5f), 0.0f), 255.0f);
}

__device__ void store(float *target, float value) { *target = value; }
__device__ void store(__nv_bfloat16 *target, float value) { *target = __float2bfloat16(value); }

// Writes an 8-bit value, normalised, to its place in a slot: [3, S, S], or patches row by row, each (channel, row, column).
template <typename Value, bool PATCHES>
__device__ void store_normalized(Value *slot, int channel, int x, int y, int side, int patch, const Normalization &normalization, float value) {
    size_t index;
    if (PATCHES) {
        const size_t number = static_cast<size_t>(y / patch) * (side / patch) + x / patch;
        index = ((number * 3 + channel) * patch + y % patch) * patch + x % patch;
    } else {
        index = (static_cast<size_t>(channel) * side + y) * side + x;
    }
    // Written as one fused operation so that no compiler decides whether it is.
    store(slot + index, fmaf(value, normalization.factor[channel], normalization.offset[channel]));
}

// Not in the template below: there the CPU shim could not make it new for each block.
__device__ __forceinline__ Tile &tile_of_block() {
    __shared__ Tile tile;
    return tile;
}

// One output tile of one job, in two passes with 8 bits between them. Rounding there (and before normalising) is what Pillow does; leaving it out would
// be more precise and agree less.
template <typename Value, bool PATCHES>
__device__ void crop_tile(const CropJob &job, int side, int patch, const Normalization &normalization) {
    Tile &tile = tile_of_block();
    const int thread = threadIdx.y * TILE + threadIdx.x;
    prepare_tile(tile, job, side, thread);

    const int first = tile.first_axis, second = 1 - first;
    const size_t tap_stride = first == 0 ? 3 : job.pitch_bytes;
    const size_t line_stride = first == 0 ? job.pitch_bytes : 3;
    const int most_taps = tile.axes[first].most_taps;
    // The tile's positions lie in order, one way or the other, so its outermost ones say which lines it reads.
    const int last = min(TILE, side - tile.axes[second].output_start) - 1;
    const int lines_begin = min(tile.begin[second][0], tile.begin[second][last]);
    const int lines_end = max(tile.end[second][0], tile.end[second][last]);
    const bool first_along_x = belongs_to_output_x(job, first);
    const int tap_position = first_along_x ? threadIdx.x : threadIdx.y;
    const int line_position = first_along_x ? threadIdx.y : threadIdx.x;

    float result[3] = {0.0f, 0.0f, 0.0f};
    for (int line_start = lines_begin; line_start < lines_end; line_start += LINES) {
        const int num_lines = min(LINES, lines_end - line_start);
        float sum[ELEMENTS][3] = {};
        for (int tap_start = 0; tap_start < most_taps; tap_start += TAPS) {
            __syncthreads();
            if (tap_start == 0) {
                for (int i = thread; i < TILE * LINES; i += THREADS) {
                    tile.line_weight[i / LINES][i % LINES] = weight(tile, job.filter, second, i / LINES, line_start + i % LINES);
                }
            }
            // One set of taps serves all lines, if it is the only one.
            if (line_start == lines_begin || most_taps > TAPS) {
                for (int i = thread; i < TILE * TAPS; i += THREADS) {
                    const int pixel = tile.begin[first][i / TAPS] + tap_start + i % TAPS;
                    tile.tap_weight[i / TAPS][i % TAPS] = weight(tile, job.filter, first, i / TAPS, pixel);
                }
            }
            __syncthreads();
#pragma unroll
            for (int element = 0; element < ELEMENTS; ++element) {
                // Neighbouring threads read neighbouring pixels of a row, whichever axis comes first.
                const int i = element * THREADS + thread;
                const int position = first == 0 ? i % TILE : i / LINES;
                const int line = first == 0 ? i / TILE : i % LINES;
                const int begin = tile.begin[first][position] + tap_start;
                const int num_taps = line < num_lines ? min(tile.end[first][position] - begin, TAPS) : 0;
                const uint8_t *pixel = job.image + (line_start + line) * line_stride + begin * tap_stride;
                for (int tap = 0; tap < num_taps; ++tap, pixel += tap_stride) {
                    const float tap_weight = tile.tap_weight[position][tap];
                    sum[element][0] += tap_weight * pixel[0];
                    sum[element][1] += tap_weight * pixel[1];
                    sum[element][2] += tap_weight * pixel[2];
                }
            }
        }
#pragma unroll
        for (int element = 0; element < ELEMENTS; ++element) {
            const int i = element * THREADS + thread;
            const int position = first == 0 ? i % TILE : i / LINES;
            const int line = first == 0 ? i / TILE : i % LINES;
            for (int channel = 0; channel < 3; ++channel) {
                tile.halfway[channel][line][position] = round_to_8_bits(sum[element][channel]);
            }
        }
        __syncthreads();
        const int begin = max(tile.begin[second][line_position] - line_start, 0);
        const int end = min(tile.end[second][line_position] - line_start, num_lines);
        for (int line = begin; line < end; ++line) {
            const float line_weight = tile.line_weight[line_position][line];
            for (int channel = 0; channel < 3; ++channel) {
                result[channel] += line_weight * tile.halfway[channel][line][tap_position];
            }
        }
    }

    const int x = blockIdx.x * TILE + threadIdx.x, y = blockIdx.y * TILE + threadIdx.y;
    if (x < side && y < side) {
        for (int channel = 0; channel < 3; ++channel) {
            store_normalized<Value, PATCHES>(static_cast<Value *>(job.slot), channel, x, y, side, patch, normalization,
                                             round_to_8_bits(result[channel]));
        }
    }
}

// One crop of [S, S, 3] that needs only normalising; a thread a pixel.
template <typename Value, bool PATCHES>
__device__ void convert_pixel(const uint8_t *crop, void *slot, int side, int patch, const Normalization &normalization) {
    const unsigned pixel = blockIdx.x * THREADS + threadIdx.x;
    const unsigned num_pixels = static_cast<unsigned>(side) * side;
    if (pixel >= num_pixels) {
        return;
    }
    const uint8_t *source = crop + static_cast<size_t>(pixel) * 3;
    for (int channel = 0; channel < 3; ++channel) {
        store_normalized<Value, PATCHES>(static_cast<Value *>(slot), channel, pixel % side, pixel / side, side, patch, normalization, source[channel]);
    }
}

}  // namespace

// `side` is S. `patch` is p, which must divide S; the kernels that write planes do not look at it.

extern "C" __global__ void __launch_bounds__(THREADS) crop_f32_nchw(const __grid_constant__ CropJobs jobs, uint32_t side, uint32_t patch, Normalization normalization) {
    crop_tile<float, false>(jobs.job[blockIdx.z], side, patch, normalization);
}

extern "C" __global__ void __launch_bounds__(THREADS) crop_bf16_nchw(const __grid_constant__ CropJobs jobs, uint32_t side, uint32_t patch, Normalization normalization) {
    crop_tile<__nv_bfloat16, false>(jobs.job[blockIdx.z], side, patch, normalization);
}

extern "C" __global__ void __launch_bounds__(THREADS) crop_f32_patches(const __grid_constant__ CropJobs jobs, uint32_t side, uint32_t patch, Normalization normalization) {
    crop_tile<float, true>(jobs.job[blockIdx.z], side, patch, normalization);
}

extern "C" __global__ void __launch_bounds__(THREADS) crop_bf16_patches(const __grid_constant__ CropJobs jobs, uint32_t side, uint32_t patch, Normalization normalization) {
    crop_tile<__nv_bfloat16, true>(jobs.job[blockIdx.z], side, patch, normalization);
}

// `crop` is [S, S, 3], already flipped.

extern "C" __global__ void __launch_bounds__(THREADS)
    convert_f32_nchw(const uint8_t *crop, void *slot, uint32_t side, uint32_t patch, Normalization normalization) {
    convert_pixel<float, false>(crop, slot, side, patch, normalization);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    convert_bf16_nchw(const uint8_t *crop, void *slot, uint32_t side, uint32_t patch, Normalization normalization) {
    convert_pixel<__nv_bfloat16, false>(crop, slot, side, patch, normalization);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    convert_f32_patches(const uint8_t *crop, void *slot, uint32_t side, uint32_t patch, Normalization normalization) {
    convert_pixel<float, true>(crop, slot, side, patch, normalization);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    convert_bf16_patches(const uint8_t *crop, void *slot, uint32_t side, uint32_t patch, Normalization normalization) {
    convert_pixel<__nv_bfloat16, true>(crop, slot, side, patch, normalization);
}

// The kernels of `pipeline/src/backend/cuda/kernels`, compiled for the CPU, and C functions that launch them as the pipeline does on a GPU. Built by build.rs,
// called by `kernels.rs`; also the memory for images, whose ends are guarded, and a kernel with a mistake, which the shim must notice.
#include "launch_by_name.h"

#include <algorithm>

#include <sys/mman.h>
#include <unistd.h>

#include "../../../pipeline/src/backend/cuda/kernels/crop.cu"

namespace {

using cuda_cpu_shim::launch;
using cuda_cpu_shim::ThreadOrder;

// By type (f32, bf16) and layout (nchw, patches).
constexpr decltype(&crop_f32_nchw) CROP[2][2] = {{crop_f32_nchw, crop_f32_patches}, {crop_bf16_nchw, crop_bf16_patches}};
constexpr decltype(&convert_f32_nchw) CONVERT[2][2] = {{convert_f32_nchw, convert_f32_patches}, {convert_bf16_nchw, convert_bf16_patches}};

const cuda_cpu_shim::NamedKernel CROP_KERNELS[] = {
    NAMED_KERNEL(crop_f32_nchw),    NAMED_KERNEL(crop_bf16_nchw),    NAMED_KERNEL(crop_f32_patches),    NAMED_KERNEL(crop_bf16_patches),
    NAMED_KERNEL(convert_f32_nchw), NAMED_KERNEL(convert_bf16_nchw), NAMED_KERNEL(convert_f32_patches), NAMED_KERNEL(convert_bf16_patches),
};
const cuda_cpu_shim::KernelTable CROP_TABLE(CROP_KERNELS);

uint32_t divide_up(uint32_t value, uint32_t by) { return (value + by - 1) / by; }

size_t round_to_pages(size_t bytes) {
    const size_t page = sysconf(_SC_PAGESIZE);
    return (bytes + page - 1) / page * page;
}

void barrier_in_a_branch() {
    if (threadIdx.x < 7) {
        __syncthreads();
    }
}

// Reverses the numbers of a block through dynamic shared memory; without the barrier the result would depend on the order of threads.
void reverse(const uint32_t *source, uint32_t *target, bool with_barrier) {
    DYNAMIC_SHARED_MEMORY(uint32_t, numbers);
    const unsigned base = blockIdx.x * blockDim.x;
    numbers[threadIdx.x] = source[base + threadIdx.x];
    if (with_barrier) {
        __syncthreads();
    }
    target[base + threadIdx.x] = numbers[blockDim.x - 1 - threadIdx.x];
}

// Shows what a block finds in static shared memory, and leaves something there.
void look_into_shared(uint32_t *found) {
    __shared__ uint32_t number;
    if (threadIdx.x == 0) {
        found[blockIdx.x] = number;
        number = blockIdx.x;
    }
}

}  // namespace

extern "C" {

void cuda_shim_crop(bool bf16, bool patches, const CropJob *jobs, uint32_t num_jobs, uint32_t side, uint32_t patch, const Normalization *normalization,
                    uint64_t order) {
    const uint32_t tiles = divide_up(side, TILE);
    for (uint32_t first = 0; first < num_jobs; first += MAX_JOBS) {
        const uint32_t count = std::min<uint32_t>(num_jobs - first, MAX_JOBS);
        CropJobs some{};
        std::copy_n(jobs + first, count, some.job);
        launch(dim3(tiles, tiles, count), dim3(TILE, TILE), 0, ThreadOrder::of(order),
               [&] { CROP[bf16][patches](some, side, patch, *normalization); });
    }
}

void cuda_shim_convert(bool bf16, bool patches, const uint8_t *crops, void *const *slots, uint32_t num_crops, uint32_t side, uint32_t patch,
                       const Normalization *normalization, uint64_t order) {
    for (uint32_t i = 0; i < num_crops; ++i) {
        const uint8_t *crop = crops + static_cast<size_t>(3) * side * side * i;
        launch(dim3(divide_up(side * side, THREADS)), dim3(THREADS), 0, ThreadOrder::of(order),
               [=] { CONVERT[bf16][patches](crop, slots[i], side, patch, *normalization); });
    }
}

void cuda_shim_barrier_in_a_branch() {
    launch(dim3(1), dim3(32), 0, ThreadOrder::forward, barrier_in_a_branch);
}

void cuda_shim_reverse(const uint32_t *source, uint32_t *target, uint32_t num_blocks, uint32_t num_threads, bool with_barrier, uint64_t order) {
    launch(dim3(num_blocks), dim3(num_threads), num_threads * sizeof(uint32_t), ThreadOrder::of(order),
           [=] { reverse(source, target, with_barrier); });
}

bool cuda_shim_knows(const char *kernel) { return cuda_cpu_shim::KernelTable::find(kernel) != nullptr; }

void cuda_shim_look_into_shared(uint32_t *found, uint32_t num_blocks) {
    launch(dim3(num_blocks), dim3(32), 0, ThreadOrder::forward, [=] { look_into_shared(found); });
}

// `bytes` bytes between two pages that nobody may touch: the memory ends where the second begins, or starts where the first ends. Null if there is none.
uint8_t *cuda_shim_guarded_memory(size_t bytes, bool at_end) {
    const size_t page = sysconf(_SC_PAGESIZE), inner = round_to_pages(bytes);
    void *const outer = mmap(nullptr, inner + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (outer == MAP_FAILED) {
        return nullptr;
    }
    uint8_t *const start = static_cast<uint8_t *>(outer) + page;
    if (mprotect(start, inner, PROT_READ | PROT_WRITE) != 0) {
        munmap(outer, inner + 2 * page);
        return nullptr;
    }
    return at_end ? start + inner - bytes : start;
}

void cuda_shim_free_guarded_memory(uint8_t *memory, size_t bytes, bool at_end) {
    const size_t page = sysconf(_SC_PAGESIZE), inner = round_to_pages(bytes);
    munmap((at_end ? memory + bytes - inner : memory) - page, inner + 2 * page);
}

}  // extern "C"

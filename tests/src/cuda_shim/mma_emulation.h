// The instructions of `model/src/cuda/kernels/mma.cuh` on the CPU: the lanes of a warp show each other their fragments. Sums are exact but for one rounding
// to f32 a product of matrices; a GPU rounds a little more often.
#pragma once
#include "cuda_cpu_shim.h"

#include <cstddef>

namespace cuda_cpu_shim {

struct Fragments {
    uint32_t a[4], b[2];
};

inline float half_of(uint32_t word, unsigned half) { return __uint_as_float(half == 0 ? word << 16 : word & 0xffff0000u); }

inline const uint16_t *row_of_matrix(unsigned matrix, unsigned row) {
    const uint16_t *const shown = Launch::current->shown<const uint16_t *>(8 * matrix + row);
    if (reinterpret_cast<uintptr_t>(shown) % 16 != 0) {
        std::fprintf(stderr, "cuda_cpu_shim: row %u of matrix %u is not aligned\n", row, matrix);
        std::abort();
    }
    return shown;
}

}  // namespace cuda_cpu_shim

inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    using namespace cuda_cpu_shim;
    Launch &launch = *Launch::current;
    launch.show(__LINE__, Fragments{{a[0], a[1], a[2], a[3]}, {b0, b1}});
    const unsigned group = launch.lane() / 4, thread = launch.lane() % 4;
    for (unsigned place = 0; place < 4; ++place) {
        const unsigned row = group + place / 2 * 8, column = 2 * thread + place % 2;
        double sum = d[place];
        for (unsigned k = 0; k < 16; ++k) {
            // A row lies in the four lanes of its group, a column of the right operand likewise.
            const uint32_t left = launch.shown_part<uint32_t>(row % 8 * 4 + k % 8 / 2, offsetof(Fragments, a) + 4 * (row / 8 + k / 8 * 2));
            const uint32_t right = launch.shown_part<uint32_t>(column * 4 + k % 8 / 2, offsetof(Fragments, b) + 4 * (k / 8));
            sum += static_cast<double>(half_of(left, k % 2)) * half_of(right, k % 2);
        }
        d[place] = static_cast<float>(sum);
    }
}

inline void load_matrices(uint32_t (&to)[4], const __nv_bfloat16 *row) {
    using namespace cuda_cpu_shim;
    Launch &launch = *Launch::current;
    launch.show(__LINE__, row);
    for (unsigned matrix = 0; matrix < 4; ++matrix) {
        std::memcpy(&to[matrix], row_of_matrix(matrix, launch.lane() / 4) + launch.lane() % 4 * 2, sizeof to[matrix]);
    }
}

inline void load_matrices_transposed(uint32_t (&to)[4], const __nv_bfloat16 *row) {
    using namespace cuda_cpu_shim;
    Launch &launch = *Launch::current;
    launch.show(__LINE__, row);
    for (unsigned matrix = 0; matrix < 4; ++matrix) {
        const unsigned first = launch.lane() % 4 * 2, column = launch.lane() / 4;
        to[matrix] = row_of_matrix(matrix, first)[column] | static_cast<uint32_t>(row_of_matrix(matrix, first + 1)[column]) << 16;
    }
}

// A GPU's are a little less exact.
inline float fast_exp2(float value) { return std::exp2(value); }
inline float fast_rsqrt(float value) { return 1.0f / std::sqrt(value); }

// Lets an ordinary C++17 compiler compile and RUN the CUDA kernels on the CPU, without any header of NVIDIA's, so that tests need no GPU. Only what our
// kernels use is here. It is no model of a GPU's speed, and not of its races: the threads of a block run one at a time.
//
// Every CUDA thread of a block is a fiber, and a block's fibers form a ring. One runs until it reaches a barrier or returns; then the next one runs up to
// the same barrier, and so on. What only a warp must reach together (shuffles, `__syncwarp`, the products of mma.h) is a barrier of a smaller ring, its 32
// threads: a warp runs from one barrier of the block to the next before the following warp does. A fiber that does something else than the first one did in
// that round is a kernel's bug: the program says so and aborts. Blocks run one after another. Forgotten barriers show as wrong results when the rings also
// run backwards (`ThreadOrder`).
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#define CUDA_CPU_SHIM 1

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
// Blocks of one launch follow each other, so one copy per host thread is enough.
#define __shared__ static thread_local

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// The built-in variables of a kernel, set before a fiber goes on.
inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_cpu_shim {

enum class ThreadOrder { forward, backward };

// What a fiber stops at: a line of the source that holds a barrier, or its end.
constexpr int RETURNED = -1;

// Who must reach a barrier together.
enum class Scope { warp, block };

struct Stop {
    int line;
    Scope scope;
};

constexpr unsigned WARP_SIZE = 32;
// The most that a thread shows to its warp at once.
constexpr size_t EXCHANGED_BYTES = 32;

constexpr size_t STACK_BYTES = 64 << 10;
constexpr size_t GUARD_BYTES = 64;
constexpr unsigned char GUARD = 0xa5;
// Shared memory holds anything at the start of a block on a GPU; as floats, these bytes are NaN.
constexpr unsigned char UNSET = 0xff;

inline bool untouched(const unsigned char *guard) {
    return std::all_of(guard, guard + GUARD_BYTES, [](unsigned char byte) { return byte == GUARD; });
}

struct Fiber {
    ucontext_t context;
    dim3 index;
    // Its number in the block, and how often it has shown something to its warp.
    unsigned linear = 0, num_exchanges = 0;
    // By turns, so that a thread can show the next value while others still read this one.
    unsigned char exchanged[2][EXCHANGED_BYTES];
    std::unique_ptr<unsigned char[]> stack;
};

class Launch {
  public:
    Launch(dim3 grid, dim3 block, size_t shared_bytes, ThreadOrder order)
        : grid(grid), block(block), shared_bytes(shared_bytes), fibers(block.x * block.y * block.z), shared(shared_bytes + GUARD_BYTES) {
        if (fibers.empty() || fibers.size() > 1024) {
            fail("a block of %zu threads, but a GPU takes 1 to 1024", fibers.size());
        }
        for (unsigned i = 0; i < fibers.size(); ++i) {
            const unsigned linear = order == ThreadOrder::forward ? i : static_cast<unsigned>(fibers.size()) - 1 - i;
            fibers[i].index = dim3(linear % block.x, linear / block.x % block.y, linear / block.x / block.y);
            fibers[i].linear = linear;
            if (i == 0 || linear / WARP_SIZE != fibers[i - 1].linear / WARP_SIZE) {
                warps.push_back({i, i});
            }
            warps.back().end = i + 1;
        }
    }

    // Runs `body` once for every thread of every block.
    template <typename Body> void run(Body body) {
        if (grid.x == 0 || grid.y == 0 || grid.z == 0) {
            fail("an empty grid; a GPU refuses it, too");
        }
        Launch *const outer = current;
        current = this;
        call_body = [](void *body) { (*static_cast<Body *>(body))(); };
        this->body = &body;
        for (Fiber &fiber : fibers) {
            fiber.stack.reset(new unsigned char[STACK_BYTES]);
            std::memset(fiber.stack.get(), GUARD, GUARD_BYTES);
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.get();
            fiber.context.uc_stack.ss_size = STACK_BYTES;
            fiber.context.uc_link = nullptr;
            makecontext(&fiber.context, run_fiber, 0);
        }
        gridDim = grid;
        blockDim = block;
        blockIdx = dim3(0, 0, 0);
        start_block();
        position = warp = 0;
        threadIdx = fibers[0].index;
        swapcontext(&host, &fibers[0].context);
        for (const Fiber &fiber : fibers) {
            if (!untouched(fiber.stack.get())) {
                fail("a thread needs more than %zu bytes of stack", STACK_BYTES);
            }
        }
        current = outer;
    }

    // A fiber has come to a barrier (or its end) and lets the others come there, too; returns when all have.
    void stop_at(int line, Scope scope) {
        Fiber &self = fibers[position];
        const Warp own = warps[warp];
        const Stop stop{line, scope};
        if (position == own.first) {
            warp_stop = stop;
            if (position == 0 && scope == Scope::block) {
                block_stop = stop;
            }
            if (scope == Scope::block) {
                check(stop, block_stop, fibers[0]);
            }
        }
        check(stop, warp_stop, fibers[own.first]);

        if (++position == own.end) {
            position = own.first;
            if (scope == Scope::block) {
                warp = (warp + 1) % warps.size();
                position = warps[warp].first;
                if (warp == 0 && line == RETURNED && !next_block()) {
                    swapcontext(&self.context, &host);
                }
            }
        }
        Fiber &next = fibers[position];
        threadIdx = next.index;
        if (&next != &self) {
            swapcontext(&self.context, &next.context);
        }
    }

    // Shows a value to the warp; returns when all its threads have. `shown` sees the values until the next exchange.
    template <typename Value> void show(int line, const Value &value) {
        static_assert(sizeof(Value) <= EXCHANGED_BYTES && std::is_trivially_copyable<Value>::value, "a few plain bytes");
        Fiber &self = fibers[position];
        std::memcpy(self.exchanged[++self.num_exchanges % 2], &value, sizeof value);
        stop_at(line, Scope::warp);
    }

    template <typename Value> Value shown(unsigned lane) const {
        const Warp own = warps[warp];
        if (own.end - own.first != WARP_SIZE || lane >= WARP_SIZE) {
            fail("lane %u is asked for in a warp of %u threads", lane, static_cast<unsigned>(own.end - own.first));
        }
        const bool ascends = fibers[own.first].linear < fibers[own.end - 1].linear;
        const Fiber &other = fibers[ascends ? own.first + lane : own.end - 1 - lane];
        Value value;
        std::memcpy(&value, other.exchanged[fibers[position].num_exchanges % 2], sizeof value);
        return value;
    }

    unsigned lane() const { return fibers[position].linear % WARP_SIZE; }

    void *dynamic_shared() { return shared.data(); }

    static inline thread_local Launch *current = nullptr;

  private:
    static void run_fiber() {
        for (;;) {
            current->call_body(current->body);
            current->stop_at(RETURNED, Scope::block);
        }
    }

    void start_block() {
        std::memset(shared.data(), UNSET, shared_bytes);
        std::memset(shared.data() + shared_bytes, GUARD, GUARD_BYTES);
    }

    // Whether there is another one.
    bool next_block() {
        if (!untouched(shared.data() + shared_bytes)) {
            fail("block (%u, %u, %u) wrote past its %zu bytes of dynamic shared memory", blockIdx.x, blockIdx.y, blockIdx.z, shared_bytes);
        }
        if (++blockIdx.x == grid.x) {
            blockIdx.x = 0;
            if (++blockIdx.y == grid.y) {
                blockIdx.y = 0;
                if (++blockIdx.z == grid.z) {
                    return false;
                }
            }
        }
        start_block();
        return true;
    }

    // Whether the running thread stops where the other one did.
    void check(Stop stop, Stop expected, const Fiber &other) {
        if (stop.line != expected.line || stop.scope != expected.scope) {
            fail("thread (%u, %u, %u) of block (%u, %u, %u) %s, but thread (%u, %u, %u) %s: not all threads reach the barrier", threadIdx.x, threadIdx.y,
                 threadIdx.z, blockIdx.x, blockIdx.y, blockIdx.z, describe(stop, 0), other.index.x, other.index.y, other.index.z, describe(expected, 1));
        }
    }

    static const char *describe(Stop stop, int buffer) {
        static thread_local char text[2][64];
        if (stop.line == RETURNED) {
            return "returned";
        }
        std::snprintf(text[buffer], sizeof text[buffer], stop.scope == Scope::warp ? "waits for its warp in line %d" : "waits at the barrier in line %d",
                      stop.line);
        return text[buffer];
    }

    template <typename... Values> [[noreturn]] static void fail(const char *format, Values... values) {
        std::fprintf(stderr, "cuda_cpu_shim: ");
        std::fprintf(stderr, format, values...);
        std::fprintf(stderr, "\n");
        std::abort();
    }

    dim3 grid, block;
    size_t shared_bytes;
    std::vector<Fiber> fibers;
    std::vector<unsigned char> shared;
    ucontext_t host;
    void *body = nullptr;
    void (*call_body)(void *) = nullptr;
    // Consecutive fibers: the first, and the one behind the last.
    struct Warp {
        size_t first, end;
    };
    std::vector<Warp> warps;
    // Of the fiber that runs, and of its warp.
    size_t position = 0, warp = 0;
    // Where the first fiber of this round stopped, of the warp and of the block.
    Stop warp_stop{RETURNED, Scope::block}, block_stop{RETURNED, Scope::block};
};

// What kernel<<<grid, block, shared_bytes>>>(arguments) does, and a wait for its end; `body` calls the kernel with its arguments.
template <typename Body> void launch(dim3 grid, dim3 block, size_t shared_bytes, ThreadOrder order, Body body) {
    Launch(grid, block, shared_bytes, order).run(body);
}

}  // namespace cuda_cpu_shim

#define __syncthreads() ::cuda_cpu_shim::Launch::current->stop_at(__LINE__, ::cuda_cpu_shim::Scope::block)
#define __syncwarp() ::cuda_cpu_shim::Launch::current->stop_at(__LINE__, ::cuda_cpu_shim::Scope::warp)

// Of all 32 lanes, as our kernels call it: the value of the lane whose number differs in those bits.
template <typename Value> Value shuffle_xor(int line, unsigned lanes, Value value, unsigned bits) {
    cuda_cpu_shim::Launch &launch = *cuda_cpu_shim::Launch::current;
    if (lanes != 0xffffffffu) {
        std::fprintf(stderr, "cuda_cpu_shim: a shuffle of some lanes, in line %d\n", line);
        std::abort();
    }
    launch.show(line, value);
    return launch.shown<Value>(launch.lane() ^ bits);
}
#define __shfl_xor_sync(lanes, value, bits) shuffle_xor(__LINE__, lanes, value, bits)

// Dynamic shared memory. `extern __shared__` has no meaning to a C++ compiler, so a kernel that uses it declares it through a macro of this name, which
// means `extern __shared__ type name[]` to nvcc.
#define DYNAMIC_SHARED_MEMORY(type, name) type *const name = static_cast<type *>(::cuda_cpu_shim::Launch::current->dynamic_shared())

// Vectors of 4, 8 and 16 bytes. They may lie over other types, and build.rs asks for code that ends the program where one is not aligned, as a GPU does.
struct __attribute__((may_alias, aligned(8))) float2 {
    float x, y;
};
struct __attribute__((may_alias, aligned(16))) float4 {
    float x, y, z, w;
};
struct __attribute__((may_alias, aligned(4))) uint1 {
    unsigned x;
};
struct __attribute__((may_alias, aligned(8))) uint2 {
    unsigned x, y;
};
struct __attribute__((may_alias, aligned(16))) uint4 {
    unsigned x, y, z, w;
};

// Fast and a little less exact on a GPU. (Macros, because the C library has functions of those names.)
#define __expf(value) std::exp(static_cast<float>(value))
#define __logf(value) std::log(static_cast<float>(value))
inline float __fdividef(float dividend, float divisor) { return dividend / divisor; }

inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// bfloat16: the upper half of a float.
struct __nv_bfloat16 {
    uint16_t bits;
};

// To the nearest, halves to the even one; a NaN becomes the one that CUDA makes of it.
inline __nv_bfloat16 __float2bfloat16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if (std::isnan(value)) {
        return {0x7fff};
    }
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline float __bfloat162float(__nv_bfloat16 value) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

struct __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__float2bfloat16(x), __float2bfloat16(y)}; }

// CUDA's functions are those of <cmath> in the global namespace, and these two.
using std::max;
using std::min;

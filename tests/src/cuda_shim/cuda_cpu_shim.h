// Lets an ordinary C++17 compiler compile and RUN the CUDA kernels on the CPU, without any header of NVIDIA's, so that tests need no GPU. Only what our
// kernels use is here. It is no model of a GPU's speed, and not of its races: the threads of a block run one at a time.
//
// Every CUDA thread of a block is a fiber, and a block's fibers form a ring. One runs until it reaches a barrier or returns; then the next one runs up to
// the same barrier, and so on. What only a warp must reach together (shuffles, `__syncwarp`, the products of mma.h) is a barrier of a smaller ring, its 32
// threads: a warp runs from one barrier of the block to the next before the following warp does. A fiber that does something else than the first one did in
// that round is a kernel's bug: the program says so and aborts. Blocks run one after another. Forgotten barriers show as wrong results when the rings also
// run backwards, or the warps between two barriers and the blocks in any order (`ThreadOrder`); shared memory is made NaN for each block.
#pragma once

#ifndef __x86_64__
#include <ucontext.h>
#endif
#ifdef __ELF__
#include <link.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

#define CUDA_CPU_SHIM 1

#define __global__
#define __device__
#define __host__
// Static, so that the shared memory of such a function is no common symbol of several files, which the section below cannot hold.
#define __forceinline__ static inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
// Blocks of one launch follow each other, so one copy per host thread is enough. All of it lies in one section, so that it can be found. GCC ignores the
// section in a function template, so kernels have none there.
#ifdef __ELF__
#define __shared__ static thread_local __attribute__((section("nepa_shared")))
#else
#define __shared__ static thread_local
#endif

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// The built-in variables of a kernel, set before a fiber goes on.
inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_cpu_shim {

// In which order threads run where a GPU promises none: by their number, the last one first, or the warps between two barriers of a block and the blocks of a
// launch at random.
struct ThreadOrder {
    enum Kind { FORWARD, BACKWARD, RANDOM } kind;
    uint64_t seed;

    static const ThreadOrder forward, backward;
    static constexpr ThreadOrder random(uint64_t seed) { return {RANDOM, seed}; }
    // From a number, as other languages say it: 0 and 1, and the highest bit with a seed.
    static constexpr ThreadOrder of(uint64_t code) {
        return code >> 63 != 0 ? random(code & ~(uint64_t{1} << 63)) : code == 0 ? ThreadOrder{FORWARD, 0} : ThreadOrder{BACKWARD, 0};
    }
};
inline constexpr ThreadOrder ThreadOrder::forward = {FORWARD, 0}, ThreadOrder::backward = {BACKWARD, 0};

// Numbers of a seed (splitmix64), the same on every machine.
class Random {
  public:
    explicit Random(uint64_t seed) : state(seed) {}
    uint64_t next() {
        uint64_t z = state += 0x9e3779b97f4a7c15;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
        z = (z ^ z >> 27) * 0x94d049bb133111eb;
        return z ^ z >> 31;
    }
    template <typename Value> void shuffle(std::vector<Value> &values) {
        for (size_t i = values.size(); i > 1; --i) {
            std::swap(values[i - 1], values[next() % i]);
        }
    }

  private:
    uint64_t state;
};

#ifdef __ELF__
// Set by the linker; not there where no kernel has static shared memory.
extern "C" __attribute__((weak, visibility("hidden"))) unsigned char __start_nepa_shared[], __stop_nepa_shared[];

// Written so that the calling thread has its copy: in a library that is opened later it is made at the first use.
__attribute__((visibility("hidden"))) inline thread_local volatile unsigned char thread_has_copy = 0;

// The calling thread's copy of the section: as far from the start of its thread-local memory as the section is from the start of what that is copied from.
inline std::pair<unsigned char *, size_t> static_shared() {
    using Found = std::pair<unsigned char *, size_t>;
    Found found{nullptr, 0};
    unsigned char *const start = __start_nepa_shared, *const stop = __stop_nepa_shared;
    if (start == nullptr) {
        return found;
    }
    thread_has_copy = 1;
    dl_iterate_phdr(
        [](dl_phdr_info *module, size_t, void *result) {
            for (int i = 0; i < module->dlpi_phnum; ++i) {
                const auto &part = module->dlpi_phdr[i];
                const uintptr_t from = module->dlpi_addr + part.p_vaddr, at = reinterpret_cast<uintptr_t>(__start_nepa_shared);
                if (part.p_type == PT_TLS && at >= from && at < from + part.p_memsz && module->dlpi_tls_data != nullptr) {
                    static_cast<Found *>(result)->first = static_cast<unsigned char *>(module->dlpi_tls_data) + (at - from);
                    return 1;
                }
            }
            return 0;
        },
        &found);
    if (found.first == nullptr) {
        std::fprintf(stderr, "cuda_cpu_shim: the static shared memory of this thread was not found\n");
        std::abort();
    }
    found.second = stop - start;
    return found;
}
#else
inline std::pair<unsigned char *, size_t> static_shared() { return {nullptr, 0}; }
#endif

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

// A stack that does not run, and a way to go on with it.
#ifdef __x86_64__
// What a function must keep lies on its stack, below it the place where it goes on. (swapcontext also sets the signal mask, with a call into the system.)
struct Context {
    void *stack_pointer;
};

__attribute__((naked, noinline)) inline void switch_stack(void **, void *) {
    asm("pushq %rbp\n\tpushq %rbx\n\tpushq %r12\n\tpushq %r13\n\tpushq %r14\n\tpushq %r15\n\t"
        "movq %rsp, (%rdi)\n\tmovq %rsi, %rsp\n\t"
        "popq %r15\n\tpopq %r14\n\tpopq %r13\n\tpopq %r12\n\tpopq %rbx\n\tpopq %rbp\n\tret");
}

// A compiler that saw through the call would find that it changes no variable, and keep in registers what other threads write meanwhile.
inline void (*volatile switch_stack_unseen)(void **, void *) = switch_stack;

inline void switch_context(Context &from, Context &to) { switch_stack_unseen(&from.stack_pointer, to.stack_pointer); }

inline void make_context(Context &context, unsigned char *stack, size_t bytes, void (*function)()) {
    // The function begins as if it had been called: a place to return to, which it never does, at a multiple of 16, less eight.
    void **top = reinterpret_cast<void **>((reinterpret_cast<uintptr_t>(stack) + bytes) / 16 * 16) - 1;
    *top = nullptr;
    *--top = reinterpret_cast<void *>(function);
    for (int i = 0; i < 6; ++i) {
        *--top = nullptr;
    }
    context.stack_pointer = top;
}
#else
struct Context {
    ucontext_t context;
};

inline void switch_context(Context &from, Context &to) { swapcontext(&from.context, &to.context); }

inline void make_context(Context &context, unsigned char *stack, size_t bytes, void (*function)()) {
    getcontext(&context.context);
    context.context.uc_stack.ss_sp = stack;
    context.context.uc_stack.ss_size = bytes;
    context.context.uc_link = nullptr;
    makecontext(&context.context, function, 0);
}
#endif

struct Fiber {
    Context context;
    dim3 index;
    // Its number in the block, and how often it has shown something to its warp.
    unsigned linear = 0, num_exchanges = 0;
    // By turns, so that a thread can show the next value while others still read this one.
    alignas(16) unsigned char exchanged[2][EXCHANGED_BYTES];
    unsigned char *stack = nullptr;
};

// Stacks of the calling thread, kept for its next launches.
inline std::vector<std::unique_ptr<unsigned char[]>> &stacks() {
    static thread_local std::vector<std::unique_ptr<unsigned char[]>> stacks;
    return stacks;
}

class Launch {
  public:
    Launch(dim3 grid, dim3 block, size_t shared_bytes, ThreadOrder order)
        : grid(grid), block(block), shared_bytes(shared_bytes), order(order), random(order.seed), fibers(block.x * block.y * block.z),
          shared(shared_bytes + GUARD_BYTES), own_static(static_shared()) {
        if (fibers.empty() || fibers.size() > 1024) {
            fail("a block of %zu threads, but a GPU takes 1 to 1024", fibers.size());
        }
        for (unsigned i = 0; i < fibers.size(); ++i) {
            const unsigned linear = order.kind == ThreadOrder::BACKWARD ? static_cast<unsigned>(fibers.size()) - 1 - i : i;
            fibers[i].index = dim3(linear % block.x, linear / block.x % block.y, linear / block.x / block.y);
            fibers[i].linear = linear;
            if (i == 0 || linear / WARP_SIZE != fibers[i - 1].linear / WARP_SIZE) {
                warps.push_back({i, i});
            }
            warps.back().end = i + 1;
        }
        turns.resize(warps.size());
        std::iota(turns.begin(), turns.end(), 0);
        blocks.resize(size_t{grid.x} * grid.y * grid.z);
        std::iota(blocks.begin(), blocks.end(), 0);
        if (order.kind == ThreadOrder::RANDOM) {
            random.shuffle(turns);
            random.shuffle(blocks);
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
        auto &own_stacks = stacks();
        while (own_stacks.size() < fibers.size()) {
            own_stacks.emplace_back(new unsigned char[STACK_BYTES]);
        }
        for (size_t i = 0; i < fibers.size(); ++i) {
            fibers[i].stack = own_stacks[i].get();
            std::memset(fibers[i].stack, GUARD, GUARD_BYTES);
            make_context(fibers[i].context, fibers[i].stack, STACK_BYTES, run_fiber);
        }
        gridDim = grid;
        blockDim = block;
        num_blocks = turn = 0;
        start_block();
        warp = turns[0];
        position = warps[warp].first;
        threadIdx = fibers[position].index;
        switch_context(host, fibers[position].context);
        for (const Fiber &fiber : fibers) {
            if (!untouched(fiber.stack)) {
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
            if (turn == 0 && scope == Scope::block) {
                block_stop = stop;
            }
            if (scope == Scope::block) {
                check(stop, block_stop, fibers[warps[turns[0]].first]);
            }
        }
        check(stop, warp_stop, fibers[own.first]);

        if (++position == own.end) {
            position = own.first;
            if (scope == Scope::block) {
                if (++turn == turns.size()) {
                    turn = 0;
                    if (order.kind == ThreadOrder::RANDOM) {
                        random.shuffle(turns);
                    }
                    if (line == RETURNED && !next_block()) {
                        switch_context(self.context, host);
                    }
                }
                warp = turns[turn];
                position = warps[warp].first;
            }
        }
        Fiber &next = fibers[position];
        threadIdx = next.index;
        if (&next != &self) {
            switch_context(self.context, next.context);
        }
    }

    // Shows a value to the warp; returns when all its threads have. `shown` sees the values until the next exchange.
    template <typename Value> void show(int line, const Value &value) {
        static_assert(sizeof(Value) <= EXCHANGED_BYTES && std::is_trivially_copyable<Value>::value, "a few plain bytes");
        Fiber &self = fibers[position];
        std::memcpy(self.exchanged[++self.num_exchanges % 2], &value, sizeof value);
        stop_at(line, Scope::warp);
    }

    template <typename Value> Value shown(unsigned lane) const { return shown_part<Value>(lane, 0); }

    // Some bytes of a value that is larger.
    template <typename Value> Value shown_part(unsigned lane, size_t offset) const {
        const Warp own = warps[warp];
        if (own.end - own.first != WARP_SIZE || lane >= WARP_SIZE) {
            fail("lane %u is asked for in a warp of %u threads", lane, static_cast<unsigned>(own.end - own.first));
        }
        const Fiber &other = fibers[order.kind == ThreadOrder::BACKWARD ? own.end - 1 - lane : own.first + lane];
        Value value;
        std::memcpy(&value, other.exchanged[fibers[position].num_exchanges % 2] + offset, sizeof value);
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
        const size_t number = blocks[num_blocks];
        blockIdx = dim3(number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y);
        std::memset(shared.data(), UNSET, shared_bytes);
        std::memset(shared.data() + shared_bytes, GUARD, GUARD_BYTES);
        if (own_static.second != 0) {
            std::memset(own_static.first, UNSET, own_static.second);
        }
    }

    // Whether there is another one.
    bool next_block() {
        if (!untouched(shared.data() + shared_bytes)) {
            fail("block (%u, %u, %u) wrote past its %zu bytes of dynamic shared memory", blockIdx.x, blockIdx.y, blockIdx.z, shared_bytes);
        }
        if (++num_blocks == blocks.size()) {
            return false;
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

    template <typename... Values> [[noreturn]] void fail(const char *format, Values... values) const {
        std::fprintf(stderr, "cuda_cpu_shim: ");
        std::fprintf(stderr, format, values...);
        if (order.kind == ThreadOrder::RANDOM) {
            std::fprintf(stderr, " (random order of seed %llu)", static_cast<unsigned long long>(order.seed));
        }
        std::fprintf(stderr, "\n");
        std::abort();
    }

    dim3 grid, block;
    size_t shared_bytes;
    ThreadOrder order;
    Random random;
    std::vector<Fiber> fibers;
    std::vector<unsigned char> shared;
    // Of this thread, for all kernels together.
    std::pair<unsigned char *, size_t> own_static;
    Context host;
    void *body = nullptr;
    void (*call_body)(void *) = nullptr;
    // Consecutive fibers: the first, and the one behind the last.
    struct Warp {
        size_t first, end;
    };
    std::vector<Warp> warps;
    // The warps in the order of this round, and the blocks.
    std::vector<size_t> turns, blocks;
    // Of the fiber that runs, of its warp, and of that in `turns`; blocks that are done.
    size_t position = 0, warp = 0, turn = 0, num_blocks = 0;
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

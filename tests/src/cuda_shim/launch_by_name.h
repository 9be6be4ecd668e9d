// Launches a kernel by its name, with its parameters as `cuLaunchKernel` takes them. A file that
// compiles kernels lists them in a `KernelTable`; all tables of a program or library are searched.
// Used by the tests, and by whatever stands in for the driver.
#pragma once

#include "cuda_cpu_shim.h"

#include <functional>
#include <tuple>
#include <utility>

namespace cuda_cpu_shim {

template <auto function> struct KernelCall;

template <typename... Parameters, void (*function)(Parameters...)> struct KernelCall<function> {
    // Copies the parameters; the call is for every thread of the launch.
    static std::function<void()> bind(void *const *params) {
        return bind(params, std::index_sequence_for<Parameters...>());
    }

    static constexpr size_t NUM_PARAMS = sizeof...(Parameters);

  private:
    template <size_t... I>
    static std::function<void()> bind(void *const *params, std::index_sequence<I...>) {
        std::tuple<Parameters...> own;
        // They need not be aligned.
        (std::memcpy(&std::get<I>(own), params[I], sizeof(Parameters)), ...);
        return [own] { std::apply(function, own); };
    }
};

struct NamedKernel {
    const char *name;
    size_t num_params;
    std::function<void()> (*bind)(void *const *params);
};

// One line of a table.
#define NAMED_KERNEL(name)                                                                         \
    ::cuda_cpu_shim::NamedKernel {                                                                 \
        #name, ::cuda_cpu_shim::KernelCall<name>::NUM_PARAMS,                                      \
            ::cuda_cpu_shim::KernelCall<name>::bind                                                \
    }

// The kernels of one file. Lives as long as the program, so that it can be found.
class KernelTable {
  public:
    template <size_t LEN>
    explicit KernelTable(const NamedKernel (&kernels)[LEN])
        : kernels(kernels), len(LEN), next(first) {
        first = this;
    }
    KernelTable(const KernelTable &) = delete;

    // Null if no table has it.
    static const NamedKernel *find(const char *name) {
        for (const KernelTable *table = first; table != nullptr; table = table->next) {
            for (size_t i = 0; i < table->len; ++i) {
                if (std::strcmp(table->kernels[i].name, name) == 0) {
                    return &table->kernels[i];
                }
            }
        }
        return nullptr;
    }

  private:
    const NamedKernel *kernels;
    size_t len;
    const KernelTable *next;
    static inline const KernelTable *first = nullptr;
};

// Whether there is such a kernel; if so, `bound` makes the launch when it is called, once or often,
// and returns when all blocks are done. `params` has the address of each parameter; they are copied
// now, so that the caller's may go, but what they point to must live until the launch.
inline bool launch_by_name(const char *kernel, std::function<void()> &bound, dim3 grid, dim3 block,
                           size_t shared_bytes, void *const *params, ThreadOrder order) {
    const NamedKernel *const named = KernelTable::find(kernel);
    if (named == nullptr) {
        return false;
    }
    bound = [=, thread = named->bind(params)] { launch(grid, block, shared_bytes, order, thread); };
    return true;
}

}  // namespace cuda_cpu_shim

// Stands in for cuBLAS and cuRAND (libcublas.so.13, libcurand.so.10) as far as candle asks when it opens a device: a handle each, on a stream. Their
// work, candle's own products and random numbers, is not there: calling it fails as "no such function".
#include "standin.h"

namespace {

constexpr int SUCCESS = 0;
constexpr int NO_CONTEXT = 1;

struct Handle {
    bool live = true;
};

int create(Handle **handle, const char *function) {
    if (const int planted = standin_fault(function)) {
        return planted;
    }
    if (!standin_has_context()) {
        return NO_CONTEXT;
    }
    *handle = new Handle;
    return SUCCESS;
}

int use(const Handle *handle, const char *function) {
    if (!handle->live) {
        standin_violation("%s: a handle that is destroyed", function);
    }
    return standin_fault(function);
}

int destroy(Handle *handle, const char *function) {
    const int planted = use(handle, function);
    handle->live = false;
    return planted;
}

}  // namespace

STANDIN_API int cublasCreate_v2(Handle **handle) { return create(handle, "cublasCreate_v2"); }
STANDIN_API int cublasDestroy_v2(Handle *handle) { return destroy(handle, "cublasDestroy_v2"); }
STANDIN_API int cublasSetStream_v2(Handle *handle, void *) { return use(handle, "cublasSetStream_v2"); }

STANDIN_API int curandCreateGenerator(Handle **generator, int) { return create(generator, "curandCreateGenerator"); }
STANDIN_API int curandDestroyGenerator(Handle *generator) { return destroy(generator, "curandDestroyGenerator"); }
STANDIN_API int curandSetStream(Handle *generator, void *) { return use(generator, "curandSetStream"); }
STANDIN_API int curandSetPseudoRandomGeneratorSeed(Handle *generator, unsigned long long) { return use(generator, "curandSetPseudoRandomGeneratorSeed"); }

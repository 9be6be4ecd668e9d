// Holds nvjpeg.h of the CUDA toolkit to what pipeline/src/backend/cuda calls through the crate nvjpeg-sys
// 0.1.0: its bindings were made from CUDA 11's header, and a Rust compiler cannot compare the two.
// Compiled and not run, by scripts/check-kernels.sh:   cc -std=c11 -fsyntax-only -I CUDA/include
#include <stddef.h>

#include "nvjpeg.h"

#define SAME(what) _Static_assert(what, #what)
#define PROTOTYPE(name, ...)                                                                       \
    _Static_assert(__builtin_types_compatible_p(__typeof__(name), nvjpegStatus_t(__VA_ARGS__)),    \
                   #name " takes other arguments")

// Of the bindings: pointers and usize of eight bytes, enums as u32.
SAME(sizeof(nvjpegImage_t) == 64 && _Alignof(nvjpegImage_t) == 8);
SAME(offsetof(nvjpegImage_t, channel) == 0 && offsetof(nvjpegImage_t, pitch) == 32);
SAME(sizeof(((nvjpegImage_t *)0)->pitch[0]) == 8 && NVJPEG_MAX_COMPONENT == 4);
SAME(sizeof(nvjpegDevAllocator_t) == 16 && offsetof(nvjpegDevAllocator_t, dev_free) == 8);
SAME(sizeof(nvjpegPinnedAllocator_t) == 16 && offsetof(nvjpegPinnedAllocator_t, pinned_free) == 8);
SAME(__builtin_types_compatible_p(tDevMalloc, int (*)(void **, size_t)));
SAME(__builtin_types_compatible_p(tDevFree, int (*)(void *)));
SAME(__builtin_types_compatible_p(tPinnedMalloc, int (*)(void **, size_t, unsigned)));
SAME(__builtin_types_compatible_p(tPinnedFree, int (*)(void *)));
SAME(sizeof(nvjpegStatus_t) == 4 && sizeof(nvjpegBackend_t) == 4);
SAME(sizeof(nvjpegOutputFormat_t) == 4 && sizeof(libraryPropertyType) == 4);
SAME(sizeof(nvjpegHandle_t) == 8 && sizeof(nvjpegJpegState_t) == 8);
SAME(sizeof(nvjpegJpegDecoder_t) == 8 && sizeof(nvjpegJpegStream_t) == 8);
SAME(sizeof(nvjpegDecodeParams_t) == 8 && sizeof(cudaStream_t) == 8);
SAME(sizeof(nvjpegBufferPinned_t) == 8 && sizeof(nvjpegBufferDevice_t) == 8);

SAME(NVJPEG_STATUS_SUCCESS == 0 && NVJPEG_STATUS_NOT_INITIALIZED == 1);
SAME(NVJPEG_STATUS_INVALID_PARAMETER == 2 && NVJPEG_STATUS_BAD_JPEG == 3);
SAME(NVJPEG_STATUS_JPEG_NOT_SUPPORTED == 4 && NVJPEG_STATUS_ALLOCATOR_FAILURE == 5);
SAME(NVJPEG_STATUS_EXECUTION_FAILED == 6 && NVJPEG_STATUS_ARCH_MISMATCH == 7);
SAME(NVJPEG_STATUS_INTERNAL_ERROR == 8 && NVJPEG_STATUS_IMPLEMENTATION_NOT_SUPPORTED == 9);
SAME(NVJPEG_STATUS_INCOMPLETE_BITSTREAM == 10);
SAME(NVJPEG_OUTPUT_RGBI == 5);
SAME(NVJPEG_BACKEND_HYBRID == 1 && NVJPEG_BACKEND_HARDWARE == 3);
SAME(MAJOR_VERSION == 0 && MINOR_VERSION == 1 && PATCH_LEVEL == 2);

PROTOTYPE(nvjpegGetProperty, libraryPropertyType, int *);
PROTOTYPE(nvjpegCreateEx, nvjpegBackend_t, nvjpegDevAllocator_t *, nvjpegPinnedAllocator_t *,
          unsigned, nvjpegHandle_t *);
PROTOTYPE(nvjpegDestroy, nvjpegHandle_t);
PROTOTYPE(nvjpegGetHardwareDecoderInfo, nvjpegHandle_t, unsigned *, unsigned *);
PROTOTYPE(nvjpegJpegStateCreate, nvjpegHandle_t, nvjpegJpegState_t *);
PROTOTYPE(nvjpegJpegStateDestroy, nvjpegJpegState_t);
PROTOTYPE(nvjpegDecodeBatchedInitialize, nvjpegHandle_t, nvjpegJpegState_t, int, int,
          nvjpegOutputFormat_t);
PROTOTYPE(nvjpegDecodeBatched, nvjpegHandle_t, nvjpegJpegState_t, const unsigned char *const *,
          const size_t *, nvjpegImage_t *, cudaStream_t);
PROTOTYPE(nvjpegDecoderCreate, nvjpegHandle_t, nvjpegBackend_t, nvjpegJpegDecoder_t *);
PROTOTYPE(nvjpegDecoderDestroy, nvjpegJpegDecoder_t);
PROTOTYPE(nvjpegDecoderStateCreate, nvjpegHandle_t, nvjpegJpegDecoder_t, nvjpegJpegState_t *);
PROTOTYPE(nvjpegDecoderJpegSupported, nvjpegJpegDecoder_t, nvjpegJpegStream_t, nvjpegDecodeParams_t,
          int *);
PROTOTYPE(nvjpegDecodeJpegHost, nvjpegHandle_t, nvjpegJpegDecoder_t, nvjpegJpegState_t,
          nvjpegDecodeParams_t, nvjpegJpegStream_t);
PROTOTYPE(nvjpegDecodeJpegTransferToDevice, nvjpegHandle_t, nvjpegJpegDecoder_t, nvjpegJpegState_t,
          nvjpegJpegStream_t, cudaStream_t);
PROTOTYPE(nvjpegDecodeJpegDevice, nvjpegHandle_t, nvjpegJpegDecoder_t, nvjpegJpegState_t,
          nvjpegImage_t *, cudaStream_t);
PROTOTYPE(nvjpegJpegStreamCreate, nvjpegHandle_t, nvjpegJpegStream_t *);
PROTOTYPE(nvjpegJpegStreamDestroy, nvjpegJpegStream_t);
PROTOTYPE(nvjpegJpegStreamParse, nvjpegHandle_t, const unsigned char *, size_t, int, int,
          nvjpegJpegStream_t);
PROTOTYPE(nvjpegDecodeParamsCreate, nvjpegHandle_t, nvjpegDecodeParams_t *);
PROTOTYPE(nvjpegDecodeParamsDestroy, nvjpegDecodeParams_t);
PROTOTYPE(nvjpegDecodeParamsSetOutputFormat, nvjpegDecodeParams_t, nvjpegOutputFormat_t);
PROTOTYPE(nvjpegDecodeParamsSetROI, nvjpegDecodeParams_t, int, int, int, int);
PROTOTYPE(nvjpegBufferPinnedCreate, nvjpegHandle_t, nvjpegPinnedAllocator_t *,
          nvjpegBufferPinned_t *);
PROTOTYPE(nvjpegBufferPinnedDestroy, nvjpegBufferPinned_t);
PROTOTYPE(nvjpegBufferDeviceCreate, nvjpegHandle_t, nvjpegDevAllocator_t *, nvjpegBufferDevice_t *);
PROTOTYPE(nvjpegBufferDeviceDestroy, nvjpegBufferDevice_t);
PROTOTYPE(nvjpegStateAttachPinnedBuffer, nvjpegJpegState_t, nvjpegBufferPinned_t);
PROTOTYPE(nvjpegStateAttachDeviceBuffer, nvjpegJpegState_t, nvjpegBufferDevice_t);

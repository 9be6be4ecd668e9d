// What the stand-ins of NVIDIA's libraries share. The driver's (`driver.cpp`, libcuda.so.1) exports it beside NVIDIA's own functions; the others
// (libcublasLt.so.13, libcublas.so.13, libcurand.so.10, libnvjpeg.so.13, libnccl.so.2) are linked with it, so that all work goes through one set of streams.
//
// A contract that NVIDIA states and the caller breaks is a *violation*: the program says which and aborts. What a real library may answer
// (out of memory, a refused image) is a *fault*, planted by a setting and answered as a status.
#pragma once

#include <cstddef>
#include <cstdint>

#define STANDIN_API extern "C" __attribute__((visibility("default")))

// Ends the program with a message that begins with "stand-in violation: ". printf's format.
STANDIN_API __attribute__((noreturn, format(printf, 1, 2))) void standin_violation(const char *format, ...);

// A setting of `NEPA_STANDIN` ("name=value,name=value") or of `standin_set`, the later one; null if there is none. The text lives until the next
// `standin_set` of that name.
STANDIN_API const char *standin_setting(const char *name);
// Null takes the setting back. Tests that run in the same process call this.
STANDIN_API void standin_set(const char *name, const char *value);
// The same as a number, `otherwise` where it is not set.
STANDIN_API int64_t standin_number(const char *name, int64_t otherwise);

// Counts a call of `function` and returns the status that is planted for it, or 0. The setting `fault` is a list "FUNCTION:STATUS:WHEN" separated by ';',
// FUNCTION as NVIDIA names it, WHEN the number of the one call that fails (from 1), "N-" for that one and all later ones, "*N" for every Nth, or "all".
STANDIN_API int standin_fault(const char *function);
// Calls of a function so far, and events that stand-ins count by any other name.
STANDIN_API uint64_t standin_count(const char *name);
STANDIN_API void standin_add(const char *name, uint64_t amount);
// Forgets counts, planted faults' progress and settings; streams, memory and contexts stay. `seed` starts the random order anew.
STANDIN_API void standin_reset(uint64_t seed);

// A number below `limit`, from the seeded sequence.
STANDIN_API uint32_t standin_random(uint32_t limit);

// Enqueues work on a stream of the driver (a CUstream; null is the default stream). It runs late: on some thread that waits for it, or earlier at any
// call into the driver, whichever comes first in the seeded order; never before what is ahead of it on the stream. `what` is a literal, for messages.
// Work must not call into a stand-in, but for the checks below.
STANDIN_API void standin_enqueue(void *stream, const char *what, void (*run)(void *), void *argument);
// Enqueues work that is done together with other processes. Once it is at the head of its stream, `progress` is called again and again; it does some of the
// work without waiting, and says whether all is done. What is behind it on the stream waits until then.
STANDIN_API void standin_enqueue_with_others(void *stream, const char *what, bool (*progress)(void *), void *argument);
// Whether the calling thread has a current context.
STANDIN_API bool standin_has_context();

// A violation if the bytes are not all in one live allocation of device memory.
STANDIN_API void standin_check_device(uint64_t start, size_t num_bytes, const char *what);
// Whether the bytes are all in one live allocation of page-locked host memory.
STANDIN_API bool standin_is_pinned(const void *start, size_t num_bytes);

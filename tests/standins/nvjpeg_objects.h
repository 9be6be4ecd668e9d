// The objects of the stand-in of nvJPEG (`nvjpeg.cpp`, its only user), and what every call does: it
// answers planted faults, finds its objects and keeps other threads out of them, calls the caller's
// allocators, and enqueues work that uses objects.
#pragma once

#include "standin.h"

#include "nvjpeg_file.h"

#include <algorithm>
#include <atomic>
#include <cstdarg>
#include <functional>
#include <string>
#include <type_traits>
#include <utility>

namespace {

enum Backend { DEFAULT, HYBRID, GPU_HYBRID, HARDWARE };
enum OutputFormat { UNCHANGED = 0, RGBI = 5, LAST_FORMAT = 9 };
enum Scale { NO_SCALE = 0, LAST_SCALE = 3 };

struct DeviceAllocator {
    int (*allocate)(void **, size_t);
    int (*release)(void *);
};

struct PinnedAllocator {
    int (*allocate)(void **, size_t, unsigned);
    int (*release)(void *);
};

struct Image {
    unsigned char *channel[MAX_CHANNELS];
    size_t pitch[MAX_CHANNELS];
};

// One of both kinds.
struct Allocator {
    DeviceAllocator device{};
    PinnedAllocator pinned{};
};

struct Memory {
    unsigned char *start = nullptr;
    size_t num_bytes = 0;
};

struct Region {
    unsigned left, top, width, height;
};

struct Handle;

// Anything that nvJPEG makes. It is never freed, so that a use after its end is found.
struct Object {
    Object(const char *kind, Handle *handle) : kind(kind), handle(handle) {}
    virtual ~Object() = default;

    const char *const kind;
    Handle *const handle;
    std::string name;
    std::atomic<bool> is_live{true};
    // Whether a call uses it now, for the kinds that are one thread's at a time.
    std::atomic<bool> is_entered{false};
    // Work that uses it and has not run.
    std::atomic<int> num_queued{0};
};

struct Handle : Object {
    static constexpr const char *KIND = "handle";
    static constexpr bool SHARED = true;
    Handle() : Object(KIND, nullptr) {}

    int backend = DEFAULT;
    bool interpolates = false;
    Allocator device, pinned;
    std::atomic<int> num_objects{0};
};

struct Decoder : Object {
    static constexpr const char *KIND = "decoder";
    static constexpr bool SHARED = true;
    explicit Decoder(Handle *handle) : Object(KIND, handle) {}

    int backend = DEFAULT;
};

struct Params : Object {
    static constexpr const char *KIND = "parameters";
    static constexpr bool SHARED = true;
    explicit Params(Handle *handle) : Object(KIND, handle) {}

    bool is_whole() const { return left == 0 && top == 0 && width == -1 && height == -1; }

    int format = UNCHANGED, scale = NO_SCALE;
    int left = 0, top = 0, width = -1, height = -1;
    bool allows_cmyk = false;
};

struct Bitstream : Object {
    static constexpr const char *KIND = "bitstream";
    static constexpr bool SHARED = false;
    explicit Bitstream(Handle *handle) : Object(KIND, handle) {}

    enum { NOTHING, HEADER, WHOLE } parsed = NOTHING;
    File file{};
    uint64_t hash = 0;
    std::vector<unsigned char> saved;
    Facts facts;
    // Files parsed so far.
    int num_parsed = 0;
};

struct Buffer : Object {
    static constexpr bool SHARED = false;
    using Object::Object;

    Allocator allocator;
    Memory memory;
    // Which host phase's image it holds.
    std::atomic<uint64_t> contents{0};
    std::atomic<int> num_attached{0};
};

struct PinnedBuffer : Buffer {
    static constexpr const char *KIND = "pinned buffer";
    explicit PinnedBuffer(Handle *handle) : Buffer(KIND, handle) {}
};

struct DeviceBuffer : Buffer {
    static constexpr const char *KIND = "device buffer";
    explicit DeviceBuffer(Handle *handle) : Buffer(KIND, handle) {}
};

struct State : Object {
    static constexpr const char *KIND = "state";
    static constexpr bool SHARED = false;
    explicit State(Handle *handle) : Object(KIND, handle) {}

    // Decoupled phases: the decoder that it was made for.
    Decoder *decoder = nullptr;
    PinnedBuffer *pinned = nullptr;
    DeviceBuffer *device = nullptr;
    enum { IDLE, ON_HOST, TRANSFERRED } phase = IDLE;
    // Of the image in flight: what the host phase used and found.
    PinnedBuffer *source = nullptr;
    Bitstream *bitstream = nullptr;
    int parsed = 0;
    uint64_t contents = 0;
    Region region{};
    size_t num_samples = 0, staged_bytes = 0;

    // Batches.
    int batch_size = 0;
    bool has_failed = false;
    Memory batch_memory;
};

// A call ends with a status other than success.
struct Refusal {
    int status;
};

// All objects so far, by address. These two are not destroyed when the program ends: other threads
// may still run then.
auto &objects_lock = *new std::mutex;
auto &objects = *new std::unordered_set<void *>;
std::atomic<uint64_t> num_host_phases{0};

bool is_set(const char *name, const char *value) {
    const char *const setting = standin_setting(name);
    return setting != nullptr && std::strcmp(setting, value) == 0;
}

bool is_enforced() { return standin_number("nvjpeg.enforce", 1) != 0; }

// One call of one function.
class Call {
  public:
    explicit Call(const char *function) : function(function), planted(standin_fault(function)) {}

    ~Call() {
        for (Object *object : entered) {
            object->is_entered = false;
        }
    }

    // A broken contract. Returns if those are not enforced.
    __attribute__((format(printf, 2, 3))) void violation(const char *format, ...) const {
        if (!is_enforced()) {
            return;
        }
        char text[512];
        va_list values;
        va_start(values, format);
        std::vsnprintf(text, sizeof text, format, values);
        va_end(values);
        standin_violation("%s: %s", function, text);
    }

    // The object that the caller means.
    template <typename T> T &get(void *pointer, const Handle *handle = nullptr) {
        if (pointer == nullptr) {
            throw Refusal{INVALID_PARAMETER};
        }
        Object *object = nullptr;
        {
            std::lock_guard<std::mutex> guard(objects_lock);
            if (objects.count(pointer) != 0) {
                object = static_cast<Object *>(pointer);
            }
        }
        if (object == nullptr || object->kind != T::KIND) {
            violation("%s is no %s", object ? object->name.c_str() : "a pointer", T::KIND);
            throw Refusal{INVALID_PARAMETER};
        }
        if (!object->is_live) {
            violation("%s was destroyed", object->name.c_str());
            throw Refusal{INVALID_PARAMETER};
        }
        if (handle != nullptr && object->handle != handle) {
            violation("%s was made from %s and is used with %s", object->name.c_str(),
                      object->handle->name.c_str(), handle->name.c_str());
        }
        if (!T::SHARED) {
            enter(*object);
        }
        return static_cast<T &>(*object);
    }

    // Keeps other threads out until the call ends.
    void enter(Object &object) {
        if (std::find(entered.begin(), entered.end(), &object) != entered.end()) {
            return;
        }
        if (object.is_entered.exchange(true)) {
            violation("%s is used by two threads at once", object.name.c_str());
        } else {
            entered.push_back(&object);
        }
    }

    template <typename T> T &make(Handle *handle, void **place) {
        if (place == nullptr) {
            throw Refusal{INVALID_PARAMETER};
        }
        std::lock_guard<std::mutex> guard(objects_lock);
        T *object;
        if constexpr (std::is_same_v<T, Handle>) {
            object = new T();
        } else {
            object = new T(handle);
            ++handle->num_objects;
        }
        *place = static_cast<Object *>(object);
        objects.insert(*place);
        object->name = std::string(T::KIND) + " " + std::to_string(objects.size());
        return *object;
    }

    void end(Object &object) {
        idle(object, "is destroyed");
        object.is_live = false;
        if (object.handle != nullptr) {
            --object.handle->num_objects;
        }
    }

    // Work that uses the object must be over.
    void idle(const Object &object, const char *fate) const {
        if (object.num_queued != 0) {
            violation("%s %s while work that uses it is queued", object.name.c_str(), fate);
        }
    }

    // nvJPEG works on the device that is current in the caller's thread.
    void need_context(const char *why) const {
        if (!standin_has_context()) {
            violation("no context is current in this thread: %s", why);
        }
    }

    void grow(const Allocator &allocator, Memory &memory, size_t num_bytes) const {
        if (num_bytes <= memory.num_bytes) {
            return;
        }
        release(allocator, memory);
        need_context("an allocator is called");
        void *start = nullptr;
        const bool is_device = allocator.device.allocate != nullptr;
        const int status = is_device ? allocator.device.allocate(&start, num_bytes)
                                     : allocator.pinned.allocate(&start, num_bytes, 0);
        standin_add("nvjpeg.allocations", 1);
        if (status != 0 || start == nullptr) {
            throw Refusal{ALLOCATOR_FAILURE};
        }
        memory = {static_cast<unsigned char *>(start), num_bytes};
        const uint64_t first_failure = standin_number("nvjpeg.allocations", 0);
        if (first_failure != 0 && standin_count("nvjpeg.allocations") >= first_failure) {
            release(allocator, memory);
            throw Refusal{ALLOCATOR_FAILURE};
        }
        if (is_device) {
            standin_check_device(reinterpret_cast<uint64_t>(start), num_bytes,
                                 "what nvJPEG's device allocator gave");
        } else if (!standin_is_pinned(start, num_bytes)) {
            violation("the pinned allocator gave memory that is not page-locked");
        }
    }

    void release(const Allocator &allocator, Memory &memory) const {
        if (memory.start == nullptr) {
            return;
        }
        need_context("an allocator is called");
        const bool is_device = allocator.device.release != nullptr;
        const int status = is_device ? allocator.device.release(memory.start)
                                     : allocator.pinned.release(memory.start);
        memory = {};
        if (status != 0) {
            throw Refusal{ALLOCATOR_FAILURE};
        }
    }

    const char *const function;
    // The status that a test asked for.
    const int planted;
    const bool is_late = is_set("nvjpeg.fails", "late");

  private:
    std::vector<Object *> entered;
};

// When a planted status is answered. An object is destroyed in any case: nobody could try again.
enum class Fault { before, late, after };

template <typename Body> int call(const char *function, Fault fault, Body body) {
    Call call(function);
    const bool at_once = fault == Fault::before || (fault == Fault::late && !call.is_late);
    if (call.planted != 0 && at_once) {
        return call.planted;
    }
    try {
        body(call);
    } catch (const Refusal &refusal) {
        return refusal.status;
    }
    return call.planted;
}

template <typename Body> int call(const char *function, Body body) {
    return call(function, Fault::before, body);
}

void need(bool is_given) {
    if (!is_given) {
        throw Refusal{INVALID_PARAMETER};
    }
}

struct Work {
    std::vector<Object *> uses;
    std::function<void()> run;
};

void enqueue(void *stream, const char *what, Work work) {
    for (Object *object : work.uses) {
        ++object->num_queued;
    }
    const auto run = [](void *argument) {
        const std::unique_ptr<Work> work(static_cast<Work *>(argument));
        work->run();
        for (Object *object : work->uses) {
            --object->num_queued;
        }
    };
    standin_enqueue(stream, what, run, new Work(std::move(work)));
}

} // namespace

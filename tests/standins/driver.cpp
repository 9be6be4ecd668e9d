// Stands in for the NVIDIA driver, libcuda.so.1: one device whose memory is the host's and whose kernels run through tests/src/cuda_shim. Streams are queues
// that run late, in a seeded random order where no event orders them, and only while somebody calls into the driver. What the caller owes the driver
// (a current context, live handles, memory that is there and not rewritten under a copy) is checked; see standin.h.
//
// Settings: seed; schedule = random | late | eager; devices, their number (1), of which a process uses one; first_gpu, which of the machine's the first one
// is (0); name; memory, the device's in MiB (4096); capability (90); sms (132); random_times = 1 or equal_times = 1, of events.
#include "standin.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "../src/cuda_shim/launch_by_name.h"

namespace {

// As CUresult names them.
enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    // After an answer from here to LAST_STICKY the context is lost: every later call answers the same.
    LAST_STICKY = 719,
};

constexpr size_t PAGE = 4096;
constexpr size_t MIB = 1 << 20;
// What the driver's allocations are aligned to, and no more.
constexpr size_t ALIGNMENT = 256;
// New memory is NaN as f32 and as bf16; behind this much it is zero, since filling takes time.
constexpr unsigned char UNWRITTEN = 0xff;
constexpr size_t MOST_FILLED = 16 * MIB;
constexpr unsigned char BESIDE = 0xa5;
constexpr unsigned WARP = 32;
constexpr int DEFAULT_SHARED_BYTES = 48 << 10;

size_t round_up(size_t value, size_t to) { return (value + to - 1) / to * to; }

// FNV-1a, to notice that bytes have changed.
uint64_t hash_of(const void *start, size_t num_bytes) {
    uint64_t hash = 0xcbf29ce484222325;
    const unsigned char *const bytes = static_cast<const unsigned char *>(start);
    for (size_t i = 0; i < num_bytes; ++i) {
        hash = (hash ^ bytes[i]) * 0x100000001b3;
    }
    return hash;
}

// Memory between two pages that nobody may touch, as near to the second as its alignment allows. A released one stays reserved, so that no
// later use of it hits anything else.
struct Block {
    unsigned char *outer;
    size_t outer_bytes, num_bytes;
    unsigned char *start;

    explicit Block(size_t num_bytes) : num_bytes(num_bytes) {
        const size_t inner = round_up(round_up(num_bytes, ALIGNMENT), PAGE);
        outer_bytes = inner + 2 * PAGE;
        outer = static_cast<unsigned char *>(mmap(nullptr, outer_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (outer == MAP_FAILED || mprotect(outer + PAGE, inner, PROT_READ | PROT_WRITE) != 0) {
            std::perror("stand-in driver: memory");
            std::abort();
        }
        start = outer + PAGE + inner - round_up(num_bytes, ALIGNMENT);
        std::memset(outer + PAGE, BESIDE, start - (outer + PAGE));
        std::memset(start, UNWRITTEN, std::min(num_bytes, MOST_FILLED));
        std::memset(start + num_bytes, BESIDE, outer + PAGE + inner - (start + num_bytes));
    }

    bool beside_is_untouched() const {
        const auto untouched = [](const unsigned char *from, const unsigned char *to) {
            return std::all_of(from, to, [](unsigned char byte) { return byte == BESIDE; });
        };
        return untouched(outer + PAGE, start) && untouched(start + num_bytes, outer + outer_bytes - PAGE);
    }

    void release(const char *what) {
        if (!beside_is_untouched()) {
            standin_violation("%s of %zu bytes: something was written beside it", what, num_bytes);
        }
        mprotect(outer, outer_bytes, PROT_NONE);
        madvise(outer, outer_bytes, MADV_DONTNEED);
    }
};

using Blocks = std::map<uintptr_t, Block>;

bool holds(const Blocks &blocks, uintptr_t start, size_t num_bytes) {
    auto after = blocks.upper_bound(start);
    if (after == blocks.begin()) {
        return false;
    }
    const Block &block = std::prev(after)->second;
    return start + num_bytes <= reinterpret_cast<uintptr_t>(block.start) + block.num_bytes;
}

struct Event {
    unsigned flags;
    // How often it was recorded, and which of these the streams have come to.
    uint64_t recorded = 0, reached = 0;
    double milliseconds = 0;
};

struct Work {
    const char *what;
    std::function<void()> run;
    // A wait: for this record of the event.
    std::shared_ptr<Event> event;
    uint64_t record = 0;
    // Work with other processes: does some of it, and says whether all is done.
    std::function<bool()> progress;

    bool is_ready() const { return progress ? progress() : !event || event->reached >= record; }
};

struct Stream {
    std::deque<Work> queue;
    int priority = 0;
};

struct Module {
    // Kernels by name: bytes of static shared memory.
    std::map<std::string, int> kernels;
};

struct Function {
    std::string name;
    int static_shared, most_dynamic_shared;
};

struct World {
    // Work and checks run while it is held, and some of them look again.
    std::recursive_mutex lock;
    uint64_t seed = 0;
    std::mt19937_64 random;
    std::map<std::string, std::string> settings;
    std::map<std::string, uint64_t> counts, fault_calls;
    bool initialised = false;
    int lost = SUCCESS;
    int context = 0;
    size_t contexts_retained = 0;
    std::map<void *, std::shared_ptr<Stream>> streams;
    // Destroyed with work in their queues, which is still done.
    std::set<std::shared_ptr<Stream>> leaving;
    std::map<void *, std::shared_ptr<Event>> events;
    std::map<void *, std::shared_ptr<Module>> modules;
    std::map<void *, std::unique_ptr<Function>> functions;
    Blocks device, pinned;
    // Taken, and of that what tests before have left where a planted fault refused to free it.
    size_t device_bytes = 0, left_bytes = 0;
    uint64_t pool_threshold = 0;

    World() {
        read_environment();
        const char *const given = standin_setting_of("seed");
        restart(given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()());
        streams[nullptr] = std::make_shared<Stream>();
        // CU_STREAM_PER_THREAD: one for all threads here.
        streams[reinterpret_cast<void *>(2)] = std::make_shared<Stream>();
    }

    const char *standin_setting_of(const char *name) {
        const auto found = settings.find(name);
        return found == settings.end() ? nullptr : found->second.c_str();
    }

    void read_environment() {
        const char *const environment = std::getenv("NEPA_STANDIN");
        std::string rest = environment != nullptr ? environment : "";
        while (!rest.empty()) {
            const size_t end = std::min(rest.find(','), rest.size());
            const std::string pair = rest.substr(0, end);
            const size_t equals = pair.find('=');
            if (equals == std::string::npos) {
                std::fprintf(stderr, "stand-in driver: NEPA_STANDIN has %s, which is no name=value\n", pair.c_str());
                std::abort();
            }
            settings[pair.substr(0, equals)] = pair.substr(equals + 1);
            rest.erase(0, end + 1);
        }
    }

    void restart(uint64_t with) {
        seed = with;
        random.seed(with);
        counts.clear();
        fault_calls.clear();
        lost = SUCCESS;
        left_bytes = device_bytes;
    }

    size_t taken_bytes() const { return device_bytes - std::min(device_bytes, left_bytes); }
};

// Never destroyed: threads may call in while the program ends.
World &world() {
    static World &the_world = *new World;
    return the_world;
}

thread_local void *current_context = nullptr;

using Lock = std::lock_guard<std::recursive_mutex>;

double now() { return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

void run_first(Stream &stream) {
    Work work = std::move(stream.queue.front());
    stream.queue.pop_front();
    if (work.run) {
        work.run();
    }
}

std::vector<Stream *> ready_streams() {
    World &all = world();
    std::vector<Stream *> ready;
    const auto add = [&](const std::shared_ptr<Stream> &stream) {
        if (!stream->queue.empty() && stream->queue.front().is_ready()) {
            ready.push_back(stream.get());
        }
    };
    for (const auto &entry : all.streams) {
        add(entry.second);
    }
    for (const auto &stream : all.leaving) {
        add(stream);
    }
    return ready;
}

// Runs one piece of work on some stream; whether there was any that could run.
bool run_one() {
    World &all = world();
    const std::vector<Stream *> ready = ready_streams();
    if (ready.empty()) {
        return false;
    }
    run_first(*ready[all.random() % ready.size()]);
    for (auto stream = all.leaving.begin(); stream != all.leaving.end();) {
        stream = (*stream)->queue.empty() ? all.leaving.erase(stream) : std::next(stream);
    }
    return true;
}

bool waits_for_others() {
    const World &all = world();
    const auto waits = [](const std::shared_ptr<Stream> &stream) { return !stream->queue.empty() && stream->queue.front().progress; };
    return std::any_of(all.leaving.begin(), all.leaving.end(), waits) ||
           std::any_of(all.streams.begin(), all.streams.end(), [&](const auto &entry) { return waits(entry.second); });
}

template <typename Done> void run_until(const char *waiting, Done done) {
    while (!done()) {
        if (run_one()) {
            continue;
        }
        if (!waits_for_others()) {
            standin_violation("%s waits for work that waits for an event nobody has recorded", waiting);
        }
        // Nor are this process's other threads held up.
        world().lock.unlock();
        usleep(100);
        world().lock.lock();
    }
}

void run_all() {
    while (run_one()) {
    }
}

bool nothing_queued() {
    const World &all = world();
    return all.leaving.empty() && std::all_of(all.streams.begin(), all.streams.end(), [](const auto &entry) { return entry.second->queue.empty(); });
}

// What was enqueued before may run at any call, or not yet.
void run_some() {
    World &all = world();
    const char *const schedule = standin_setting("schedule");
    const std::string how = schedule != nullptr ? schedule : "random";
    if (how == "eager") {
        run_all();
    } else if (how == "random" && all.random() % 4 == 0) {
        for (uint64_t left = all.random() % 4; left > 0 && run_one(); --left) {
        }
    }
}

// Of every call: counts it, answers a planted fault or what the lost context answers, else SUCCESS.
int enter(const char *function, bool needs_context = true) {
    World &all = world();
    const int planted = standin_fault(function);
    if (all.lost != SUCCESS) {
        return all.lost;
    }
    if (planted >= ILLEGAL_ADDRESS && planted <= LAST_STICKY) {
        all.lost = planted;
    }
    if (planted != SUCCESS) {
        return planted;
    }
    if (!all.initialised) {
        return NOT_INITIALIZED;
    }
    if (needs_context && current_context == nullptr) {
        return INVALID_CONTEXT;
    }
    run_some();
    return SUCCESS;
}

// The usual start of a function of the driver.
#define ENTER(...)                                \
    const Lock lock(world().lock);                \
    if (const int status = enter(__VA_ARGS__)) {  \
        return status;                            \
    }

std::shared_ptr<Stream> stream_of(void *handle, const char *function) {
    const auto found = world().streams.find(handle);
    if (found == world().streams.end()) {
        standin_violation("%s: a stream that was never made or is destroyed", function);
    }
    return found->second;
}

std::shared_ptr<Event> event_of(void *handle, const char *function) {
    const auto found = world().events.find(handle);
    if (found == world().events.end()) {
        standin_violation("%s: an event that was never made or is destroyed", function);
    }
    return found->second;
}

void enqueue(void *stream, const char *what, std::function<void()> run) { stream_of(stream, what)->queue.push_back({what, std::move(run), nullptr, 0, nullptr}); }

int capability() { return static_cast<int>(standin_number("capability", 90)); }

// Most shared memory of a block, as CUDA's programming guide lists it.
int most_shared_bytes() {
    switch (capability()) {
    case 80:
    case 87:
        return 163 << 10;
    case 86:
    case 89:
    case 120:
        return 99 << 10;
    default:
        return 227 << 10;
    }
}

size_t device_capacity() { return static_cast<size_t>(standin_number("memory", 4096)) * MIB; }

// ---- Modules: kernels by the names that the image really holds.

// PTX names each kernel `.entry name(`, and declares its shared memory inside of it.
std::shared_ptr<Module> module_of_ptx(const std::string &text) {
    const size_t target = text.find(".target sm_");
    if (target == std::string::npos || text.find(".version") == std::string::npos) {
        return nullptr;
    }
    if (std::atoi(text.c_str() + target + std::strlen(".target sm_")) > capability()) {
        return nullptr;
    }
    auto module = std::make_shared<Module>();
    const std::string mark = ".entry ", shared = ".shared .align ";
    for (size_t at = text.find(mark); at != std::string::npos;) {
        const size_t name = at + mark.size(), next = text.find(mark, name);
        const std::string body = text.substr(name, next - name);
        int &bytes = module->kernels[body.substr(0, body.find_first_of("( \n"))];
        for (size_t array = body.find(shared); array != std::string::npos; array = body.find(shared, array + 1)) {
            const size_t open = body.find('[', array), end = body.find(';', array);
            if (open < end) {
                bytes += std::atoi(body.c_str() + open + 1);
            }
        }
        at = next;
    }
    return module;
}

template <typename Value> Value value_at(const unsigned char *image, size_t offset) {
    Value value;
    std::memcpy(&value, image + offset, sizeof value);
    return value;
}

// A cubin is an ELF file with a section `.text.NAME` for each kernel, and `.nv.shared.NAME` where it has shared memory of its own.
std::shared_ptr<Module> module_of_cubin(const unsigned char *image) {
    const uint64_t sections = value_at<uint64_t>(image, 0x28);
    const uint16_t entry_bytes = value_at<uint16_t>(image, 0x3a), count = value_at<uint16_t>(image, 0x3c), names = value_at<uint16_t>(image, 0x3e);
    // From CUDA 13 on the second byte of the flags says for which architecture; before it was the first.
    const uint32_t flags = value_at<uint32_t>(image, 0x30);
    const int second = flags >> 8 & 0xff, made_for = second >= 50 ? second : static_cast<int>(flags & 0xff);
    if (made_for / 10 != capability() / 10 || made_for > capability()) {
        return nullptr;
    }
    const uint64_t text = value_at<uint64_t>(image, sections + uint64_t{entry_bytes} * names + 0x18);
    auto module = std::make_shared<Module>();
    const std::string code = ".text.", shared = ".nv.shared.";
    std::map<std::string, int> shared_bytes;
    for (unsigned i = 0; i < count; ++i) {
        const uint64_t section = sections + uint64_t{entry_bytes} * i;
        const std::string name = reinterpret_cast<const char *>(image + text + value_at<uint32_t>(image, section));
        if (name.compare(0, code.size(), code) == 0) {
            module->kernels[name.substr(code.size())] = 0;
        } else if (name.compare(0, shared.size(), shared) == 0) {
            shared_bytes[name.substr(shared.size())] = static_cast<int>(value_at<uint64_t>(image, section + 0x20));
        }
    }
    for (auto &kernel : module->kernels) {
        kernel.second = shared_bytes[kernel.first];
    }
    return module;
}

}  // namespace

// ---- What the stand-ins share.

void standin_violation(const char *format, ...) {
    std::va_list values;
    va_start(values, format);
    std::fprintf(stderr, "stand-in violation: ");
    std::vfprintf(stderr, format, values);
    const char *const fault = world().standin_setting_of("fault");
    std::fprintf(stderr, "\n(seed %llu: NEPA_STANDIN=seed=%llu; planted: %s)\n", static_cast<unsigned long long>(world().seed),
                 static_cast<unsigned long long>(world().seed), fault != nullptr ? fault : "nothing");
    va_end(values);
    std::abort();
}

const char *standin_setting(const char *name) {
    const Lock lock(world().lock);
    return world().standin_setting_of(name);
}

void standin_set(const char *name, const char *value) {
    const Lock lock(world().lock);
    if (value == nullptr) {
        world().settings.erase(name);
    } else {
        world().settings[name] = value;
    }
}

int64_t standin_number(const char *name, int64_t otherwise) {
    const char *const text = standin_setting(name);
    return text == nullptr ? otherwise : std::strtoll(text, nullptr, 10);
}

int standin_fault(const char *function) {
    World &all = world();
    const Lock lock(all.lock);
    ++all.counts[function];
    const char *const faults = standin_setting("fault");
    std::string rest = faults != nullptr ? faults : "";
    while (!rest.empty()) {
        const size_t end = std::min(rest.find(';'), rest.size());
        const std::string fault = rest.substr(0, end);
        rest.erase(0, end + 1);
        const size_t first = fault.find(':'), second = fault.find(':', first + 1);
        if (second == std::string::npos) {
            standin_violation("the setting fault has %s, which is no FUNCTION:STATUS:WHEN", fault.c_str());
        }
        if (fault.compare(0, first, function) != 0) {
            continue;
        }
        const uint64_t call = ++all.fault_calls[fault];
        const std::string when = fault.substr(second + 1);
        const bool each = when[0] == '*';
        const uint64_t number = std::strtoull(when.c_str() + each, nullptr, 10);
        if (when == "all" || (each ? call % number == 0 : call == number) || (when.back() == '-' && call >= number)) {
            return std::atoi(fault.c_str() + first + 1);
        }
    }
    return SUCCESS;
}

uint64_t standin_count(const char *name) {
    const Lock lock(world().lock);
    return world().counts[name];
}

void standin_add(const char *name, uint64_t amount) {
    const Lock lock(world().lock);
    world().counts[name] += amount;
}

void standin_reset(uint64_t seed) {
    World &all = world();
    const Lock lock(all.lock);
    run_all();
    all.settings.clear();
    all.read_environment();
    all.restart(seed);
}

uint32_t standin_random(uint32_t limit) {
    const Lock lock(world().lock);
    return static_cast<uint32_t>(world().random() % limit);
}

void standin_enqueue(void *stream, const char *what, void (*run)(void *), void *argument) {
    const Lock lock(world().lock);
    enqueue(stream, what, [=] { run(argument); });
    run_some();
}

void standin_enqueue_with_others(void *stream, const char *what, bool (*progress)(void *), void *argument) {
    const Lock lock(world().lock);
    stream_of(stream, what)->queue.push_back({what, nullptr, nullptr, 0, [=] { return progress(argument); }});
}

bool standin_has_context() { return current_context != nullptr; }

void standin_check_device(uint64_t start, size_t num_bytes, const char *what) {
    const Lock lock(world().lock);
    if (!holds(world().device, start, num_bytes)) {
        standin_violation("%s: %zu bytes at %#llx are in no allocation of device memory", what, num_bytes, static_cast<unsigned long long>(start));
    }
}

bool standin_is_pinned(const void *start, size_t num_bytes) {
    const Lock lock(world().lock);
    return holds(world().pinned, reinterpret_cast<uintptr_t>(start), num_bytes);
}

// ---- The driver's functions, each as NVIDIA's CUDA driver API documents it.

STANDIN_API int cuInit(unsigned flags) {
    const Lock lock(world().lock);
    if (const int planted = standin_fault("cuInit")) {
        return planted;
    }
    if (!world().initialised) {
        world().initialised = true;
        std::fprintf(stderr, "stand-in driver: no GPU, seed %llu (NEPA_STANDIN=seed=%llu repeats it)\n",
                     static_cast<unsigned long long>(world().seed), static_cast<unsigned long long>(world().seed));
    }
    return flags == 0 ? SUCCESS : INVALID_VALUE;
}

STANDIN_API int cuDriverGetVersion(int *version) {
    *version = static_cast<int>(standin_number("driver", 13000));
    return standin_fault("cuDriverGetVersion");
}

STANDIN_API int cuGetErrorName(int error, const char **name) {
    switch (error) {
    case SUCCESS: *name = "CUDA_SUCCESS"; break;
    case INVALID_VALUE: *name = "CUDA_ERROR_INVALID_VALUE"; break;
    case OUT_OF_MEMORY: *name = "CUDA_ERROR_OUT_OF_MEMORY"; break;
    case NOT_INITIALIZED: *name = "CUDA_ERROR_NOT_INITIALIZED"; break;
    case INVALID_DEVICE: *name = "CUDA_ERROR_INVALID_DEVICE"; break;
    case INVALID_IMAGE: *name = "CUDA_ERROR_INVALID_IMAGE"; break;
    case INVALID_CONTEXT: *name = "CUDA_ERROR_INVALID_CONTEXT"; break;
    case NO_BINARY_FOR_GPU: *name = "CUDA_ERROR_NO_BINARY_FOR_GPU"; break;
    case INVALID_HANDLE: *name = "CUDA_ERROR_INVALID_HANDLE"; break;
    case NOT_FOUND: *name = "CUDA_ERROR_NOT_FOUND"; break;
    case NOT_READY: *name = "CUDA_ERROR_NOT_READY"; break;
    case ILLEGAL_ADDRESS: *name = "CUDA_ERROR_ILLEGAL_ADDRESS"; break;
    default: *name = "CUDA_ERROR_OF_THE_STAND_IN"; break;
    }
    return SUCCESS;
}

STANDIN_API int cuGetErrorString(int, const char **text) {
    *text = "an answer of the stand-in driver";
    return SUCCESS;
}

STANDIN_API int cuDeviceGetCount(int *count) {
    ENTER("cuDeviceGetCount", false)
    *count = static_cast<int>(standin_number("devices", 1));
    return SUCCESS;
}

STANDIN_API int cuDeviceGet(int *device, int ordinal) {
    ENTER("cuDeviceGet", false)
    *device = ordinal;
    return ordinal >= 0 && ordinal < standin_number("devices", 1) ? SUCCESS : INVALID_DEVICE;
}

STANDIN_API int cuDeviceGetName(char *name, int length, int) {
    ENTER("cuDeviceGetName", false)
    const char *const given = standin_setting("name");
    std::snprintf(name, length, "%s", given != nullptr ? given : "stand-in for a GPU");
    return SUCCESS;
}

// GPU 0 of a process is the machine's `first_gpu`.
STANDIN_API int cuDeviceGetUuid_v2(unsigned char *uuid, int device) {
    ENTER("cuDeviceGetUuid_v2", false)
    std::memset(uuid, 0, 16);
    uuid[15] = static_cast<unsigned char>(standin_number("first_gpu", 0) + device);
    return SUCCESS;
}

STANDIN_API int cuDeviceTotalMem_v2(size_t *num_bytes, int) {
    ENTER("cuDeviceTotalMem_v2", false)
    *num_bytes = device_capacity();
    return SUCCESS;
}

STANDIN_API int cuDeviceGetAttribute(int *value, int attribute, int) {
    ENTER("cuDeviceGetAttribute", false)
    switch (attribute) {
    case 1: *value = 1024; return SUCCESS;                                            // threads of a block
    case 8: *value = DEFAULT_SHARED_BYTES; return SUCCESS;                            // shared memory of a block
    case 10: *value = WARP; return SUCCESS;                                           // threads of a warp
    case 16: *value = static_cast<int>(standin_number("sms", 132)); return SUCCESS;   // multiprocessors
    case 75: *value = capability() / 10; return SUCCESS;                              // compute capability
    case 76: *value = capability() % 10; return SUCCESS;
    case 97: *value = most_shared_bytes(); return SUCCESS;                            // shared memory of a block that asks for it
    case 115: *value = static_cast<int>(standin_number("pools", 1)); return SUCCESS;  // memory pools
    default:
        standin_violation("cuDeviceGetAttribute: the stand-in does not know attribute %d; add it", attribute);
    }
}

STANDIN_API int cuDevicePrimaryCtxRetain(void **context, int) {
    ENTER("cuDevicePrimaryCtxRetain", false)
    ++world().contexts_retained;
    *context = &world().context;
    return SUCCESS;
}

STANDIN_API int cuDevicePrimaryCtxRelease_v2(int) {
    const Lock lock(world().lock);
    if (world().contexts_retained == 0) {
        standin_violation("cuDevicePrimaryCtxRelease: released more often than retained");
    }
    if (--world().contexts_retained == 0) {
        run_all();
        // What still waits goes with the context.
        world().leaving.clear();
        for (auto &entry : world().streams) {
            entry.second->queue.clear();
        }
    }
    return SUCCESS;
}

STANDIN_API int cuCtxSetCurrent(void *context) {
    ENTER("cuCtxSetCurrent", false)
    if (context != nullptr && world().contexts_retained == 0) {
        standin_violation("cuCtxSetCurrent: the context is released");
    }
    current_context = context;
    return SUCCESS;
}

STANDIN_API int cuCtxGetCurrent(void **context) {
    ENTER("cuCtxGetCurrent", false)
    *context = current_context;
    return SUCCESS;
}

STANDIN_API int cuCtxSynchronize() {
    ENTER("cuCtxSynchronize")
    run_until("cuCtxSynchronize", nothing_queued);
    return SUCCESS;
}

STANDIN_API int cuCtxRecordEvent(void *context, void *event) {
    ENTER("cuCtxRecordEvent", false)
    const auto recorded = event_of(event, "cuCtxRecordEvent");
    if (context != &world().context) {
        return INVALID_CONTEXT;
    }
    const uint64_t record = ++recorded->recorded;
    // Reached when all streams have come to their marks.
    const auto ahead = std::make_shared<size_t>(1);
    const auto mark = [recorded, record, ahead] {
        if (--*ahead == 0) {
            recorded->reached = std::max(recorded->reached, record);
            recorded->milliseconds = now();
        }
    };
    const auto add = [&](const std::shared_ptr<Stream> &stream) {
        if (!stream->queue.empty()) {
            ++*ahead;
            stream->queue.push_back({"cuCtxRecordEvent", mark, nullptr, 0, nullptr});
        }
    };
    for (const auto &entry : world().streams) {
        add(entry.second);
    }
    for (const auto &stream : world().leaving) {
        add(stream);
    }
    mark();
    return SUCCESS;
}

STANDIN_API int cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    ENTER("cuCtxGetStreamPriorityRange")
    *least = 0;
    *greatest = -5;
    return SUCCESS;
}

// ---- Streams and events.

STANDIN_API int cuStreamCreateWithPriority(void **stream, unsigned flags, int priority) {
    ENTER("cuStreamCreateWithPriority")
    if (flags > 1) {
        return INVALID_VALUE;
    }
    auto made = std::make_shared<Stream>();
    made->priority = std::max(std::min(priority, 0), -5);
    standin_add(made->priority < 0 ? "streams of high priority" : "streams of ordinary priority", 1);
    *stream = made.get();
    world().streams[*stream] = made;
    return SUCCESS;
}

STANDIN_API int cuStreamCreate(void **stream, unsigned flags) { return cuStreamCreateWithPriority(stream, flags, 0); }

STANDIN_API int cuStreamGetPriority(void *stream, int *priority) {
    ENTER("cuStreamGetPriority")
    *priority = stream_of(stream, "cuStreamGetPriority")->priority;
    return SUCCESS;
}

STANDIN_API int cuStreamDestroy_v2(void *stream) {
    ENTER("cuStreamDestroy_v2")
    const auto gone = stream_of(stream, "cuStreamDestroy");
    world().streams.erase(stream);
    if (!gone->queue.empty()) {
        world().leaving.insert(gone);
    }
    return SUCCESS;
}

STANDIN_API int cuStreamSynchronize(void *stream) {
    ENTER("cuStreamSynchronize")
    const auto waited = stream_of(stream, "cuStreamSynchronize");
    run_until("cuStreamSynchronize", [&] { return waited->queue.empty(); });
    return SUCCESS;
}

STANDIN_API int cuStreamQuery(void *stream) {
    ENTER("cuStreamQuery")
    if (stream_of(stream, "cuStreamQuery")->queue.empty()) {
        return SUCCESS;
    }
    run_one();
    return NOT_READY;
}

STANDIN_API int cuStreamWaitEvent(void *stream, void *event, unsigned flags) {
    ENTER("cuStreamWaitEvent")
    const auto awaited = event_of(event, "cuStreamWaitEvent");
    stream_of(stream, "cuStreamWaitEvent")->queue.push_back({"a wait for an event", nullptr, awaited, awaited->recorded, nullptr});
    return flags == 0 ? SUCCESS : INVALID_VALUE;
}

STANDIN_API int cuEventCreate(void **event, unsigned flags) {
    ENTER("cuEventCreate")
    constexpr unsigned BLOCKING_SYNC = 1, DISABLE_TIMING = 2, INTERPROCESS = 4;
    if (flags > (BLOCKING_SYNC | DISABLE_TIMING | INTERPROCESS) || ((flags & INTERPROCESS) != 0 && (flags & DISABLE_TIMING) == 0)) {
        return INVALID_VALUE;
    }
    auto made = std::make_shared<Event>();
    made->flags = flags;
    *event = made.get();
    world().events[*event] = made;
    return SUCCESS;
}

STANDIN_API int cuEventDestroy_v2(void *event) {
    ENTER("cuEventDestroy_v2")
    event_of(event, "cuEventDestroy");
    world().events.erase(event);
    return SUCCESS;
}

STANDIN_API int cuEventRecord(void *event, void *stream) {
    ENTER("cuEventRecord")
    const auto recorded = event_of(event, "cuEventRecord");
    const uint64_t record = ++recorded->recorded;
    enqueue(stream, "cuEventRecord", [recorded, record] {
        recorded->reached = std::max(recorded->reached, record);
        recorded->milliseconds = now();
    });
    return SUCCESS;
}

STANDIN_API int cuEventQuery(void *event) {
    ENTER("cuEventQuery")
    const auto asked = event_of(event, "cuEventQuery");
    if (asked->reached >= asked->recorded) {
        return SUCCESS;
    }
    run_one();
    return NOT_READY;
}

STANDIN_API int cuEventSynchronize(void *event) {
    ENTER("cuEventSynchronize")
    const auto awaited = event_of(event, "cuEventSynchronize");
    const uint64_t record = awaited->recorded;
    run_until("cuEventSynchronize", [&] { return awaited->reached >= record; });
    return SUCCESS;
}

STANDIN_API int cuEventElapsedTime_v2(float *milliseconds, void *start, void *end) {
    ENTER("cuEventElapsedTime_v2")
    const auto from = event_of(start, "cuEventElapsedTime"), to = event_of(end, "cuEventElapsedTime");
    if (from->recorded == 0 || to->recorded == 0 || ((from->flags | to->flags) & 2) != 0) {
        return INVALID_HANDLE;
    }
    if (from->reached < from->recorded || to->reached < to->recorded) {
        return NOT_READY;
    }
    *milliseconds = static_cast<float>(to->milliseconds - from->milliseconds);
    if (standin_number("random_times", 0) != 0) {
        *milliseconds = static_cast<float>(standin_random(1000) + 1);
    } else if (standin_number("equal_times", 0) != 0) {
        *milliseconds = 1.0f;
    }
    return SUCCESS;
}

// ---- Memory.

STANDIN_API int cuMemGetInfo_v2(size_t *free, size_t *total) {
    ENTER("cuMemGetInfo_v2")
    *total = device_capacity();
    *free = *total - std::min(*total, world().taken_bytes());
    return SUCCESS;
}

STANDIN_API int cuMemAlloc_v2(uint64_t *address, size_t num_bytes) {
    ENTER("cuMemAlloc_v2")
    World &all = world();
    if (num_bytes == 0) {
        return INVALID_VALUE;
    }
    if (all.taken_bytes() + num_bytes > device_capacity()) {
        return OUT_OF_MEMORY;
    }
    const Block block(num_bytes);
    *address = reinterpret_cast<uint64_t>(block.start);
    all.device.emplace(*address, block);
    all.device_bytes += num_bytes;
    return SUCCESS;
}

STANDIN_API int cuMemFree_v2(uint64_t address) {
    ENTER("cuMemFree_v2")
    World &all = world();
    const auto found = all.device.find(address);
    if (found == all.device.end()) {
        standin_violation("cuMemFree: %#llx was not allocated, or is freed already", static_cast<unsigned long long>(address));
    }
    // The driver waits for all work before memory goes; nobody should count on it.
    run_until("cuMemFree", nothing_queued);
    found->second.release("device memory");
    all.device_bytes -= found->second.num_bytes;
    all.device.erase(found);
    return SUCCESS;
}

STANDIN_API int cuMemAllocAsync(uint64_t *address, size_t num_bytes, void *stream) {
    const Lock lock(world().lock);
    if (const int planted = standin_fault("cuMemAllocAsync")) {
        return planted;
    }
    stream_of(stream, "cuMemAllocAsync");
    return cuMemAlloc_v2(address, num_bytes);
}

STANDIN_API int cuMemFreeAsync(uint64_t address, void *stream) {
    ENTER("cuMemFreeAsync")
    standin_check_device(address, 1, "cuMemFreeAsync");
    enqueue(stream, "cuMemFreeAsync", [address] {
        World &all = world();
        const auto found = all.device.find(address);
        found->second.release("device memory");
        all.device_bytes -= found->second.num_bytes;
        all.device.erase(found);
    });
    return SUCCESS;
}

STANDIN_API int cuMemHostAlloc(void **start, size_t num_bytes, unsigned flags) {
    ENTER("cuMemHostAlloc")
    if (num_bytes == 0 || flags > 7) {
        return INVALID_VALUE;
    }
    const Block block(num_bytes);
    *start = block.start;
    world().pinned.emplace(reinterpret_cast<uintptr_t>(*start), block);
    return SUCCESS;
}

STANDIN_API int cuMemFreeHost(void *start) {
    ENTER("cuMemFreeHost")
    const auto found = world().pinned.find(reinterpret_cast<uintptr_t>(start));
    if (found == world().pinned.end()) {
        standin_violation("cuMemFreeHost: memory that was not allocated, or is freed already");
    }
    run_until("cuMemFreeHost", nothing_queued);
    found->second.release("page-locked memory");
    world().pinned.erase(found);
    return SUCCESS;
}

STANDIN_API int cuDeviceGetDefaultMemPool(void **pool, int) {
    ENTER("cuDeviceGetDefaultMemPool", false)
    *pool = &world().pool_threshold;
    return SUCCESS;
}

STANDIN_API int cuDeviceGetMemPool(void **pool, int device) { return cuDeviceGetDefaultMemPool(pool, device); }

STANDIN_API int cuMemPoolSetAttribute(void *, int attribute, void *value) {
    ENTER("cuMemPoolSetAttribute", false)
    constexpr int RELEASE_THRESHOLD = 4;
    if (attribute != RELEASE_THRESHOLD) {
        return INVALID_VALUE;
    }
    std::memcpy(&world().pool_threshold, value, sizeof world().pool_threshold);
    return SUCCESS;
}

STANDIN_API int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t num_bytes, void *stream) {
    ENTER("cuMemcpyHtoDAsync_v2")
    standin_check_device(to, num_bytes, "cuMemcpyHtoDAsync");
    if (!standin_is_pinned(from, num_bytes)) {
        // Ordinary memory is read before the call returns.
        const unsigned char *const bytes = static_cast<const unsigned char *>(from);
        auto copy = std::make_shared<std::vector<unsigned char>>(bytes, bytes + num_bytes);
        enqueue(stream, "cuMemcpyHtoDAsync", [=] { std::memcpy(reinterpret_cast<void *>(to), copy->data(), num_bytes); });
        return SUCCESS;
    }
    const uint64_t before = hash_of(from, num_bytes);
    enqueue(stream, "cuMemcpyHtoDAsync", [=] {
        if (!standin_is_pinned(from, num_bytes) || hash_of(from, num_bytes) != before) {
            standin_violation("cuMemcpyHtoDAsync: page-locked memory was rewritten or freed before the copy from it had run");
        }
        std::memcpy(reinterpret_cast<void *>(to), from, num_bytes);
    });
    return SUCCESS;
}

STANDIN_API int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t num_bytes, void *stream) {
    ENTER("cuMemcpyDtoHAsync_v2")
    standin_check_device(from, num_bytes, "cuMemcpyDtoHAsync");
    enqueue(stream, "cuMemcpyDtoHAsync", [=] { std::memcpy(to, reinterpret_cast<const void *>(from), num_bytes); });
    return SUCCESS;
}

// In the order of the default stream alone: streams that do not block are not waited for.
STANDIN_API int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t num_bytes) {
    ENTER("cuMemcpyDtoH_v2")
    standin_check_device(from, num_bytes, "cuMemcpyDtoH");
    const auto stream = stream_of(nullptr, "cuMemcpyDtoH");
    run_until("cuMemcpyDtoH", [&] { return stream->queue.empty(); });
    std::memcpy(to, reinterpret_cast<const void *>(from), num_bytes);
    return SUCCESS;
}

STANDIN_API int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t num_bytes, void *stream) {
    ENTER("cuMemcpyDtoDAsync_v2")
    standin_check_device(from, num_bytes, "cuMemcpyDtoDAsync");
    standin_check_device(to, num_bytes, "cuMemcpyDtoDAsync");
    enqueue(stream, "cuMemcpyDtoDAsync", [=] { std::memmove(reinterpret_cast<void *>(to), reinterpret_cast<const void *>(from), num_bytes); });
    return SUCCESS;
}

STANDIN_API int cuMemsetD8Async(uint64_t start, unsigned char value, size_t num_bytes, void *stream) {
    ENTER("cuMemsetD8Async")
    standin_check_device(start, num_bytes, "cuMemsetD8Async");
    enqueue(stream, "cuMemsetD8Async", [=] { std::memset(reinterpret_cast<void *>(start), value, num_bytes); });
    return SUCCESS;
}

// ---- Kernels.

STANDIN_API int cuModuleLoadData(void **module, const void *image) {
    ENTER("cuModuleLoadData")
    const unsigned char *const bytes = static_cast<const unsigned char *>(image);
    std::shared_ptr<Module> loaded;
    if (std::memcmp(bytes, "\177ELF", 4) == 0) {
        loaded = module_of_cubin(bytes);
        standin_add("modules of machine code", 1);
    } else {
        loaded = module_of_ptx(static_cast<const char *>(image));
        standin_add("modules of PTX", 1);
    }
    if (!loaded) {
        return NO_BINARY_FOR_GPU;
    }
    if (loaded->kernels.empty()) {
        return INVALID_IMAGE;
    }
    *module = loaded.get();
    world().modules[*module] = loaded;
    return SUCCESS;
}

STANDIN_API int cuModuleUnload(void *module) {
    ENTER("cuModuleUnload")
    if (world().modules.erase(module) == 0) {
        standin_violation("cuModuleUnload: a module that was never loaded, or is unloaded already");
    }
    return SUCCESS;
}

STANDIN_API int cuModuleGetFunction(void **function, void *module, const char *name) {
    ENTER("cuModuleGetFunction")
    const auto found = world().modules.find(module);
    if (found == world().modules.end()) {
        standin_violation("cuModuleGetFunction: a module that is not loaded");
    }
    const auto kernel = found->second->kernels.find(name);
    if (kernel == found->second->kernels.end()) {
        return NOT_FOUND;
    }
    auto made = std::make_unique<Function>(Function{name, kernel->second, DEFAULT_SHARED_BYTES - kernel->second});
    *function = made.get();
    world().functions[*function] = std::move(made);
    return SUCCESS;
}

STANDIN_API int cuFuncGetAttribute(int *value, int attribute, void *function) {
    ENTER("cuFuncGetAttribute")
    const Function &of = *world().functions.at(function);
    switch (attribute) {
    case 0: *value = 1024; return SUCCESS;
    case 1: *value = of.static_shared; return SUCCESS;
    case 8: *value = of.most_dynamic_shared; return SUCCESS;
    default: return INVALID_VALUE;
    }
}

STANDIN_API int cuFuncSetAttribute(void *function, int attribute, int value) {
    ENTER("cuFuncSetAttribute")
    constexpr int MAX_DYNAMIC_SHARED = 8, SHARED_CARVEOUT = 9;
    Function &of = *world().functions.at(function);
    if (attribute == SHARED_CARVEOUT) {
        standin_add("shared memory carve-outs", 1);
        return value >= -1 && value <= 100 ? SUCCESS : INVALID_VALUE;
    }
    if (attribute != MAX_DYNAMIC_SHARED || value < 0 || value > most_shared_bytes() - of.static_shared) {
        return INVALID_VALUE;
    }
    of.most_dynamic_shared = value;
    return SUCCESS;
}

STANDIN_API int cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y, unsigned block_z,
                               unsigned shared_bytes, void *stream, void **params, void **extra) {
    ENTER("cuLaunchKernel")
    const auto found = world().functions.find(function);
    if (found == world().functions.end()) {
        standin_violation("cuLaunchKernel: a kernel that was never loaded");
    }
    const Function &kernel = *found->second;
    const uint64_t threads = uint64_t{block_x} * block_y * block_z;
    const bool grid_fits = grid_x > 0 && grid_x <= 0x7fffffff && grid_y > 0 && grid_y <= 65535 && grid_z > 0 && grid_z <= 65535;
    const bool block_fits = threads > 0 && threads <= 1024 && block_x <= 1024 && block_y <= 1024 && block_z <= 64;
    if (!grid_fits || !block_fits || static_cast<int64_t>(shared_bytes) > kernel.most_dynamic_shared || extra != nullptr) {
        return INVALID_VALUE;
    }
    std::function<void()> bound;
    const auto order = cuda_cpu_shim::ThreadOrder::random(world().random() >> 1);
    if (!cuda_cpu_shim::launch_by_name(kernel.name.c_str(), bound, dim3(grid_x, grid_y, grid_z), dim3(block_x, block_y, block_z), shared_bytes, params, order)) {
        standin_violation("cuLaunchKernel: the shim has no kernel %s", kernel.name.c_str());
    }
    standin_add(kernel.name.c_str(), 1);
    enqueue(stream, "cuLaunchKernel", std::move(bound));
    return SUCCESS;
}

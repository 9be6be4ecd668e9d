// Stands in for NCCL, libnccl.so.2: what one process sends to another goes through rings in shared memory, as work of the driver's streams, which waits for
// the other process as a kernel of NCCL's does. Like NCCL over NVLink it does not notice that another process has died. A sum over all ranks is sent by each to
// each, and added from rank 0 on: unlike NCCL's own, and unlike a tree's.
//
// A communicator does not block, and its answers come late: an operation is enqueued some questions after the call that asked for it. To use the
// communicator before is a violation; who relies on the stream's order before gets other values.
//
// Settings: nccl.dies = RANK:N, that rank is killed in the middle of its Nth group, or sum; nccl.version.
#include "standin.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace {

// As ncclResult_t names them.
enum Result { SUCCESS = 0, UNHANDLED_CUDA_ERROR = 1, SYSTEM_ERROR = 2, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, IN_PROGRESS = 7 };

constexpr int VERSION = 22809;
constexpr unsigned MAGIC = 0xcafebeef;
constexpr int FLOAT32 = 7;
constexpr int SUM = 0;
constexpr int MOST_RANKS = 8;
// Shorter than most of what is sent, so that rings run full and empty.
constexpr uint64_t RING_BYTES = 1 << 14;

struct Id {
    char name[128];
};

struct Config {
    size_t size;
    unsigned magic, version;
    int blocking;
};

// From one rank to another. Each message is its length and its bytes.
struct Ring {
    std::atomic<uint64_t> written, read;
    char bytes[RING_BYTES];
};

// New shared memory is zero, which is the right start of all of it.
struct Shared {
    std::atomic<int> joined[MOST_RANKS];
    Ring rings[MOST_RANKS][MOST_RANKS];
};

// One direction of a group: a message, so far.
struct Transfer {
    bool sends;
    unsigned char *bytes;
    uint64_t num_bytes, done, header;
    int peer;
};

struct Comm;

// A sum over all ranks that is under way.
struct Sum {
    const float *values;
    float *sums;
    size_t count;
    // Of each rank but this one, whose place is empty.
    std::vector<std::vector<float>> received;
};

// What is sent and received at once. It is kept, as the driver may ask again for one that is done.
struct Group {
    Comm *comm;
    void *stream;
    std::vector<Transfer> transfers;
    uint64_t number;
    // None of a group of ncclSend and ncclRecv, and once it is done.
    std::unique_ptr<Sum> sum;
};

struct Comm {
    Shared *shared;
    int rank, size;
    std::string name;
    std::atomic<bool> is_aborted{false};
    bool is_live = true, has_joined = false;
    // Questions until what was asked last is under way.
    unsigned late = 0;
    std::vector<Group *> asked;
    uint64_t groups = 0;
};

// Never destroyed, as the driver's world.
std::recursive_mutex &lock = *new std::recursive_mutex;
std::set<Comm *> &comms = *new std::set<Comm *>;
std::string &last_error = *new std::string;
thread_local int depth = 0;
thread_local std::vector<std::unique_ptr<Group>> open_groups;

using Lock = std::lock_guard<std::recursive_mutex>;

int refuse(int status, const char *why) {
    last_error = why;
    return status;
}

bool dies_in(const Group &group) {
    const char *const at = standin_setting("nccl.dies");
    int rank = -1;
    unsigned long long number = 0;
    return at != nullptr && std::sscanf(at, "%d:%llu", &rank, &number) == 2 && rank == group.comm->rank && number == group.number;
}

// Copies to or from a ring as much as there is room for; how much.
uint64_t move_some(Ring &ring, bool writes, unsigned char *bytes, uint64_t wanted) {
    const uint64_t written = ring.written.load(), read = ring.read.load();
    const uint64_t place = writes ? written : read;
    const uint64_t room = std::min({wanted, writes ? RING_BYTES - (written - read) : written - read, RING_BYTES - place % RING_BYTES});
    char *const at = ring.bytes + place % RING_BYTES;
    if (writes) {
        std::memcpy(at, bytes, room);
        ring.written.store(written + room);
    } else {
        std::memcpy(bytes, at, room);
        ring.read.store(read + room);
    }
    return room;
}

bool progress_of(Comm &comm, Transfer &transfer) {
    Ring &ring = transfer.sends ? comm.shared->rings[comm.rank][transfer.peer] : comm.shared->rings[transfer.peer][comm.rank];
    uint64_t length = transfer.num_bytes;
    while (transfer.header < sizeof length) {
        unsigned char header[sizeof length];
        std::memcpy(header, &length, sizeof header);
        // Of a length that has come in part, the rest is the right one here.
        const uint64_t moved = move_some(ring, transfer.sends, header + transfer.header, sizeof header - transfer.header);
        if (moved == 0) {
            return false;
        }
        if (!transfer.sends && std::memcmp(header, &length, sizeof header) != 0) {
            standin_violation("%llu bytes are expected of rank %d, which sends another number", static_cast<unsigned long long>(transfer.num_bytes), transfer.peer);
        }
        transfer.header += moved;
    }
    while (transfer.done < transfer.num_bytes) {
        const uint64_t moved = move_some(ring, transfer.sends, transfer.bytes + transfer.done, transfer.num_bytes - transfer.done);
        if (moved == 0) {
            return false;
        }
        transfer.done += moved;
    }
    return true;
}

// From rank 0 on. The sums may take the place of this rank's values.
void add_all(const Sum &sum, int rank) {
    const auto of = [&](size_t at, size_t i) { return at == static_cast<size_t>(rank) ? sum.values[i] : sum.received[at][i]; };
    for (size_t i = 0; i < sum.count; ++i) {
        float total = of(0, i);
        for (size_t at = 1; at < sum.received.size(); ++at) {
            total += of(at, i);
        }
        sum.sums[i] = total;
    }
}

// Called by the driver's stand-in, while its lock is held.
bool progress(void *argument) {
    Group *const group = static_cast<Group *>(argument);
    if (group->comm->is_aborted) {
        return true;
    }
    bool is_done = true;
    for (Transfer &transfer : group->transfers) {
        is_done = progress_of(*group->comm, transfer) && is_done;
        if (dies_in(*group)) {
            raise(SIGKILL);
        }
    }
    if (is_done && group->sum != nullptr) {
        add_all(*group->sum, group->comm->rank);
        group->sum.reset();
    }
    return is_done;
}

Comm &live(Comm *comm, const char *function) {
    if (comms.count(comm) == 0 || !comm->is_live) {
        standin_violation("%s: a communicator that was never made, or is gone", function);
    }
    return *comm;
}

// Enqueues what was asked, once it is no longer late.
void enqueue_asked(Comm &comm) {
    for (Group *const group : comm.asked) {
        standin_enqueue_with_others(group->stream, "work of NCCL", progress, group);
    }
    comm.asked.clear();
}

// Answers late.
int ask(std::unique_ptr<Group> asked) {
    Group *const group = asked.release();
    Comm &comm = *group->comm;
    group->number = ++comm.groups;
    standin_add("nccl.groups", 1);
    comm.asked.push_back(group);
    comm.late = standin_random(4);
    if (comm.late > 0) {
        return IN_PROGRESS;
    }
    enqueue_asked(comm);
    return SUCCESS;
}

// What each operation on a communicator must heed.
void check_ready(const Comm &comm, const char *function) {
    if (comm.late > 0 || !comm.has_joined) {
        standin_violation("%s: the communicator is still busy with what it was asked before", function);
    }
    if (!standin_has_context()) {
        standin_violation("%s: no context is current", function);
    }
}

bool overlap(const Transfer &a, const Transfer &b) { return a.bytes < b.bytes + b.num_bytes && b.bytes < a.bytes + a.num_bytes; }

int add(bool sends, void *start, size_t count, int type, int peer, Comm *comm, void *stream, const char *function) {
    const Lock held(lock);
    Comm &of = live(comm, function);
    if (const int planted = standin_fault(function)) {
        return refuse(planted, "planted");
    }
    if (depth == 0) {
        standin_violation("%s: outside of a group two ranks that send to each other wait for ever", function);
    }
    check_ready(of, function);
    if (type != FLOAT32 || peer < 0 || peer >= of.size || peer == of.rank || count == 0) {
        standin_violation("%s: %zu values of type %d for rank %d", function, count, type, peer);
    }
    const size_t num_bytes = 4 * count;
    standin_check_device(reinterpret_cast<uint64_t>(start), num_bytes, function);
    if (open_groups.empty()) {
        open_groups.push_back(std::make_unique<Group>(Group{comm, stream, {}, 0, nullptr}));
    }
    Group &group = *open_groups.back();
    if (group.comm != comm || group.stream != stream) {
        standin_violation("%s: a group over several communicators or streams, which the stand-in does not know", function);
    }
    const Transfer transfer{sends, static_cast<unsigned char *>(start), num_bytes, 0, 0, peer};
    for (const Transfer &other : group.transfers) {
        if (overlap(transfer, other) || (other.sends == sends && other.peer == peer)) {
            standin_violation("%s: memory that is sent and received at once, or two messages one way", function);
        }
    }
    group.transfers.push_back(transfer);
    standin_add(sends ? "nccl.sent_bytes" : "nccl.received_bytes", num_bytes);
    return SUCCESS;
}

bool all_have_joined(const Comm &comm) {
    return std::all_of(comm.shared->joined, comm.shared->joined + comm.size, [](const std::atomic<int> &joined) { return joined.load() != 0; });
}

Shared *open_shared(const char *name, int flags) {
    const int file = shm_open(name, flags, 0600);
    if (file < 0) {
        return nullptr;
    }
    void *start = MAP_FAILED;
    if (ftruncate(file, sizeof(Shared)) == 0) {
        start = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    }
    close(file);
    return start == MAP_FAILED ? nullptr : static_cast<Shared *>(start);
}

}  // namespace

STANDIN_API int ncclGetVersion(int *version) {
    *version = static_cast<int>(standin_number("nccl.version", VERSION));
    return standin_fault("ncclGetVersion");
}

STANDIN_API const char *ncclGetErrorString(int result) {
    switch (result) {
    case SUCCESS: return "no error";
    case UNHANDLED_CUDA_ERROR: return "unhandled cuda error";
    case SYSTEM_ERROR: return "unhandled system error";
    case INVALID_ARGUMENT: return "invalid argument";
    case INVALID_USAGE: return "invalid usage";
    case IN_PROGRESS: return "NCCL operation in progress";
    default: return "an error of the stand-in";
    }
}

STANDIN_API const char *ncclGetLastError(Comm *) {
    const Lock held(lock);
    static thread_local std::string copy;
    copy = last_error;
    return copy.c_str();
}

STANDIN_API int ncclGetUniqueId(Id *id) {
    const Lock held(lock);
    if (const int planted = standin_fault("ncclGetUniqueId")) {
        return refuse(planted, "planted");
    }
    std::memset(id, 0, sizeof *id);
    static unsigned made = 0;
    std::snprintf(id->name, sizeof id->name, "/nepa-standin-nccl-%d-%u", static_cast<int>(getpid()), made++);
    Shared *const shared = open_shared(id->name, O_CREAT | O_EXCL | O_RDWR);
    if (shared == nullptr) {
        return refuse(SYSTEM_ERROR, "the stand-in has no shared memory");
    }
    munmap(shared, sizeof *shared);
    // Where the ranks never come together.
    static std::string &left = *new std::string;
    left = id->name;
    static const bool once = std::atexit([] { shm_unlink(left.c_str()); }) == 0;
    return once ? SUCCESS : SYSTEM_ERROR;
}

STANDIN_API int ncclCommInitRankConfig(Comm **made, int size, Id id, int rank, const Config *config) {
    const Lock held(lock);
    if (const int planted = standin_fault("ncclCommInitRankConfig")) {
        return refuse(planted, "planted");
    }
    if (config->size < sizeof *config || config->magic != MAGIC || config->version != VERSION) {
        return refuse(INVALID_ARGUMENT, "a configuration without its size, magic number or version");
    }
    if (config->blocking != 0) {
        standin_violation("ncclCommInitRankConfig: a communicator that blocks waits for ever for a rank that has died");
    }
    if (!standin_has_context()) {
        standin_violation("ncclCommInitRankConfig: no context is current");
    }
    if (depth > 0 || size < 2 || size > MOST_RANKS || rank < 0 || rank >= size) {
        return refuse(INVALID_ARGUMENT, "a rank that cannot be");
    }
    Shared *const shared = open_shared(id.name, O_RDWR);
    if (shared == nullptr) {
        return refuse(SYSTEM_ERROR, "no rank has made this id");
    }
    if (shared->joined[rank].exchange(1) != 0) {
        return refuse(INVALID_USAGE, "two processes are one rank");
    }
    Comm *const comm = new Comm;
    comm->shared = shared;
    comm->rank = rank;
    comm->size = size;
    comm->name = id.name;
    comms.insert(comm);
    *made = comm;
    return IN_PROGRESS;
}

STANDIN_API int ncclCommGetAsyncError(Comm *comm, int *state) {
    const Lock held(lock);
    Comm &of = live(comm, "ncclCommGetAsyncError");
    if (const int planted = standin_fault("ncclCommGetAsyncError")) {
        *state = refuse(planted, "planted");
        return SUCCESS;
    }
    if (!of.has_joined) {
        of.has_joined = all_have_joined(of);
        if (of.has_joined) {
            shm_unlink(of.name.c_str());
        }
    } else if (of.late > 0 && --of.late == 0) {
        enqueue_asked(of);
    }
    *state = of.has_joined && of.late == 0 ? SUCCESS : IN_PROGRESS;
    return SUCCESS;
}

STANDIN_API int ncclGroupStart() {
    const int planted = standin_fault("ncclGroupStart");
    depth += planted == SUCCESS;
    return planted;
}

STANDIN_API int ncclSend(const void *start, size_t count, int type, int peer, Comm *comm, void *stream) {
    return add(true, const_cast<void *>(start), count, type, peer, comm, stream, "ncclSend");
}

STANDIN_API int ncclRecv(void *start, size_t count, int type, int peer, Comm *comm, void *stream) {
    return add(false, start, count, type, peer, comm, stream, "ncclRecv");
}

STANDIN_API int ncclGroupEnd() {
    const Lock held(lock);
    if (depth == 0) {
        standin_violation("ncclGroupEnd: no group was begun");
    }
    if (--depth > 0) {
        return SUCCESS;
    }
    std::vector<std::unique_ptr<Group>> groups;
    groups.swap(open_groups);
    if (const int planted = standin_fault("ncclGroupEnd")) {
        return refuse(planted, "planted");
    }
    if (groups.empty()) {
        return SUCCESS;
    }
    return ask(std::move(groups.front()));
}

// It is a group of its own.
STANDIN_API int ncclAllReduce(const void *start, void *into, size_t count, int type, int operation, Comm *comm, void *stream) {
    const Lock held(lock);
    Comm &of = live(comm, "ncclAllReduce");
    if (const int planted = standin_fault("ncclAllReduce")) {
        return refuse(planted, "planted");
    }
    if (depth > 0) {
        standin_violation("ncclAllReduce: within a group, which the stand-in does not know");
    }
    check_ready(of, "ncclAllReduce");
    if (type != FLOAT32 || operation != SUM || count == 0) {
        standin_violation("ncclAllReduce: %zu values of type %d by operation %d", count, type, operation);
    }
    auto *const values = static_cast<unsigned char *>(const_cast<void *>(start)), *const sums = static_cast<unsigned char *>(into);
    const size_t num_bytes = 4 * count;
    standin_check_device(reinterpret_cast<uint64_t>(values), num_bytes, "ncclAllReduce");
    standin_check_device(reinterpret_cast<uint64_t>(sums), num_bytes, "ncclAllReduce");
    if (values != sums && values < sums + num_bytes && sums < values + num_bytes) {
        standin_violation("ncclAllReduce: sums over a part of the values");
    }
    auto group = std::make_unique<Group>(Group{comm, stream, {}, 0, std::make_unique<Sum>()});
    Sum &sum = *group->sum;
    sum = {static_cast<const float *>(start), static_cast<float *>(into), count, std::vector<std::vector<float>>(of.size)};
    for (int peer = 0; peer < of.size; ++peer) {
        if (peer != of.rank) {
            sum.received[peer].resize(count);
            group->transfers.push_back({true, values, num_bytes, 0, 0, peer});
            group->transfers.push_back({false, reinterpret_cast<unsigned char *>(sum.received[peer].data()), num_bytes, 0, 0, peer});
        }
    }
    return ask(std::move(group));
}

// From any state and thread: what is under way ends without its values.
STANDIN_API int ncclCommAbort(Comm *comm) {
    const Lock held(lock);
    Comm &of = live(comm, "ncclCommAbort");
    of.is_aborted = true;
    of.is_live = false;
    of.asked.clear();
    return standin_fault("ncclCommAbort");
}

// Stand-in for NVIDIA's libnvjpeg.so.13: decodes with libjpeg-turbo on the CPU, late on the streams
// of the driver's stand-in, and enforces what NVIDIA documents of nvJPEG's objects and phases. Made
// after https://docs.nvidia.com/cuda/nvjpeg and NVIDIA's samples; it makes interleaved RGB only.
//
// Settings (of `standin.h`), where N = 0 means never:
//   nvjpeg.enforce=0      a broken contract is no violation: it has the consequences that it has
//   nvjpeg.fails=late     a planted or real error is answered after part of the work was enqueued
//   nvjpeg.engines, nvjpeg.cores  JPEG engines and cores in each (2, 8); no engines: no hardware
//   nvjpeg.roi=refused    parts of images are not supported
//   nvjpeg.writes=at-call the hardware writes when it is called, before what is ahead on the stream
//   nvjpeg.skip=N         every Nth image of a batch is not written, and success is reported
//   nvjpeg.damage=N       one in N files, the same always, makes its batch fail with status 4 or 8
//   nvjpeg.allocations=N  from the Nth one on, the caller's allocators fail
// Counts: calls by name, nvjpeg.hybrid_images, nvjpeg.batched_images, nvjpeg.skipped_images,
// nvjpeg.allocations.
#include "nvjpeg_objects.h"

namespace {

constexpr unsigned UPSAMPLING_WITH_INTERPOLATION = 1 << 5;
// NVIDIA's property types are 0 to 2.
constexpr int VERSION[3] = {13, 0, 1};

// The start of a pinned buffer after the host phase; the file follows.
struct Staged {
    size_t num_bytes;
    unsigned left, top;
    bool interpolates;
};

void check_target(const Image &image, const Region &region) {
    const size_t row = 3 * size_t{region.width};
    const size_t num_bytes = (region.height - 1) * image.pitch[0] + row;
    standin_check_device(reinterpret_cast<uint64_t>(image.channel[0]), num_bytes,
                         "the pixels that nvJPEG writes");
}

void check_target(const Call &call, const Image &image, const Region &region) {
    if (image.channel[0] == nullptr || image.pitch[0] < 3 * size_t{region.width}) {
        call.violation("a destination of pitch %zu at %p for %u pixels", image.pitch[0],
                       static_cast<void *>(image.channel[0]), region.width);
        throw Refusal{INVALID_PARAMETER};
    }
    check_target(image, region);
}

// Writes the region and nothing else, whatever the file is.
void write_pixels(File file, bool interpolates, const Region &region, const Image &image) {
    check_target(image, region);
    const auto picture = decode(file, interpolates);
    for (unsigned y = 0; y < region.height; ++y) {
        unsigned char *const row = image.channel[0] + y * image.pitch[0];
        std::memset(row, 0xdb, 3 * size_t{region.width});
        if (region.top + y < picture->height && region.left < picture->width) {
            const size_t start = (region.top + y) * size_t{picture->width} + region.left;
            const size_t width = std::min(region.width, picture->width - region.left);
            std::memcpy(row, &picture->pixels[3 * start], 3 * width);
        }
    }
}

// Whether a backend takes a file. `params` is null for batches without parameters.
Status support(const Facts &facts, int backend, bool is_batch, const Params *params) {
    const bool is_part = params != nullptr && !params->is_whole();
    if (is_part && (is_set("nvjpeg.roi", "refused") || is_batch != (backend == HARDWARE))) {
        return IMPLEMENTATION_NOT_SUPPORTED;
    }
    if (params != nullptr && params->scale != NO_SCALE && backend != HARDWARE) {
        return IMPLEMENTATION_NOT_SUPPORTED;
    }
    const Subsampling subsampling = facts.subsampling();
    const bool is_cmyk = facts.num_components == 4 && params != nullptr && params->allows_cmyk;
    if (facts.precision != 8 || facts.process > PROGRESSIVE ||
        (subsampling == CSS_UNKNOWN && !is_cmyk)) {
        return JPEG_NOT_SUPPORTED;
    }
    if (backend == GPU_HYBRID && facts.process != BASELINE) {
        return JPEG_NOT_SUPPORTED;
    }
    if (backend == HARDWARE && (facts.process != BASELINE || !facts.one_scan || is_cmyk ||
                                subsampling == CSS_411 || subsampling == CSS_410 ||
                                subsampling == CSS_410V)) {
        return JPEG_NOT_SUPPORTED;
    }
    return SUCCESS;
}

Region region_of(const Call &call, const Params &params, const Facts &facts) {
    if (params.is_whole()) {
        return {0, 0, facts.width, facts.height};
    }
    const int64_t right = int64_t{params.left} + params.width;
    const int64_t bottom = int64_t{params.top} + params.height;
    if (params.width < 1 || params.height < 1 || right > facts.width || bottom > facts.height) {
        call.violation("a region of %dx%d at (%d, %d) in an image of %ux%u", params.width,
                       params.height, params.left, params.top, facts.width, facts.height);
        throw Refusal{INVALID_PARAMETER};
    }
    return {static_cast<unsigned>(params.left), static_cast<unsigned>(params.top),
            static_cast<unsigned>(params.width), static_cast<unsigned>(params.height)};
}

void need_engines(int backend) {
    if (backend == HARDWARE && standin_number("nvjpeg.engines", 2) == 0) {
        throw Refusal{ARCH_MISMATCH};
    }
    if (backend < DEFAULT || backend > HARDWARE) {
        throw Refusal{backend < DEFAULT || backend > 6 ? INVALID_PARAMETER
                                                       : IMPLEMENTATION_NOT_SUPPORTED};
    }
}

template <typename T> T allocator_of(const Call &call, const T *given, const T &otherwise) {
    const T allocator = given != nullptr ? *given : otherwise;
    if (allocator.allocate == nullptr || allocator.release == nullptr) {
        standin_violation("%s: this stand-in has no allocators of its own", call.function);
    }
    return allocator;
}

Bitstream &get_parsed(Call &call, void *pointer, const Handle *handle = nullptr) {
    Bitstream &bitstream = call.get<Bitstream>(pointer, handle);
    if (bitstream.parsed == Bitstream::NOTHING) {
        call.violation("%s: no file was parsed with success", bitstream.name.c_str());
        throw Refusal{INVALID_PARAMETER};
    }
    return bitstream;
}

// The file that was parsed is the caller's, unless it was saved.
void check_file(const Call &call, const Bitstream &bitstream) {
    if (hash_of(bitstream.file) != bitstream.hash) {
        call.violation("%s: its file was changed or freed", bitstream.name.c_str());
    }
}

int parse(const char *function, void *handle, File file, bool header_only, bool saves,
          void *pointer) {
    return call(function, [&](Call &call) {
        Handle &owner = call.get<Handle>(handle);
        Bitstream &bitstream = call.get<Bitstream>(pointer, &owner);
        need(file.start != nullptr && file.num_bytes != 0);
        bitstream.parsed = Bitstream::NOTHING;
        ++bitstream.num_parsed;
        bitstream.facts = Facts();
        const Status status = read_facts(file, header_only, bitstream.facts);
        if (status != SUCCESS) {
            throw Refusal{status};
        }
        bitstream.file = file;
        if (saves) {
            bitstream.saved.assign(file.start, file.start + file.num_bytes);
            bitstream.file.start = bitstream.saved.data();
        }
        bitstream.hash = header_only ? 0 : hash_of(file);
        bitstream.parsed = header_only ? Bitstream::HEADER : Bitstream::WHOLE;
    });
}

int property(const char *function, int type, int *value) {
    return call(function, [&](Call &) {
        need(type >= 0 && type < 3 && value != nullptr);
        *value = VERSION[type];
    });
}

template <typename T> int destroy(const char *function, void *pointer) {
    return call(function, Fault::after, [&](Call &call) { call.end(call.get<T>(pointer)); });
}

template <typename T> int destroy_buffer(const char *function, void *pointer) {
    return call(function, Fault::after, [&](Call &call) {
        T &buffer = call.get<T>(pointer);
        // Stricter than NVIDIA, whose samples do this, though just before they destroy the state.
        if (buffer.num_attached != 0) {
            call.violation("%s is attached to a state", buffer.name.c_str());
        }
        call.end(buffer);
        call.release(buffer.allocator, buffer.memory);
    });
}

template <typename T>
int attach(const char *function, void *state_pointer, void *buffer_pointer, T *State::*member) {
    return call(function, [&](Call &call) {
        State &state = call.get<State>(state_pointer);
        T &buffer = call.get<T>(buffer_pointer, state.handle);
        call.idle(buffer, "is attached");
        if (state.*member != nullptr) {
            --(state.*member)->num_attached;
        }
        ++buffer.num_attached;
        state.*member = &buffer;
    });
}

State &get_batched(Call &call, void *pointer, const Handle &owner) {
    State &state = call.get<State>(pointer, &owner);
    if (state.decoder != nullptr) {
        call.violation("%s was made for %s, and not for batches", state.name.c_str(),
                       state.decoder->name.c_str());
        throw Refusal{INVALID_PARAMETER};
    }
    call.need_context("nvJPEG uses the device");
    return state;
}

// Device memory for the planes of as many images as there are cores.
void reserve(const Call &call, State &state, int batch_size, size_t num_samples) {
    const int64_t cores = standin_number("nvjpeg.engines", 2) * standin_number("nvjpeg.cores", 8);
    const size_t num_images = std::min(int64_t{batch_size}, std::max(cores, int64_t{1}));
    call.grow(state.handle->device, state.batch_memory, num_images * num_samples);
}

// For the phases of one image: the state is the decoder's, and has come as far as `phase`.
State &get_decoupled(Call &call, Handle &owner, void *decoder_pointer, void *state_pointer,
                     int phase) {
    Decoder &decoder = call.get<Decoder>(decoder_pointer, &owner);
    State &state = call.get<State>(state_pointer, &owner);
    if (state.decoder != &decoder) {
        call.violation("%s was not made for %s", state.name.c_str(), decoder.name.c_str());
        throw Refusal{INVALID_PARAMETER};
    }
    if (phase != State::IDLE && state.phase != phase) {
        call.violation("%s: the phase before this one is missing", state.name.c_str());
        throw Refusal{INVALID_PARAMETER};
    }
    return state;
}

int batch_support(const char *function, void *handle, void *bitstream, void **params,
                  int *unsupported) {
    return call(function, [&](Call &call) {
        const Handle &owner = call.get<Handle>(handle);
        const Facts &facts = get_parsed(call, bitstream, &owner).facts;
        const Params *wanted = params != nullptr ? &call.get<Params>(*params, &owner) : nullptr;
        need(unsupported != nullptr);
        *unsupported = support(facts, owner.backend, true, wanted) != SUCCESS;
    });
}

} // namespace

STANDIN_API int nvjpegGetProperty(int type, int *value) { return property(__func__, type, value); }

STANDIN_API int nvjpegGetCudartProperty(int type, int *value) {
    return property(__func__, type, value);
}

STANDIN_API int nvjpegCreateEx(int backend, DeviceAllocator *device, PinnedAllocator *pinned,
                               unsigned flags, void **handle) {
    return call(__func__, [&](Call &call) {
        call.need_context("a handle is bound to the current device");
        need_engines(backend);
        const Allocator device_allocator{allocator_of(call, device, {}), {}};
        const Allocator pinned_allocator{{}, allocator_of(call, pinned, {})};
        Handle &made = call.make<Handle>(nullptr, handle);
        made.backend = backend;
        made.interpolates = (flags & UPSAMPLING_WITH_INTERPOLATION) != 0;
        made.device = device_allocator;
        made.pinned = pinned_allocator;
    });
}

STANDIN_API int nvjpegDestroy(void *handle) {
    return call(__func__, Fault::after, [&](Call &call) {
        Handle &ended = call.get<Handle>(handle);
        if (ended.num_objects != 0) {
            call.violation("%s: %d objects made from it are not destroyed", ended.name.c_str(),
                           ended.num_objects.load());
        }
        call.end(ended);
    });
}

STANDIN_API int nvjpegGetHardwareDecoderInfo(void *handle, unsigned *engines, unsigned *cores) {
    return call(__func__, [&](Call &call) {
        call.get<Handle>(handle);
        need(engines != nullptr && cores != nullptr);
        *engines = static_cast<unsigned>(standin_number("nvjpeg.engines", 2));
        *cores = *engines == 0 ? 0 : static_cast<unsigned>(standin_number("nvjpeg.cores", 8));
    });
}

STANDIN_API int nvjpegJpegStateCreate(void *handle, void **state) {
    return call(__func__, [&](Call &call) {
        Handle &owner = call.get<Handle>(handle);
        call.need_context("a state is bound to the current device");
        call.make<State>(&owner, state);
    });
}

STANDIN_API int nvjpegDecoderStateCreate(void *handle, void *decoder, void **state) {
    return call(__func__, [&](Call &call) {
        Handle &owner = call.get<Handle>(handle);
        Decoder &used = call.get<Decoder>(decoder, &owner);
        call.need_context("a state is bound to the current device");
        call.make<State>(&owner, state).decoder = &used;
    });
}

STANDIN_API int nvjpegJpegStateDestroy(void *state) {
    return call(__func__, Fault::after, [&](Call &call) {
        State &ended = call.get<State>(state);
        call.end(ended);
        for (Buffer *buffer : {static_cast<Buffer *>(ended.pinned),
                               static_cast<Buffer *>(ended.device)}) {
            if (buffer != nullptr) {
                --buffer->num_attached;
            }
        }
        call.release(ended.handle->device, ended.batch_memory);
    });
}

STANDIN_API int nvjpegDecoderCreate(void *handle, int backend, void **decoder) {
    return call(__func__, [&](Call &call) {
        Handle &owner = call.get<Handle>(handle);
        call.need_context("a decoder is bound to the current device");
        need_engines(backend);
        call.make<Decoder>(&owner, decoder).backend = backend;
    });
}

STANDIN_API int nvjpegDecoderDestroy(void *decoder) { return destroy<Decoder>(__func__, decoder); }

STANDIN_API int nvjpegDecodeParamsCreate(void *handle, void **params) {
    return call(__func__, [&](Call &call) {
        call.make<Params>(&call.get<Handle>(handle), params);
    });
}

STANDIN_API int nvjpegDecodeParamsDestroy(void *params) {
    return destroy<Params>(__func__, params);
}

STANDIN_API int nvjpegDecodeParamsSetOutputFormat(void *params, int format) {
    return call(__func__, [&](Call &call) {
        Params &changed = call.get<Params>(params);
        need(format >= UNCHANGED && format <= LAST_FORMAT);
        changed.format = format;
    });
}

STANDIN_API int nvjpegDecodeParamsSetROI(void *params, int left, int top, int width, int height) {
    return call(__func__, [&](Call &call) {
        Params &changed = call.get<Params>(params);
        need(left >= 0 && top >= 0 && std::min(width, height) >= -1);
        need(std::max(width, height) <= 65535);
        changed.left = left;
        changed.top = top;
        changed.width = width;
        changed.height = height;
    });
}

STANDIN_API int nvjpegDecodeParamsSetAllowCMYK(void *params, int allow) {
    return call(__func__,
                [&](Call &call) { call.get<Params>(params).allows_cmyk = allow != 0; });
}

STANDIN_API int nvjpegDecodeParamsSetScaleFactor(void *params, int scale) {
    return call(__func__, [&](Call &call) {
        Params &changed = call.get<Params>(params);
        need(scale >= NO_SCALE && scale <= LAST_SCALE);
        changed.scale = scale;
    });
}

STANDIN_API int nvjpegJpegStreamCreate(void *handle, void **bitstream) {
    return call(__func__, [&](Call &call) {
        call.make<Bitstream>(&call.get<Handle>(handle), bitstream);
    });
}

STANDIN_API int nvjpegJpegStreamDestroy(void *bitstream) {
    return destroy<Bitstream>(__func__, bitstream);
}

STANDIN_API int nvjpegJpegStreamParse(void *handle, const unsigned char *data, size_t length, int,
                                      int save_stream, void *bitstream) {
    return parse(__func__, handle, {data, length}, false, save_stream != 0, bitstream);
}

STANDIN_API int nvjpegJpegStreamParseHeader(void *handle, const unsigned char *data, size_t length,
                                            void *bitstream) {
    return parse(__func__, handle, {data, length}, true, false, bitstream);
}

STANDIN_API int nvjpegJpegStreamGetFrameDimensions(void *bitstream, unsigned *width,
                                                   unsigned *height) {
    return call(__func__, [&](Call &call) {
        const Facts &facts = get_parsed(call, bitstream).facts;
        need(width != nullptr && height != nullptr);
        *width = facts.width;
        *height = facts.height;
    });
}

STANDIN_API int nvjpegJpegStreamGetChromaSubsampling(void *bitstream, int *subsampling) {
    return call(__func__, [&](Call &call) {
        const Facts &facts = get_parsed(call, bitstream).facts;
        need(subsampling != nullptr);
        *subsampling = facts.subsampling();
    });
}

STANDIN_API int nvjpegJpegStreamGetJpegEncoding(void *bitstream, int *encoding) {
    return call(__func__, [&](Call &call) {
        const Facts &facts = get_parsed(call, bitstream).facts;
        need(encoding != nullptr);
        *encoding = facts.process <= LOSSLESS ? facts.process : 0;
    });
}

STANDIN_API int nvjpegGetImageInfo(void *handle, const unsigned char *data, size_t length,
                                   int *num_components, int *subsampling, int *widths,
                                   int *heights) {
    return call(__func__, [&](Call &call) {
        call.get<Handle>(handle);
        need(data && num_components && subsampling && widths && heights);
        Facts facts;
        const Status status = read_facts({data, length}, true, facts);
        if (status != SUCCESS) {
            throw Refusal{status};
        }
        *num_components = facts.num_components;
        *subsampling = facts.subsampling();
        const int max_horizontal = facts.max_horizontal(), max_vertical = facts.max_vertical();
        for (int i = 0; i < MAX_CHANNELS; ++i) {
            const int width = static_cast<int>(facts.width) * facts.horizontal[i];
            const int height = static_cast<int>(facts.height) * facts.vertical[i];
            widths[i] = (width + max_horizontal - 1) / max_horizontal;
            heights[i] = (height + max_vertical - 1) / max_vertical;
        }
    });
}

STANDIN_API int nvjpegBufferPinnedCreate(void *handle, PinnedAllocator *given, void **buffer) {
    return call(__func__, [&](Call &call) {
        Handle &owner = call.get<Handle>(handle);
        const PinnedAllocator allocator = allocator_of(call, given, owner.pinned.pinned);
        call.make<PinnedBuffer>(&owner, buffer).allocator.pinned = allocator;
    });
}

STANDIN_API int nvjpegBufferDeviceCreate(void *handle, DeviceAllocator *given, void **buffer) {
    return call(__func__, [&](Call &call) {
        Handle &owner = call.get<Handle>(handle);
        const DeviceAllocator allocator = allocator_of(call, given, owner.device.device);
        call.make<DeviceBuffer>(&owner, buffer).allocator.device = allocator;
    });
}

STANDIN_API int nvjpegBufferPinnedDestroy(void *buffer) {
    return destroy_buffer<PinnedBuffer>(__func__, buffer);
}

STANDIN_API int nvjpegBufferDeviceDestroy(void *buffer) {
    return destroy_buffer<DeviceBuffer>(__func__, buffer);
}

STANDIN_API int nvjpegStateAttachPinnedBuffer(void *state, void *buffer) {
    return attach(__func__, state, buffer, &State::pinned);
}

STANDIN_API int nvjpegStateAttachDeviceBuffer(void *state, void *buffer) {
    return attach(__func__, state, buffer, &State::device);
}

STANDIN_API int nvjpegDecoderJpegSupported(void *decoder, void *bitstream, void *params,
                                           int *unsupported) {
    return call(__func__, [&](Call &call) {
        const Decoder &asked = call.get<Decoder>(decoder);
        const Facts &facts = get_parsed(call, bitstream, asked.handle).facts;
        const Params &wanted = call.get<Params>(params, asked.handle);
        need(unsupported != nullptr);
        *unsupported = support(facts, asked.backend, false, &wanted) != SUCCESS;
    });
}

STANDIN_API int nvjpegDecodeBatchedSupported(void *handle, void *bitstream, int *unsupported) {
    return batch_support(__func__, handle, bitstream, nullptr, unsupported);
}

STANDIN_API int nvjpegDecodeBatchedSupportedEx(void *handle, void *bitstream, void *params,
                                               int *unsupported) {
    return batch_support(__func__, handle, bitstream, &params, unsupported);
}

STANDIN_API int nvjpegDecodeJpegHost(void *handle, void *decoder, void *state_pointer,
                                     void *params_pointer, void *bitstream_pointer) {
    return call(__func__, Fault::late, [&](Call &call) {
        Handle &owner = call.get<Handle>(handle);
        State &state = get_decoupled(call, owner, decoder, state_pointer, State::IDLE);
        const Params &params = call.get<Params>(params_pointer, &owner);
        Bitstream &bitstream = get_parsed(call, bitstream_pointer, &owner);
        if (bitstream.parsed != Bitstream::WHOLE) {
            call.violation("%s: only a header was parsed", bitstream.name.c_str());
            throw Refusal{INVALID_PARAMETER};
        }
        if (state.pinned == nullptr || params.format != RGBI) {
            standin_violation("%s: this stand-in needs a pinned buffer and makes interleaved RGB, "
                              "though nvJPEG does otherwise",
                              call.function);
        }
        PinnedBuffer &pinned = *state.pinned;
        call.enter(pinned);
        // The state itself may be busy with its last image: NVIDIA's sample waits after this phase.
        call.idle(pinned, "is rewritten");
        check_file(call, bitstream);
        state.phase = State::IDLE;
        const Status status =
            support(bitstream.facts, state.decoder->backend, false, &params);
        if (status != SUCCESS) {
            throw Refusal{status};
        }
        const Region region = region_of(call, params, bitstream.facts);
        if (!is_sound(bitstream.file, bitstream.hash)) {
            throw Refusal{BAD_JPEG};
        }
        state.num_samples = bitstream.facts.num_samples();
        const size_t file_bytes = bitstream.file.num_bytes;
        state.staged_bytes = sizeof(Staged) + file_bytes;
        // nvJPEG keeps the coefficients here, of two bytes each; this stand-in keeps the file.
        call.grow(pinned.allocator, pinned.memory, 2 * state.num_samples + state.staged_bytes);
        const Staged staged{file_bytes, region.left, region.top, owner.interpolates};
        std::memcpy(pinned.memory.start, &staged, sizeof staged);
        std::memcpy(pinned.memory.start + sizeof staged, bitstream.file.start, file_bytes);
        pinned.contents = state.contents = ++num_host_phases;
        if (call.planted == 0) {
            state.phase = State::ON_HOST;
        }
        state.region = region;
        state.source = &pinned;
        state.bitstream = &bitstream;
        state.parsed = bitstream.num_parsed;
    });
}

STANDIN_API int nvjpegDecodeJpegTransferToDevice(void *handle, void *decoder, void *state_pointer,
                                                 void *bitstream_pointer, void *stream) {
    return call(__func__, Fault::late, [&](Call &call) {
        Handle &owner = call.get<Handle>(handle);
        State &state = get_decoupled(call, owner, decoder, state_pointer, State::ON_HOST);
        Bitstream &bitstream = get_parsed(call, bitstream_pointer, &owner);
        call.need_context("nvJPEG uses the device");
        if (state.bitstream != &bitstream || state.parsed != bitstream.num_parsed) {
            call.violation("%s holds another file than in the host phase", bitstream.name.c_str());
        }
        check_file(call, bitstream);
        if (state.device == nullptr) {
            call.violation("%s has no device buffer", state.name.c_str());
            throw Refusal{INVALID_PARAMETER};
        }
        PinnedBuffer &pinned = call.get<PinnedBuffer>(static_cast<Object *>(state.source), &owner);
        DeviceBuffer &device = *state.device;
        call.enter(device);
        if (pinned.contents != state.contents) {
            call.violation("%s was rewritten since the host phase of %s", pinned.name.c_str(),
                           state.name.c_str());
        }
        call.idle(state, "begins another image");
        call.idle(device, "is rewritten");
        // Coefficients and planes.
        call.grow(device.allocator, device.memory, 3 * state.num_samples + state.staged_bytes);
        const size_t num_bytes = state.staged_bytes;
        const uint64_t contents = state.contents;
        // It reads what is there when it runs, whoever wrote that.
        enqueue(stream, "nvJPEG's copy to the device",
                {{&state, state.decoder, &bitstream, &pinned, &device}, [=, &pinned, &device] {
                     const size_t most = std::min(pinned.memory.num_bytes, device.memory.num_bytes);
                     std::memcpy(device.memory.start, pinned.memory.start,
                                 std::min(num_bytes, most));
                     device.contents = contents;
                 }});
        state.phase = call.planted == 0 ? State::TRANSFERRED : State::IDLE;
    });
}

STANDIN_API int nvjpegDecodeJpegDevice(void *handle, void *decoder, void *state_pointer,
                                       Image *destination, void *stream) {
    return call(__func__, Fault::late, [&](Call &call) {
        Handle &owner = call.get<Handle>(handle);
        State &state = get_decoupled(call, owner, decoder, state_pointer, State::TRANSFERRED);
        call.need_context("nvJPEG uses the device");
        need(destination != nullptr);
        const Image image = *destination;
        check_target(call, image, state.region);
        DeviceBuffer &device = call.get<DeviceBuffer>(static_cast<Object *>(state.device), &owner);
        state.phase = State::IDLE;
        const uint64_t contents = state.contents;
        const bool enforced = is_enforced();
        const Region region = state.region;
        enqueue(stream, "nvJPEG's decoding", {{&state, state.decoder, &device}, [=, &device] {
                    if (enforced && device.contents != contents) {
                        standin_violation("nvjpegDecodeJpegDevice: %s: the decoding ran before "
                                          "the transfer: their streams are not ordered",
                                          device.name.c_str());
                    }
                    // After an early rewrite, this is another image's.
                    Staged staged;
                    std::memcpy(&staged, device.memory.start, sizeof staged);
                    const size_t most = device.memory.num_bytes - sizeof staged;
                    const File file{device.memory.start + sizeof staged,
                                    std::min(staged.num_bytes, most)};
                    const Region part{staged.left, staged.top, region.width, region.height};
                    write_pixels(file, staged.interpolates, part, image);
                }});
        standin_add("nvjpeg.hybrid_images", call.planted == 0 ? 1 : 0);
    });
}

STANDIN_API int nvjpegDecodeBatchedInitialize(void *handle, void *state_pointer, int batch_size,
                                              int max_cpu_threads, int format) {
    return call(__func__, [&](Call &call) {
        State &state = get_batched(call, state_pointer, call.get<Handle>(handle));
        need(batch_size > 0 && max_cpu_threads > 0);
        if (format != RGBI) {
            standin_violation("%s: this stand-in makes interleaved RGB only", call.function);
        }
        call.idle(state, "is set up");
        state.batch_size = batch_size;
        state.has_failed = false;
    });
}

STANDIN_API int nvjpegDecodeBatchedPreAllocate(void *handle, void *state_pointer, int batch_size,
                                               int width, int height, int subsampling,
                                               int format) {
    return call(__func__, [&](Call &call) {
        Handle &owner = call.get<Handle>(handle);
        State &state = get_batched(call, state_pointer, owner);
        need(batch_size > 0 && width > 0 && height > 0 && subsampling >= CSS_UNKNOWN);
        need(subsampling <= CSS_410V && format >= UNCHANGED && format <= LAST_FORMAT);
        call.idle(state, "allocates");
        if (owner.backend == HARDWARE) {
            const size_t columns = (width + 15) / 16 * 16, rows = (height + 15) / 16 * 16;
            reserve(call, state, batch_size, 3 * columns * rows);
        }
    });
}

STANDIN_API int nvjpegDecodeBatched(void *handle, void *state_pointer,
                                    const unsigned char *const *data, const size_t *lengths,
                                    Image *destinations, void *stream) {
    struct Item {
        File file;
        uint64_t hash;
        Region region;
        Image image;
        bool is_skipped;
    };
    return call(__func__, Fault::late, [&](Call &call) {
        Handle &owner = call.get<Handle>(handle);
        State &state = get_batched(call, state_pointer, owner);
        need(data != nullptr && lengths != nullptr && destinations != nullptr);
        if (state.batch_size == 0 || state.has_failed) {
            call.violation("%s: %s without nvjpegDecodeBatchedInitialize", state.name.c_str(),
                           state.has_failed ? "after a failed batch, another one" : "a batch");
            throw Refusal{INVALID_PARAMETER};
        }
        // Not in the documentation; NVIDIA's samples, DALI and nvImageCodec all wait first.
        call.idle(state, "begins another batch");
        state.has_failed = true;

        std::vector<Item> items;
        size_t most_samples = 0;
        int status = SUCCESS;
        const uint64_t damage = standin_number("nvjpeg.damage", 0);
        for (int i = 0; i < state.batch_size && status == SUCCESS; ++i) {
            const File file{data[i], lengths[i]};
            need(file.start != nullptr && file.num_bytes != 0);
            const uint64_t hash = hash_of(file);
            Facts facts;
            status = read_facts(file, false, facts);
            status = status == SUCCESS ? support(facts, owner.backend, true, nullptr) : status;
            if (status == SUCCESS && !is_sound(file, hash)) {
                status = BAD_JPEG;
            }
            if (status == SUCCESS && damage != 0 && hash % damage == 0) {
                status = hash / damage % 2 == 0 ? JPEG_NOT_SUPPORTED : INTERNAL_ERROR;
            }
            if (status == SUCCESS) {
                const Region whole{0, 0, facts.width, facts.height};
                check_target(call, destinations[i], whole);
                most_samples = std::max(most_samples, facts.num_samples());
                items.push_back({file, hash, whole, destinations[i], false});
            }
        }
        if (status != SUCCESS && !call.is_late) {
            throw Refusal{status};
        }
        reserve(call, state, state.batch_size, most_samples);
        if (call.planted != 0) {
            items.resize(items.size() / 2);
        }

        const uint64_t skip = standin_number("nvjpeg.skip", 0);
        const bool at_call = owner.backend == HARDWARE && is_set("nvjpeg.writes", "at-call");
        for (Item &item : items) {
            standin_add("nvjpeg.batched_images", 1);
            item.is_skipped = skip != 0 && standin_count("nvjpeg.batched_images") % skip == 0;
            standin_add("nvjpeg.skipped_images", item.is_skipped ? 1 : 0);
            if (at_call && !item.is_skipped) {
                write_pixels(item.file, owner.interpolates, item.region, item.image);
            }
        }
        const bool enforced = is_enforced(), interpolates = owner.interpolates;
        enqueue(stream, "nvJPEG's batch", {{&state}, [=, items = std::move(items)] {
                    for (const Item &item : items) {
                        if (enforced && hash_of(item.file) != item.hash) {
                            standin_violation("nvjpegDecodeBatched: the file of image %zu was "
                                              "changed or freed before it was decoded",
                                              static_cast<size_t>(&item - items.data()));
                        }
                        if (!at_call && !item.is_skipped) {
                            write_pixels(item.file, interpolates, item.region, item.image);
                        }
                    }
                }});
        if (status != SUCCESS) {
            throw Refusal{status};
        }
        state.has_failed = call.planted != 0;
    });
}

// JPEG files for the stand-in of nvJPEG (`nvjpeg.cpp`, its only user): what a file's markers say,
// whether its Huffman codes are sound, and its pixels by libjpeg-turbo.
#pragma once

#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <unordered_set>
#include <vector>

#include <jpeglib.h>

#include <jerror.h>

// nvJPEG's statuses.
enum Status {
    SUCCESS = 0,
    INVALID_PARAMETER = 2,
    BAD_JPEG = 3,
    JPEG_NOT_SUPPORTED = 4,
    ALLOCATOR_FAILURE = 5,
    ARCH_MISMATCH = 7,
    INTERNAL_ERROR = 8,
    IMPLEMENTATION_NOT_SUPPORTED = 9,
    INCOMPLETE_BITSTREAM = 10,
};

// nvJPEG's names for the sampling of chroma.
enum Subsampling {
    CSS_444,
    CSS_422,
    CSS_420,
    CSS_440,
    CSS_411,
    CSS_410,
    CSS_GRAY,
    CSS_410V,
    CSS_UNKNOWN = -1,
};

// Frame markers: their second byte, which is nvJPEG's name for the encoding, too.
constexpr int BASELINE = 0xc0, EXTENDED = 0xc1, PROGRESSIVE = 0xc2, LOSSLESS = 0xc3;

constexpr int MAX_CHANNELS = 4;

struct File {
    const unsigned char *start;
    size_t num_bytes;
};

inline uint64_t hash_of(File file) {
    uint64_t hash = file.num_bytes;
    size_t at = 0;
    for (; at < file.num_bytes; at += sizeof hash) {
        uint64_t word = 0;
        const size_t left = file.num_bytes - at;
        std::memcpy(&word, file.start + at, left < sizeof word ? left : sizeof word);
        hash = (hash ^ word) * 0x9e3779b97f4a7c15;
        hash ^= hash >> 29;
    }
    return hash;
}

struct Facts {
    int process = 0;
    int precision = 0;
    unsigned width = 0, height = 0;
    int num_components = 0;
    int horizontal[MAX_CHANNELS] = {}, vertical[MAX_CHANNELS] = {};
    // Whether the first scan holds all components, and no other one follows.
    bool one_scan = false;

    int max_horizontal() const { return max_of(horizontal); }
    int max_vertical() const { return max_of(vertical); }

    // Samples of all components, in whole blocks.
    size_t num_samples() const {
        const size_t columns = (width + 8 * max_horizontal() - 1) / (8 * max_horizontal());
        const size_t rows = (height + 8 * max_vertical() - 1) / (8 * max_vertical());
        size_t blocks = 0;
        for (int i = 0; i < num_components; ++i) {
            blocks += columns * horizontal[i] * rows * vertical[i];
        }
        return 64 * blocks;
    }

    Subsampling subsampling() const {
        if (num_components == 1) {
            return CSS_GRAY;
        }
        const bool alike = horizontal[1] == horizontal[2] && vertical[1] == vertical[2];
        if (num_components != 3 || !alike || horizontal[0] % horizontal[1] != 0 ||
            vertical[0] % vertical[1] != 0) {
            return CSS_UNKNOWN;
        }
        const int columns = horizontal[0] / horizontal[1], rows = vertical[0] / vertical[1];
        constexpr struct {
            int columns, rows;
            Subsampling name;
        } KNOWN[] = {{1, 1, CSS_444}, {2, 1, CSS_422}, {2, 2, CSS_420}, {1, 2, CSS_440},
                     {4, 1, CSS_411}, {4, 2, CSS_410}, {2, 4, CSS_410V}};
        for (const auto &known : KNOWN) {
            if (known.columns == columns && known.rows == rows) {
                return known.name;
            }
        }
        return CSS_UNKNOWN;
    }

  private:
    int max_of(const int (&factors)[MAX_CHANNELS]) const {
        int most = 1;
        for (int i = 0; i < num_components; ++i) {
            most = factors[i] > most ? factors[i] : most;
        }
        return most;
    }
};

// The body of a frame's marker segment.
inline Status read_frame(const unsigned char *body, size_t num_bytes, Facts &facts) {
    if (facts.num_components != 0 || num_bytes < 6 || num_bytes < 6 + 3u * body[5]) {
        return BAD_JPEG;
    }
    facts.precision = body[0];
    facts.height = body[1] << 8 | body[2];
    facts.width = body[3] << 8 | body[4];
    const int num_components = body[5];
    if (facts.width == 0 || num_components == 0) {
        return BAD_JPEG;
    }
    // A height of 0 says that it follows the first scan.
    if (facts.height == 0 || num_components > MAX_CHANNELS) {
        return JPEG_NOT_SUPPORTED;
    }
    for (int i = 0; i < num_components; ++i) {
        facts.horizontal[i] = body[6 + 3 * i + 1] >> 4;
        facts.vertical[i] = body[6 + 3 * i + 1] & 15;
        if (facts.horizontal[i] < 1 || facts.horizontal[i] > 4 || facts.vertical[i] < 1 ||
            facts.vertical[i] > 4) {
            return BAD_JPEG;
        }
    }
    facts.num_components = num_components;
    return SUCCESS;
}

// Reads a file's markers, to its end or only to the first scan.
inline Status read_facts(File file, bool header_only, Facts &facts) {
    const unsigned char *const bytes = file.start;
    const size_t end = file.num_bytes;
    if (end < 2 || bytes[0] != 0xff || bytes[1] != 0xd8) {
        return BAD_JPEG;
    }
    int num_scans = 0;
    for (size_t at = 2;;) {
        while (at + 1 < end && bytes[at] == 0xff && bytes[at + 1] == 0xff) {
            ++at;
        }
        if (at + 1 >= end) {
            return INCOMPLETE_BITSTREAM;
        }
        if (bytes[at] != 0xff) {
            return BAD_JPEG;
        }
        const int marker = bytes[at + 1];
        at += 2;
        if (marker == 0xd9) {
            return num_scans > 0 ? SUCCESS : BAD_JPEG;
        }
        if (marker == 0x01 || (marker >= 0xd0 && marker <= 0xd8)) {
            continue;
        }
        const size_t length = at + 2 <= end ? bytes[at] << 8 | bytes[at + 1] : SIZE_MAX;
        if (length > end - at) {
            return INCOMPLETE_BITSTREAM;
        }
        if (length < 3) {
            return BAD_JPEG;
        }
        const unsigned char *const body = bytes + at + 2;
        at += length;
        const bool is_table = marker == 0xc4 || marker == 0xc8 || marker == 0xcc;
        if (marker >= 0xc0 && marker <= 0xcf && !is_table) {
            facts.process = marker;
            const Status status = read_frame(body, length - 2, facts);
            if (status != SUCCESS) {
                return status;
            }
        } else if (marker == 0xda) {
            if (facts.num_components == 0) {
                return BAD_JPEG;
            }
            facts.one_scan = num_scans++ == 0 && body[0] == facts.num_components;
            if (header_only) {
                return SUCCESS;
            }
            // Codes hold no marker but those of restarts.
            do {
                const void *const next = std::memchr(bytes + at, 0xff, end - at);
                at = next ? static_cast<const unsigned char *>(next) - bytes + 1 : end;
            } while (at < end && (bytes[at] == 0 || (bytes[at] >= 0xd0 && bytes[at] <= 0xd7)));
            --at;
        }
    }
}

struct Picture {
    unsigned width = 0, height = 0;
    // Interleaved RGB, rows without padding.
    std::vector<unsigned char> pixels;
};

// libjpeg ends the program when a file is broken, unless it is told otherwise.
struct JpegErrors : jpeg_error_mgr {
    jmp_buf broken;

    JpegErrors() {
        jpeg_std_error(this);
        error_exit = [](j_common_ptr info) {
            std::longjmp(static_cast<JpegErrors *>(info->err)->broken, 1);
        };
        emit_message = [](j_common_ptr info, int level) {
            // nvJPEG goes on where a file is merely untidy.
            if (level < 0 && info->err->msg_code != JWRN_EXTRANEOUS_DATA) {
                ++info->err->num_warnings;
            }
        };
    }
};

// Runs `read` on a file whose header was read; false if it is broken. libjpeg jumps out of `read`,
// so nothing there may need its destructor to run.
template <typename Read> bool with_libjpeg(File file, Read read) {
    jpeg_decompress_struct info;
    JpegErrors errors;
    info.err = &errors;
    if (setjmp(errors.broken) != 0) {
        jpeg_destroy_decompress(&info);
        return false;
    }
    jpeg_create_decompress(&info);
    jpeg_mem_src(&info, file.start, file.num_bytes);
    jpeg_read_header(&info, TRUE);
    read(info);
    const bool sound = errors.num_warnings == 0;
    jpeg_destroy_decompress(&info);
    return sound;
}

// Whether all Huffman codes can be read.
inline bool is_sound(File file, uint64_t hash) {
    // Large files are met again and again while buffers are warmed up. Never destroyed, as threads
    // may still run when the program ends.
    static auto &lock = *new std::mutex;
    static auto &known = *new std::unordered_set<uint64_t>;
    {
        std::lock_guard<std::mutex> guard(lock);
        if (known.count(hash) != 0) {
            return true;
        }
    }
    if (!with_libjpeg(file, [](jpeg_decompress_struct &info) { jpeg_read_coefficients(&info); })) {
        return false;
    }
    std::lock_guard<std::mutex> guard(lock);
    known.insert(hash);
    return true;
}

// Where the file is broken, as much of it as could be read.
inline std::shared_ptr<const Picture> decode(File file, bool interpolates) {
    static auto &lock = *new std::mutex;
    static uint64_t last_hash;
    static auto &last = *new std::shared_ptr<const Picture>;
    const uint64_t hash = hash_of(file) ^ (interpolates ? 1 : 0);
    {
        std::lock_guard<std::mutex> guard(lock);
        if (last && last_hash == hash) {
            return last;
        }
    }
    const auto picture = std::make_shared<Picture>();
    std::vector<unsigned char> inks;
    with_libjpeg(file, [&](jpeg_decompress_struct &info) {
        const bool is_cmyk = info.num_components == 4;
        info.out_color_space = is_cmyk ? JCS_CMYK : JCS_RGB;
        info.do_fancy_upsampling = interpolates ? TRUE : FALSE;
        info.dct_method = JDCT_ISLOW;
        jpeg_start_decompress(&info);
        const size_t width = info.output_width;
        picture->width = info.output_width;
        picture->height = info.output_height;
        picture->pixels.resize(3 * width * info.output_height);
        inks.resize(is_cmyk ? 4 * width : 0);
        while (info.output_scanline < info.output_height) {
            unsigned char *const row = &picture->pixels[3 * width * info.output_scanline];
            JSAMPROW lines[1] = {is_cmyk ? inks.data() : row};
            if (jpeg_read_scanlines(&info, lines, 1) == 0) {
                break;
            }
            for (size_t i = 0; is_cmyk && i < 3 * width; ++i) {
                // Adobe's inks are stored upside down.
                const int ink = inks[i / 3 * 4 + i % 3], black = inks[i / 3 * 4 + 3];
                const bool inverted = info.saw_Adobe_marker != 0;
                const int light = inverted ? ink * black : (255 - ink) * (255 - black);
                row[i] = static_cast<unsigned char>(light / 255);
            }
        }
    });
    std::lock_guard<std::mutex> guard(lock);
    last_hash = hash;
    last = picture;
    return picture;
}

/* libjpeg-turbo's scanline interface for Rust: a region of an image, and nothing decoded below it.
 *
 * The interface reports errors by longjmp and hands out structs whose layout depends on its build, so it is kept on this side. Each function that can fail
 * returns 0, or -1 with a message in the handle. One image at a time: header, then start, then read.
 *
 * Memory: all that libjpeg takes for an image comes from an arena that is emptied, not freed, before the next one, tables that the image defines included. So
 * a used handle knows nothing of earlier images, and decoding a baseline file allocates nothing once the arena has grown. Whole-image buffers of progressive
 * files are libjpeg's own (its virtual arrays). */
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

/* For SIMD: rows begin at such addresses and may be written up to such a length. */
#define ALIGNMENT 64
#define ROW_PADDING 128
/* An arena above this is given back after an image. */
#define MAX_KEPT_BYTES ((size_t)16 << 20)
#define CHUNK_BYTES ((size_t)256 << 10)
/* Rows asked for at once; libjpeg gives as many as it has. */
#define MAX_ROWS 16

typedef struct chunk {
    struct chunk *next;
    size_t size, used;
    unsigned char *bytes;
} chunk;

typedef struct {
    /* First, so that a pointer to it is one to the handle. */
    struct jpeg_decompress_struct info;
    struct jpeg_error_mgr errors;
    struct jpeg_source_mgr source;
    struct jpeg_progress_mgr progress;
    jmp_buf failed;
    char message[JMSG_LENGTH_MAX];
    int max_scans;
    chunk *arena;
    void (*own_free_pool)(j_common_ptr, int);
    /* Rows that are to be skipped and read. */
    uint32_t top, num_rows;
} decoder;

typedef struct {
    uint32_t width, height;
    /* Whether the decoder gives CMYK, and whether codes are arithmetic (any number of pixels may hide in a byte). */
    int32_t is_cmyk, is_arithmetic;
} jpeg_header;

/* In pixels of the image. */
typedef struct {
    uint32_t left, top, width, height;
} jpeg_region;

/* ---- the arena ---- */

static void *arena_take(decoder *d, size_t size) {
    size = (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    for (chunk *c = d->arena; c != NULL; c = c->next)
        if (c->size - c->used >= size) {
            void *taken = c->bytes + c->used;
            c->used += size;
            return taken;
        }
    size_t chunk_size = size > CHUNK_BYTES ? size : CHUNK_BYTES;
    chunk *c = malloc(sizeof(chunk) + chunk_size + ALIGNMENT);
    if (c == NULL)
        ERREXIT1((j_common_ptr)&d->info, JERR_OUT_OF_MEMORY, 0);
    uintptr_t start = (uintptr_t)(c + 1);
    c->bytes = (unsigned char *)((start + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    c->size = chunk_size;
    c->used = size;
    c->next = d->arena;
    d->arena = c;
    return c->bytes;
}

static void arena_free(decoder *d) {
    while (d->arena != NULL) {
        chunk *next = d->arena->next;
        free(d->arena);
        d->arena = next;
    }
}

static void arena_reset(decoder *d) {
    size_t kept = 0;
    for (chunk *c = d->arena; c != NULL; c = c->next) {
        kept += c->size;
        c->used = 0;
    }
    if (kept > MAX_KEPT_BYTES)
        arena_free(d);
}

static void *take_bytes(j_common_ptr info, int pool, size_t size) {
    (void)pool;
    return arena_take((decoder *)info, size);
}

/* Both kinds of arrays: pointers to rows that lie side by side. */
static void *take_rows(j_common_ptr info, size_t row_bytes, JDIMENSION num_rows) {
    decoder *d = (decoder *)info;
    row_bytes = (row_bytes + ROW_PADDING - 1) / ROW_PADDING * ROW_PADDING;
    if (num_rows != 0 && row_bytes > SIZE_MAX / 2 / num_rows)
        ERREXIT1(info, JERR_OUT_OF_MEMORY, 1);
    unsigned char **rows = arena_take(d, num_rows * sizeof(unsigned char *));
    unsigned char *bytes = arena_take(d, num_rows * row_bytes);
    for (JDIMENSION i = 0; i < num_rows; i++)
        rows[i] = bytes + i * row_bytes;
    return rows;
}

static JSAMPARRAY take_samples(j_common_ptr info, int pool, JDIMENSION width, JDIMENSION num_rows) {
    (void)pool;
    return take_rows(info, (size_t)width * sizeof(JSAMPLE), num_rows);
}

static JBLOCKARRAY take_blocks(j_common_ptr info, int pool, JDIMENSION width, JDIMENSION num_rows) {
    (void)pool;
    return take_rows(info, (size_t)width * sizeof(JBLOCK), num_rows);
}

/* What libjpeg's own manager holds (virtual arrays) goes; the arena is emptied before the next image. */
static void free_pool(j_common_ptr info, int pool) {
    if (pool == JPOOL_IMAGE)
        ((decoder *)info)->own_free_pool(info, pool);
}

/* ---- errors and progress ---- */

static void fail(j_common_ptr info) {
    decoder *d = (decoder *)info;
    d->errors.format_message(info, d->message);
    longjmp(d->failed, 1);
}

/* Warnings leave an image, if perhaps a damaged one. */
static void ignore_message(j_common_ptr info, int level) {
    if (level < 0)
        info->err->num_warnings++;
}

static void print_nothing(j_common_ptr info) { (void)info; }

static void limit_scans(j_common_ptr info) {
    decoder *d = (decoder *)info;
    if (d->info.input_scan_number > d->max_scans) {
        snprintf(d->message, sizeof d->message, "Progressive JPEG image has more than %d scans", d->max_scans);
        longjmp(d->failed, 1);
    }
}

/* ---- the source: all bytes at once ---- */

static void source_begins(j_decompress_ptr info) { (void)info; }

/* As libjpeg's own sources: a file that ends early gets an end marker. */
static boolean source_ended(j_decompress_ptr info) {
    static const JOCTET END[4] = {0xff, JPEG_EOI, 0, 0};
    WARNMS(info, JWRN_JPEG_EOF);
    info->src->next_input_byte = END;
    info->src->bytes_in_buffer = 2;
    return TRUE;
}

static void source_skip(j_decompress_ptr info, long num_bytes) {
    if (num_bytes <= 0)
        return;
    if ((size_t)num_bytes > info->src->bytes_in_buffer) {
        (void)source_ended(info);
        return;
    }
    info->src->next_input_byte += num_bytes;
    info->src->bytes_in_buffer -= (size_t)num_bytes;
}

static void source_ends(j_decompress_ptr info) { (void)info; }

/* ---- what Rust calls ---- */

void nepa_jpeg_free(decoder *d) {
    if (d == NULL)
        return;
    if (d->info.mem != NULL) {
        /* Frees what libjpeg's manager took itself. */
        d->info.mem->free_pool = d->own_free_pool;
        jpeg_destroy_decompress(&d->info);
    }
    arena_free(d);
    free(d);
}

static int create(decoder *d) {
    d->info.err = jpeg_std_error(&d->errors);
    d->errors.error_exit = fail;
    d->errors.emit_message = ignore_message;
    d->errors.output_message = print_nothing;
    if (setjmp(d->failed))
        return -1;
    jpeg_create_decompress(&d->info);
    d->own_free_pool = d->info.mem->free_pool;
    d->info.mem->alloc_small = take_bytes;
    d->info.mem->alloc_large = take_bytes;
    d->info.mem->alloc_sarray = take_samples;
    d->info.mem->alloc_barray = take_blocks;
    d->info.mem->free_pool = free_pool;
    d->progress.progress_monitor = limit_scans;
    d->info.progress = &d->progress;
    d->source.init_source = source_begins;
    d->source.fill_input_buffer = source_ended;
    d->source.skip_input_data = source_skip;
    d->source.resync_to_restart = jpeg_resync_to_restart;
    d->source.term_source = source_ends;
    d->info.src = &d->source;
    return 0;
}

decoder *nepa_jpeg_new(int max_scans) {
    decoder *d = calloc(1, sizeof(decoder));
    if (d == NULL)
        return NULL;
    d->max_scans = max_scans;
    if (create(d) != 0) {
        free(d);
        return NULL;
    }
    return d;
}

const char *nepa_jpeg_message(const decoder *d) { return d->message; }

/* Forgets the image before. Its tables lie in the arena, so they must not be seen any more. */
static void forget(decoder *d) {
    jpeg_abort_decompress(&d->info);
    for (int i = 0; i < NUM_QUANT_TBLS; i++)
        d->info.quant_tbl_ptrs[i] = NULL;
    for (int i = 0; i < NUM_HUFF_TBLS; i++) {
        d->info.dc_huff_tbl_ptrs[i] = NULL;
        d->info.ac_huff_tbl_ptrs[i] = NULL;
    }
    d->info.marker_list = NULL;
    d->errors.num_warnings = 0;
    arena_reset(d);
}

/* Reads up to the first scan. `bytes` must live until the image is read. */
int nepa_jpeg_header(decoder *d, const unsigned char *bytes, size_t num_bytes, jpeg_header *header) {
    if (setjmp(d->failed))
        return -1;
    forget(d);
    d->source.next_input_byte = bytes;
    d->source.bytes_in_buffer = num_bytes;
    jpeg_read_header(&d->info, TRUE);
    header->width = d->info.image_width;
    header->height = d->info.image_height;
    header->is_cmyk = d->info.jpeg_color_space == JCS_CMYK || d->info.jpeg_color_space == JCS_YCCK;
    header->is_arithmetic = d->info.arith_code;
    return 0;
}

/* Begins decoding to RGB, or to CMYK. `region` grows to the columns that will be written. */
int nepa_jpeg_start(decoder *d, int to_cmyk, jpeg_region *region) {
    struct jpeg_decompress_struct *info = &d->info;
    if (setjmp(d->failed))
        return -1;
    info->out_color_space = to_cmyk ? JCS_CMYK : JCS_EXT_RGB;
    jpeg_start_decompress(info);
    if (region->left != 0 || region->width != info->output_width) {
        JDIMENSION left = region->left, width = region->width;
        jpeg_crop_scanline(info, &left, &width);
        region->left = left;
        region->width = width;
    }
    d->top = region->top;
    d->num_rows = region->height;
    return 0;
}

/* Reads the region's rows, `pitch` bytes apart. What follows in the file is not looked at. */
int nepa_jpeg_read(decoder *d, unsigned char *pixels, size_t pitch) {
    struct jpeg_decompress_struct *info = &d->info;
    if (setjmp(d->failed))
        return -1;
    if (d->top != 0)
        jpeg_skip_scanlines(info, d->top);
    while (info->output_scanline < d->top + d->num_rows) {
        JSAMPROW rows[MAX_ROWS];
        JDIMENSION first = info->output_scanline - d->top, num_rows = d->num_rows - first;
        num_rows = num_rows < MAX_ROWS ? num_rows : MAX_ROWS;
        for (JDIMENSION i = 0; i < num_rows; i++)
            rows[i] = pixels + (size_t)(first + i) * pitch;
        jpeg_read_scanlines(info, rows, num_rows);
    }
    return 0;
}

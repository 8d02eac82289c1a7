/* What the parts of the kernel share.
 *
 *   turbo.c       a batch: threads, contexts, one picture after the other
 *   region.c      a part of one JPEG picture, by libjpeg-turbo
 *   entropy.c     its entropy-coded data, in place of libjpeg's decoder: entropy.h, entropy_tables.c, entropy_blocks.c
 *   scale.c       at which scale the views of a picture are decoded
 *   weights.c     the triangle filter of one axis, in fixed point
 *   resize.c      the two passes of a resampling, in plain C
 *   resize_x86.c  the same passes with vector instructions, byte for byte
 *   resize_avx512.c  and with those of newer processors
 *   transcode.c   a JPEG file written again without loss, with restart markers
 *   planes.c      pictures that are stored as planes of Y, Cb and Cr
 *   chroma.c      the filter of their chroma: resampling and libjpeg's interpolation in one
 *   fine.c        their chroma at the size of luma
 *   color.c       Y, Cb and Cr to RGB and back, and rows of single planes, in plain C
 *   color_x86.c   the same with vector instructions, byte for byte
 *   raw.c         the planes of a JPEG picture, as they are stored in it
 */
#ifndef TORCHSLIP_TURBO_H
#define TORCHSLIP_TURBO_H

#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <jerror.h>
#include <jpeglib.h>

#if !defined(LIBJPEG_TURBO_VERSION_NUMBER) || LIBJPEG_TURBO_VERSION_NUMBER < 2001000
#error "libjpeg-turbo 2.1 or newer is needed: decoding a part of a picture has known faults in older ones"
#endif

/* Loads of the passes may reach this far behind the last pixel they use; every buffer they read has that much room. */
#define SLACK_BYTES 64

/* Larger buffers are given back after the picture that needed them. */
#define KEPT_BYTES ((size_t)32 << 20)

typedef struct {
    void *data;
    size_t size;
} Buffer;

/* `size` bytes whose content is undefined, or NULL. What `buffer` held before is lost. */
void *buffer_reserve(Buffer *buffer, size_t size);
void buffer_release(Buffer *buffer);
/* Gives back what is larger than KEPT_BYTES. */
void buffer_trim(Buffer *buffer);

/* The resampling of one axis: output i is the sum of `sizes[i]` pixels from `first[i]` on, times its weights, plus
 * one half, shifted right. There are `taps` weights for each output, a multiple of 4; those beyond `sizes[i]` are 0. */
typedef struct {
    int count;
    int taps;
    int shift;
    int begin; /* the pixels that any output needs: from here ... */
    int end;   /* ... up to before here */
    bool identity;
    const int32_t *first;
    const int32_t *sizes;
    const int16_t *weights;
    Buffer memory;
} Axis;

/* `length` pixels from `start` on, of a picture that has `whole`. */
typedef struct {
    int start, length, whole;
} Span;

/* The span resized to `resized`, of which the outputs from `shown_begin` to before `shown_end` are wanted. Positions in
 * `axis` are those of the picture decoded at 1 / `denominator`. False: out of memory. */
bool axis_make(Axis *axis, Buffer *temporary, Span span, int resized, int shown_begin, int shown_end, int denominator);

#if defined(__x86_64__) && (defined(__clang__) || __GNUC__ >= 9)
#define HAS_AVX512
#endif

/* What the passes are allowed to use; the processor has to have it too. */
typedef enum { PASSES_BEST, PASSES_PORTABLE, PASSES_AVX2 } Passes;
typedef enum { VECTORS_NONE, VECTORS_AVX2, VECTORS_AVX512 } Vectors;

Vectors vectors_of(Passes passes);
/* Flags of turbo_decode, for tests: the same pixels by other means. */
enum { VARIANT_PORTABLE_PASSES = 1, VARIANT_LIBJPEG_ENTROPY = 2, VARIANT_AVX2_PASSES = 4 };

/* Rows of RGB pixels. `source` is where pixel 0 of the axis would lie, even if only those from `begin` on exist. */
typedef void HorizontalPass(const uint8_t *source, ptrdiff_t source_stride, uint8_t *output, ptrdiff_t output_stride,
                            int rows, const Axis *axis);
/* `width` bytes of each row. `source` is where row 0 of the axis would lie. */
typedef void VerticalPass(const uint8_t *source, ptrdiff_t source_stride, uint8_t *output, ptrdiff_t output_stride,
                          ptrdiff_t width, const Axis *axis);

HorizontalPass horizontal_portable;
VerticalPass vertical_portable;
#if defined(__x86_64__)
HorizontalPass horizontal_avx2;
VerticalPass vertical_avx2;
#endif

/* Single outputs, for what remains at the end of a vector loop. */
void horizontal_rest(const uint8_t *source, uint8_t *output, int from, const Axis *axis);
void vertical_rest(const uint8_t *source, ptrdiff_t source_stride, uint8_t *output, ptrdiff_t from, ptrdiff_t width,
                   const Axis *axis, int row);
#if defined(__x86_64__)
/* One output row. */
void vertical_row_avx2(const uint8_t *source, ptrdiff_t source_stride, uint8_t *output, ptrdiff_t width,
                       const Axis *axis, int row);
#endif

#if defined(HAS_AVX512)
VerticalPass vertical_avx512;
void vertical_row_avx512(const uint8_t *source, ptrdiff_t source_stride, uint8_t *output, ptrdiff_t width,
                         const Axis *axis, int row);

/* A horizontal pass whose weights lie as AVX-512 takes them, for 1 or 3 channels. */
typedef struct {
    int channels, bytes, blocks, pairs, shift;
    const int32_t *bases;
    const void *steps;
} Windows;
/* False: another pass has to do it. */
bool windows_make(Windows *windows, Buffer *memory, const Axis *axis, int channels);
/* `source` is where the pixel `axis->begin` lies, with SLACK_BYTES behind the last one. */
void windowed_rows_avx512(const uint8_t *source, ptrdiff_t source_stride, uint8_t *output, ptrdiff_t output_stride,
                          int rows, const Windows *windows);
#endif

/* What a resampling needs room for. */
typedef struct {
    Buffer middle, windows;
} Room;

/* Resamples into `output`. `source` is where pixel (0, 0) of the two axes would lie. False: out of memory. */
bool resize(const uint8_t *source, ptrdiff_t source_stride, const Axis *rows, const Axis *columns, uint8_t *output,
            ptrdiff_t output_stride, Room *room, Passes passes);

#define MESSAGE_BYTES JMSG_LENGTH_MAX

/* What a thread decodes with, used again from picture to picture and from batch to batch. */
typedef struct {
    struct jpeg_decompress_struct jpeg;
    struct jpeg_error_mgr errors;
    struct jpeg_source_mgr source;
    jmp_buf escape;
    char *message; /* MESSAGE_BYTES, where the reason of a failure goes */
    const uint8_t *scan; /* the entropy-coded data, and what follows */
    size_t scan_bytes;
    struct Entropy *entropy;
    bool refused; /* by entropy.c: libjpeg has to decode the picture */
    Buffer pixels, packed, temporary;
    Room room;
    Axis plane_axes[4]; /* rows and columns of luma, then of chroma */
    Buffer plane_columns[2];
    Axis *axes; /* two for each view: rows, columns */
    int *denominators;
    int views;
} Context;

/* Pixels of a decoded region: `data` is pixel (top, left), with `slack` readable bytes behind the last one. */
typedef struct {
    int top, left, bottom, right;
    size_t slack;
    uint8_t *data;
    ptrdiff_t stride;
} Region;

/* False: `message` says why. */
bool jpeg_make(Context *context);
/* Reads the header. `jpeg_close` must follow, also after a failure, and may be repeated. */
bool jpeg_open(Context *context, const uint8_t *data, size_t size);
/* Decodes at least the region, at 1 / `denominator`, after `jpeg_open`. Sets data, stride, left and right. */
bool jpeg_read_region(Context *context, Region *region, int denominator);
void jpeg_close(Context *context);

bool fail(Context *context, const char *reason);

/* Decodes the scan of `context->jpeg`, which has begun, in place of libjpeg, if it is a common one. MCUs outside of the
 * columns are passed over. If the data is damaged, the reading of the region fails, and `refused` is true. */
void entropy_take_over(Context *context, int first_column, int last_column);
void entropy_trim(Context *context);
void entropy_release(Context *context);
/* What a view is made of, as the caller says it. */
enum { TOP, LEFT, HEIGHT, WIDTH, RESIZED_HEIGHT, RESIZED_WIDTH, WINDOW_TOP, WINDOW_LEFT, OUT_HEIGHT, OUT_WIDTH, FIELDS };

/* The largest of 8, 4, 2 and 1 by which the box can be reduced: by 2 where it is at least `least_ratio` times as large as
 * what it is resized to, by 4 where twice that. 0: never. */
int choose_denominator(const int64_t *view, double least_ratio);

/* The views of one picture. */
typedef struct {
    int64_t views;
    const int64_t *geometry; /* `stride` numbers from view to view */
    int64_t stride;
    int64_t bytes, height; /* of the picture */
} Decodes;

/* Every view has the denominator that it could take, or 0 if it shows nothing. Makes some smaller where fewer decodes
 * are less work in sum; returns the ones that remain, or-ed. */
unsigned join_scales(const Decodes *decodes, int *denominators);

/* The part of an output that is not black: rows and columns of the output. */
typedef struct {
    int top, left, bottom, right;
} Shown;

typedef enum { OUTPUT_RGB, OUTPUT_YUV, OUTPUT_PLANES } Output;

/* Where a view goes. Strides are those of channel, row and column, in bytes. */
typedef struct {
    Output output;
    uint8_t *data; /* red, green, blue; or Y, Cb, Cr; or Y alone */
    const int64_t *strides;
    uint8_t *chroma; /* for OUTPUT_PLANES, of half the size: Cb, Cr */
    const int64_t *chroma_strides;
} Target;

/* The plane of a stored picture, and where it is less fine than luma: by 1 or 2. */
typedef struct {
    int height, width;
    int down_rows, down_columns; /* of the two chroma planes */
    int count;                   /* of planes: 1 or 3 */
    const uint8_t *data[3];
} Planes;

bool is_planes(const uint8_t *data, size_t size);
/* Checks all of the header. False: `message` says why. */
bool planes_open(Context *context, const uint8_t *data, size_t size, Planes *planes);
bool planes_write_view(Context *context, const Planes *planes, const int64_t *view, Shown shown, const Target *target,
                       Passes passes);
/* The planes of the opened JPEG picture one behind the other into `output`; `planes` has their sizes, and `size` how
 * many bytes they take. A count of 0: they have no such form. False: `message` says why. */
bool jpeg_read_planes(Context *context, uint8_t *output, size_t capacity, Planes *planes, size_t *size);

/* The resampling of chroma that goes with that of luma: what `luma` makes of chroma that libjpeg has interpolated to
 * its size. `factor` is 1 or 2, `length` that of the chroma axis. With `halved`, each output is the mean of the two of
 * luma at 2i and 2i + 1, counted from `parity` (0 or 1) before the first. False: out of memory. */
bool axis_make_chroma(Axis *axis, Buffer *temporary, const Axis *luma, int factor, int length, bool interpolated,
                      bool halved, int parity);

/* Rows of one byte per pixel. `source` is where the pixel `axis->begin` lies, with `columns_slack` readable bytes
 * behind the last; room for `columns_room` bytes is needed in each row of the output. */
typedef struct {
    const Axis *axis;
#if defined(HAS_AVX512)
    Windows windows;
    bool windowed;
#endif
    int pairs; /* of taps; 0: the window of a group is too large */
    int dot_taps;
    const int32_t *bases;
    const void *steps;
    const int16_t *dots;
} Columns;
bool columns_make(Columns *columns, Buffer *memory, const Axis *axis, Passes passes);
size_t columns_slack(const Axis *axis);
size_t columns_room(const Axis *axis);
typedef void PlaneRows(const uint8_t *source, ptrdiff_t source_stride, uint8_t *output, ptrdiff_t output_stride,
                       int rows, const Columns *columns);
/* Three rows into one of three bytes per pixel. */
typedef void ColorRow(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, uint8_t *output, int width);

/* Rows of chroma at the size of luma and of Y, Cb and Cr as planes of red, green and blue, as libjpeg makes them.
 * `far` is the row beyond `near`, or NULL; `sums` has room for `count` + 2 numbers. */
typedef struct {
    const uint8_t *near, *far;
    int begin, count, length; /* of the chroma samples that are wanted, and of the row */
    bool doubled, interpolated;
    int turn; /* 1 in the lower of two rows */
} ChromaRow;
typedef void FineRow(const ChromaRow *row, uint16_t *sums, uint8_t *output);
typedef void SplitRow(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, uint8_t *const rgb[3], int width);

PlaneRows plane_rows_portable;
ColorRow to_rgb_portable, interleave_portable;
FineRow fine_row_portable;
SplitRow split_row_portable;
#if defined(__x86_64__)
FineRow fine_row_avx2;
SplitRow split_row_avx2;
bool columns_make_avx2(Columns *columns, Buffer *memory);
PlaneRows plane_rows_avx2;
ColorRow to_rgb_avx2, interleave_avx2;
#endif
#if defined(HAS_AVX512)
PlaneRows plane_rows_avx512;
#endif

/* RGB pixels become Y, Cb and Cr, in place. */
void to_yuv(uint8_t *pixels, size_t count);
void paint_border(const int64_t *view, Shown shown, const Target *target);
/* Writes a picture of three bytes per pixel where the shown part of a view goes; Y, Cb, Cr where not RGB is wanted. */
void write_packed(const uint8_t *pixels, ptrdiff_t stride, Shown shown, const Target *target);

#endif

/* What the parts of the kernel share.
 *
 *   turbo.c       a batch: threads, contexts, one picture after the other
 *   region.c      a part of one JPEG picture, by libjpeg-turbo
 *   entropy.c     its entropy-coded data, in place of libjpeg's decoder
 *   weights.c     the triangle filter of one axis, in fixed point
 *   resize.c      the two passes of a resampling, in plain C
 *   resize_x86.c  the same passes with vector instructions, byte for byte
 *   transcode.c   a JPEG file written again without loss, with restart markers
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

/* `length` pixels from `start` on, resized to `resized`, of which the outputs from `shown_begin` to before `shown_end`
 * are wanted. Positions in `axis` are those of the picture decoded at 1 / `denominator`. False: out of memory. */
bool axis_make(Axis *axis, Buffer *temporary, int start, int length, int resized, int shown_begin, int shown_end,
               int denominator);

typedef enum { PASSES_BEST, PASSES_PORTABLE } Passes;

/* Flags of turbo_decode, for tests: the same pixels by other means. */
enum { VARIANT_PORTABLE_PASSES = PASSES_PORTABLE, VARIANT_LIBJPEG_ENTROPY = 2 };

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

/* Resamples into `output`. `source` is where pixel (0, 0) of the two axes would lie. False: out of memory. */
bool resize(const uint8_t *source, ptrdiff_t source_stride, const Axis *rows, const Axis *columns, uint8_t *output,
            ptrdiff_t output_stride, Buffer *middle, Passes passes);

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
    Buffer pixels, middle, packed, temporary;
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

#endif

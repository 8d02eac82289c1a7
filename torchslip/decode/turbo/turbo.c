/* A batch: every picture is decoded, once or at several scales, and resampled into the places of its views.
 *
 * The threads of a call take the next picture when they are done with one. They end with the call, so that nothing is
 * in the way of a fork; what they decode with stays for the next call. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "turbo.h"

#define EXPORT __attribute__((visibility("default")))

/* Goes up when the arguments of turbo_decode change. */
#define INTERFACE_VERSION 4

#define MAX_SIDE 65535 /* of the box, by the format; of what it is resized to, by choice */

typedef struct {
    int64_t images, views;
    const uint8_t *const *data;
    const int64_t *data_bytes;
    const int64_t *heights_widths; /* [images, 2], as the header says */
    const int64_t *geometry;       /* [views, images, FIELDS] */
    uint8_t *const *outputs;       /* [targets * views, images]: for OUTPUT_PLANES, all of luma, then all of chroma */
    const int64_t *strides;        /* [targets * views, images, 3]: of channel, row and column, in bytes */
    Output output;
    double least_ratio;
    int variant;
    char *messages; /* [images, MESSAGE_BYTES] */
    atomic_llong next, failed;
} Batch;

static Shown shown_part(const int64_t *view) {
    Shown shown;
    int64_t bottom = view[RESIZED_HEIGHT] - view[WINDOW_TOP], right = view[RESIZED_WIDTH] - view[WINDOW_LEFT];
    shown.top = (int)(view[WINDOW_TOP] < 0 ? -view[WINDOW_TOP] : 0);
    shown.left = (int)(view[WINDOW_LEFT] < 0 ? -view[WINDOW_LEFT] : 0);
    shown.bottom = (int)(bottom < view[OUT_HEIGHT] ? bottom : view[OUT_HEIGHT]);
    shown.right = (int)(right < view[OUT_WIDTH] ? right : view[OUT_WIDTH]);
    if (shown.bottom <= shown.top || shown.right <= shown.left) shown = (Shown){0};
    return shown;
}

static bool within(int64_t value, int64_t low, int64_t high) { return value >= low && value <= high; }

static bool is_valid(const int64_t *view, int64_t height, int64_t width) {
    return within(view[HEIGHT], 1, height) && within(view[TOP], 0, height - view[HEIGHT]) &&
           within(view[WIDTH], 1, width) && within(view[LEFT], 0, width - view[WIDTH]) &&
           within(view[RESIZED_HEIGHT], 1, MAX_SIDE) && within(view[RESIZED_WIDTH], 1, MAX_SIDE) &&
           within(view[WINDOW_TOP], -MAX_SIDE, MAX_SIDE) && within(view[WINDOW_LEFT], -MAX_SIDE, MAX_SIDE) &&
           within(view[OUT_HEIGHT], 0, MAX_SIDE) && within(view[OUT_WIDTH], 0, MAX_SIDE);
}

static Passes passes_of(const Batch *batch) {
    return batch->variant & VARIANT_PORTABLE_PASSES ? PASSES_PORTABLE
           : batch->variant & VARIANT_AVX2_PASSES   ? PASSES_AVX2
                                                    : PASSES_BEST;
}

static Target target_of(const Batch *batch, int64_t view, int64_t image) {
    const int64_t index = view * batch->images + image, chroma = index + batch->views * batch->images;
    Target target = {.output = batch->output, .data = batch->outputs[index], .strides = batch->strides + index * 3};

    if (batch->output == OUTPUT_PLANES) {
        target.chroma = batch->outputs[chroma];
        target.chroma_strides = batch->strides + chroma * 3;
    }
    return target;
}

/* Resamples one view out of the decoded region. */
static bool write_view(Context *context, const Batch *batch, const Region *region, const int64_t *view,
                       const Axis *axes, const Target *target) {
    const Shown shown = shown_part(view);
    const int64_t *strides = target->strides;
    const uint8_t *origin =
        region->data - (ptrdiff_t)region->top * region->stride - (ptrdiff_t)region->left * 3;

    paint_border(view, shown, target);
    if (target->output == OUTPUT_RGB && strides[0] == 1 && strides[2] == 3)
        return resize(origin, region->stride, &axes[0], &axes[1],
                      target->data + shown.top * strides[1] + shown.left * strides[2], strides[1], &context->room,
                      passes_of(batch));

    int height = shown.bottom - shown.top, width = shown.right - shown.left;
    ptrdiff_t stride = (ptrdiff_t)width * 3;
    uint8_t *packed = buffer_reserve(&context->packed, (size_t)height * (size_t)stride);
    if (packed == NULL ||
        !resize(origin, region->stride, &axes[0], &axes[1], packed, stride, &context->room, passes_of(batch)))
        return false;
    if (target->output != OUTPUT_RGB) to_yuv(packed, (size_t)height * (size_t)width);
    write_packed(packed, stride, shown, target);
    return true;
}

static bool reserve_views(Context *context, int64_t views) {
    if (context->views >= views) return true;
    Axis *axes = realloc(context->axes, 2 * (size_t)views * sizeof(Axis));
    if (axes != NULL) context->axes = axes;
    int *denominators = realloc(context->denominators, (size_t)views * sizeof(int));
    if (denominators != NULL) context->denominators = denominators;
    if (axes == NULL || denominators == NULL) return false;
    memset(axes + 2 * (size_t)context->views, 0, 2 * (size_t)(views - context->views) * sizeof(Axis));
    context->views = (int)views;
    return true;
}

static const char no_memory[] = "there is not enough memory to resize it";

/* Decodes once for all views that take the picture at this scale. */
static bool decode_at_scale(Context *context, const Batch *batch, int64_t image, int denominator) {
    Region region = {.top = INT32_MAX, .left = INT32_MAX};

    jpeg_close(context);
    if (!jpeg_open(context, batch->data[image], (size_t)batch->data_bytes[image])) return false;
    if (context->jpeg.image_height != batch->heights_widths[2 * image] ||
        context->jpeg.image_width != batch->heights_widths[2 * image + 1])
        return fail(context, "its size is not the one that its header says");
    for (int64_t i = 0; i < batch->views; i++) {
        if (context->denominators[i] != denominator) continue;
        const int64_t *view = batch->geometry + (i * batch->images + image) * FIELDS;
        const Shown shown = shown_part(view);
        Axis *rows = &context->axes[2 * i], *columns = rows + 1;
        int top = (int)view[WINDOW_TOP], left = (int)view[WINDOW_LEFT];
        const Span down = {(int)view[TOP], (int)view[HEIGHT], (int)context->jpeg.image_height};
        const Span across = {(int)view[LEFT], (int)view[WIDTH], (int)context->jpeg.image_width};
        if (!axis_make(rows, &context->temporary, down, (int)view[RESIZED_HEIGHT], top + shown.top, top + shown.bottom,
                       denominator) ||
            !axis_make(columns, &context->temporary, across, (int)view[RESIZED_WIDTH], left + shown.left,
                       left + shown.right, denominator))
            return fail(context, no_memory);
        size_t slack = (size_t)columns->taps * 3 + SLACK_BYTES;
        if (slack > region.slack) region.slack = slack;
        if (rows->begin < region.top) region.top = rows->begin;
        if (rows->end > region.bottom) region.bottom = rows->end;
        if (columns->begin < region.left) region.left = columns->begin;
        if (columns->end > region.right) region.right = columns->end;
    }
    if (!jpeg_read_region(context, &region, denominator)) return false;
    for (int64_t i = 0; i < batch->views; i++) {
        const Target target = target_of(batch, i, image);
        if (context->denominators[i] == denominator &&
            !write_view(context, batch, &region, batch->geometry + (i * batch->images + image) * FIELDS,
                        &context->axes[2 * i], &target))
            return fail(context, no_memory);
    }
    return true;
}

static const char other_size[] = "its size is not the one that its header says";
static const char outside[] = "its crop does not lie within the picture";

static bool resample_planes(Context *context, const Batch *batch, int64_t image) {
    const int64_t height = batch->heights_widths[2 * image], width = batch->heights_widths[2 * image + 1];
    Planes planes;

    if (!planes_open(context, batch->data[image], (size_t)batch->data_bytes[image], &planes)) return false;
    if (planes.height != height || planes.width != width) return fail(context, other_size);
    for (int64_t i = 0; i < batch->views; i++) {
        const int64_t *view = batch->geometry + (i * batch->images + image) * FIELDS;
        const Target target = target_of(batch, i, image);
        if (!is_valid(view, height, width)) return fail(context, outside);
        if (!planes_write_view(context, &planes, view, shown_part(view), &target, passes_of(batch)))
            return fail(context, no_memory);
    }
    return true;
}

static bool decode_image(Context *context, const Batch *batch, int64_t image) {
    const int64_t height = batch->heights_widths[2 * image], width = batch->heights_widths[2 * image + 1];

    if (is_planes(batch->data[image], (size_t)batch->data_bytes[image])) return resample_planes(context, batch, image);
    context->refused = batch->variant & VARIANT_LIBJPEG_ENTROPY;
    if (!reserve_views(context, batch->views)) return fail(context, no_memory);
    for (int64_t i = 0; i < batch->views; i++) {
        int64_t index = i * batch->images + image;
        const int64_t *view = batch->geometry + index * FIELDS;
        if (!is_valid(view, height, width)) return fail(context, outside);
        const Shown shown = shown_part(view);
        if (shown.bottom == shown.top) {
            const Target target = target_of(batch, i, image);
            paint_border(view, shown, &target);
            context->denominators[i] = 0;
        } else {
            context->denominators[i] = choose_denominator(view, batch->least_ratio);
        }
    }
    const Decodes decodes = {.views = batch->views,
                             .geometry = batch->geometry + image * FIELDS,
                             .stride = batch->images * FIELDS,
                             .bytes = batch->data_bytes[image],
                             .height = height};
    const unsigned wanted = join_scales(&decodes, context->denominators);
    for (int denominator = 1; denominator <= 8; denominator *= 2) {
        if (!(wanted & (unsigned)denominator)) continue;
        bool decoded = decode_at_scale(context, batch, image, denominator);
        /* Damaged data gives what libjpeg makes of it. */
        if (!decoded && context->refused) decoded = decode_at_scale(context, batch, image, denominator);
        if (!decoded) return false;
    }
    return true;
}

/* Contexts that no thread uses. Single exchanges instead of a lock, which a fork could leave locked. */
#define KEPT_CONTEXTS 256
static _Atomic(Context *) kept[KEPT_CONTEXTS];

static void context_release(Context *context) {
    for (int i = 0; i < 2 * context->views; i++) buffer_release(&context->axes[i].memory);
    for (int i = 0; i < 4; i++) buffer_release(&context->plane_axes[i].memory);
    for (int i = 0; i < 2; i++) buffer_release(&context->plane_columns[i]);
    free(context->axes);
    free(context->denominators);
    buffer_release(&context->pixels);
    buffer_release(&context->room.middle);
    buffer_release(&context->room.windows);
    buffer_release(&context->packed);
    buffer_release(&context->temporary);
    entropy_release(context);
    free(context);
}

static Context *context_take(char *message) {
    for (int i = 0; i < KEPT_CONTEXTS; i++) {
        Context *context = atomic_load(&kept[i]) == NULL ? NULL : atomic_exchange(&kept[i], NULL);
        if (context != NULL) return context;
    }
    Context *context = calloc(1, sizeof(Context));
    if (context == NULL) {
        snprintf(message, MESSAGE_BYTES, "there is not enough memory for a decoder");
        return NULL;
    }
    context->message = message;
    if (jpeg_make(context)) return context;
    context_release(context);
    return NULL;
}

static void context_give(Context *context) {
    for (int i = 0; i < KEPT_CONTEXTS; i++) {
        Context *none = NULL;
        if (atomic_compare_exchange_strong(&kept[i], &none, context)) return;
    }
    context_release(context);
}

static void *work(void *argument) {
    Batch *batch = argument;
    Context *context = NULL;

    for (int64_t image; (image = atomic_fetch_add(&batch->next, 1)) < batch->images;) {
        char *message = batch->messages + image * MESSAGE_BYTES;
        if (context == NULL && (context = context_take(message)) == NULL) {
            atomic_fetch_add(&batch->failed, 1);
            continue;
        }
        context->message = message;
        bool decoded = decode_image(context, batch, image);
        jpeg_close(context);
        if (!decoded) {
            atomic_fetch_add(&batch->failed, 1);
            if (!*message) fail(context, "it cannot be decoded");
        }
        buffer_trim(&context->pixels);
        buffer_trim(&context->room.middle);
        buffer_trim(&context->packed);
        buffer_trim(&context->temporary);
        entropy_trim(context);
    }
    if (context != NULL) context_give(context);
    return NULL;
}

#define MAX_THREADS 256

EXPORT int turbo_interface_version(void) { return INTERFACE_VERSION; }

EXPORT int turbo_message_bytes(void) { return MESSAGE_BYTES; }

/* 0 if the libjpeg that is loaded is the one that this was compiled for; else `message` says what is wrong. */
EXPORT int turbo_check(char *message) {
    Context *context = context_take(message);
    if (context == NULL) return 1;
    context_give(context);
    return 0;
}

/* Returns the number of pictures that could not be decoded; their messages are not empty. `messages` must be zero. */
EXPORT int64_t turbo_decode(int64_t images, int64_t views, const uint8_t *const *data, const int64_t *data_bytes,
                            const int64_t *heights_widths, const int64_t *geometry, uint8_t *const *outputs,
                            const int64_t *strides, int output, int threads, double least_ratio, int variant,
                            char *messages) {
    Batch batch = {.images = images,
                   .views = views,
                   .data = data,
                   .data_bytes = data_bytes,
                   .heights_widths = heights_widths,
                   .geometry = geometry,
                   .outputs = outputs,
                   .strides = strides,
                   .output = (Output)output,
                   .least_ratio = least_ratio,
                   .variant = variant,
                   .messages = messages};
    pthread_t others[MAX_THREADS];
    int started = 0;

    if (threads > images) threads = (int)images;
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    while (started < threads - 1 && pthread_create(&others[started], NULL, work, &batch) == 0) started++;
    work(&batch);
    for (int i = 0; i < started; i++) pthread_join(others[i], NULL);
    return atomic_load(&batch.failed);
}

/* Writes the planes of a JPEG picture into `output`, one behind the other. `form` becomes height, width, factors of
 * rows and columns between luma and chroma, number of planes, and bytes that were written.
 * Returns 0; or 1: it cannot be decoded, `message` says why; or 2: it has no planes of this form. */
EXPORT int turbo_read_planes(const uint8_t *data, int64_t data_bytes, uint8_t *output, int64_t output_bytes,
                             int64_t *form, char *message) {
    Context *context = context_take(message);
    Planes planes = {0};
    size_t size = 0;

    if (context == NULL) return 1;
    context->message = message;
    bool read = jpeg_open(context, data, (size_t)data_bytes) &&
                jpeg_read_planes(context, output, (size_t)output_bytes, &planes, &size);
    jpeg_close(context);
    buffer_trim(&context->pixels);
    context_give(context);
    const int64_t found[] = {planes.height, planes.width, planes.down_rows, planes.down_columns, planes.count,
                             (int64_t)size};
    memcpy(form, found, sizeof(found));
    return !read ? 1 : planes.count == 0 ? 2 : 0;
}

/* Views of pictures that are stored as planes. For RGB, the rows and columns that a view needs become planes of red,
 * green and blue, with the pixels of libjpeg; else the planes are resampled as they are. Each output row is weighed from
 * the rows of a plane, and then its columns, a few rows at a time: what lies in between stays in the cache.
 *
 * The layout is told in _planes.py: 16 bytes of header, then Y, Cb and Cr at their true sizes. */
#include <string.h>

#include "turbo.h"

#define HEADER_BYTES 16
#define MAX_SIDE 65535

/* Output rows that are made together, which share the weights of a column in registers. */
#define BAND 8

static uint32_t read_number(const uint8_t *at) {
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

bool is_planes(const uint8_t *data, size_t size) { return size >= 4 && memcmp(data, "TSPL", 4) == 0; }

bool planes_open(Context *context, const uint8_t *data, size_t size, Planes *planes) {
    if (size < HEADER_BYTES || !is_planes(data, size)) return fail(context, "its header is cut off");
    const uint32_t height = read_number(data + 8), width = read_number(data + 12);
    *planes = (Planes){.height = (int)height,
                       .width = (int)width,
                       .down_rows = data[5],
                       .down_columns = data[6],
                       .count = data[7]};
    if (data[4] != 1) return fail(context, "its planes are of another version");
    if ((planes->count != 1 && planes->count != 3) || planes->down_rows < 1 || planes->down_rows > 2 ||
        planes->down_columns < 1 || planes->down_columns > 2 || height < 1 || height > MAX_SIDE || width < 1 ||
        width > MAX_SIDE)
        return fail(context, "its header is damaged");
    const size_t luma = (size_t)height * width;
    const size_t chroma = (size_t)((planes->height + planes->down_rows - 1) / planes->down_rows) *
                          (size_t)((planes->width + planes->down_columns - 1) / planes->down_columns);
    if (size != HEADER_BYTES + luma + (planes->count == 3 ? 2 * chroma : 0))
        return fail(context, "its planes have not the sizes that its header says");
    planes->data[0] = data + HEADER_BYTES;
    planes->data[1] = planes->data[0] + luma;
    planes->data[2] = planes->data[1] + chroma;
    return true;
}

/* libjpeg does not, in rows of less than 3 samples with two luma pixels for each. */
static bool interpolates(const Planes *planes) { return planes->down_columns == 1 || planes->width > 4; }

/* A plane, and how it is resampled. */
typedef struct {
    const uint8_t *data;
    ptrdiff_t stride;
    const Axis *rows;
    Columns columns;
} Plane;

typedef struct {
    PlaneRows *rows;
    ColorRow *color;
    FineRow *fine;
    SplitRow *split;
    Vectors vectors;
} Work;

static void weigh_row(const Plane *plane, uint8_t *output, int row, const Work *work) {
    const Axis *rows = plane->rows, *columns = plane->columns.axis;
    const uint8_t *source = plane->data + columns->begin;
    const ptrdiff_t width = columns->end - columns->begin;

    if (rows->identity) {
        memcpy(output, source + (rows->begin + row) * plane->stride, (size_t)width);
        return;
    }
#if defined(HAS_AVX512)
    if (work->vectors == VECTORS_AVX512) {
        vertical_row_avx512(source, plane->stride, output, width, rows, row);
        return;
    }
#endif
#if defined(__x86_64__)
    if (work->vectors == VECTORS_AVX2) {
        vertical_row_avx2(source, plane->stride, output, width, rows, row);
        return;
    }
#endif
    (void)work;
    vertical_rest(source, plane->stride, output, 0, width, rows, row);
}

static size_t middle_stride(const Plane *plane) {
    const Axis *columns = plane->columns.axis;
    return (size_t)(columns->end - columns->begin) + columns_slack(columns);
}

/* Rows from `from` on of one plane, each `stride` bytes behind the one before. */
static void make_band(const Plane *plane, int from, int count, uint8_t *middle, uint8_t *output, size_t stride,
                      const Work *work) {
    const size_t between = middle_stride(plane);

    for (int row = 0; row < count; row++) weigh_row(plane, middle + (size_t)row * between, from + row, work);
    work->rows(middle, (ptrdiff_t)between, output, (ptrdiff_t)stride, count, &plane->columns);
}

/* Room for `wanted` bands, of `count` planes and what they become. */
static bool reserve_bands(Context *context, const Plane *planes, int count, int wanted, uint8_t **bands,
                          size_t *stride) {
    size_t middle = 0;

    *stride = columns_room(planes[0].columns.axis);
    for (int i = 0; i < count; i++)
        if (middle_stride(&planes[i]) > middle) middle = middle_stride(&planes[i]);
    uint8_t *memory = buffer_reserve(&context->packed, (size_t)wanted * BAND * *stride);
    if (memory == NULL || buffer_reserve(&context->room.middle, BAND * middle) == NULL) return false;
    for (int i = 0; i < wanted; i++) bands[i] = memory + (size_t)i * BAND * *stride;
    return true;
}

static void write_row(const uint8_t *pixels, int width, uint8_t *output, ptrdiff_t stride) {
    if (stride == 1)
        memcpy(output, pixels, (size_t)width);
    else
        for (int x = 0; x < width; x++) output[x * stride] = pixels[x];
}

/* One plane by itself into a channel. */
static bool write_plane(Context *context, const Plane *plane, uint8_t *output, const int64_t *strides,
                        const Work *work) {
    uint8_t *bands[1];
    size_t stride;

    if (!reserve_bands(context, plane, 1, 1, bands, &stride)) return false;
    for (int from = 0; from < plane->rows->count; from += BAND) {
        int count = plane->rows->count - from < BAND ? plane->rows->count - from : BAND;
        make_band(plane, from, count, context->room.middle.data, bands[0], stride, work);
        for (int row = 0; row < count; row++)
            write_row(bands[0] + (size_t)row * stride, plane->columns.axis->count,
                      output + (from + row) * strides[1], (ptrdiff_t)strides[2]);
    }
    return true;
}

/* All planes into pixels of three channels. */
static bool write_pixels(Context *context, const Plane *planes, int count, uint8_t *output, const int64_t *strides,
                         Output form, const Work *work) {
    const int height = planes[0].rows->count, width = planes[0].columns.axis->count;
    uint8_t *bands[4];
    size_t stride;

    if (!reserve_bands(context, planes, count, 4, bands, &stride)) return false;
    if (count == 1) memset(bands[1], 128, 2 * BAND * stride);
    for (int from = 0; from < height; from += BAND) {
        int rows = height - from < BAND ? height - from : BAND;
        for (int i = 0; i < count; i++)
            make_band(&planes[i], from, rows, context->room.middle.data, bands[i], stride, work);
        for (int row = 0; row < rows; row++) {
            const size_t at = (size_t)row * stride;
            uint8_t *line = output + (from + row) * strides[1];
            const uint8_t *y = bands[0] + at, *cb = bands[1] + at, *cr = bands[2] + at;
            if (strides[0] == 1 && strides[2] == 3) {
                work->color(y, cb, cr, line, width);
                continue;
            }
            if (form == OUTPUT_YUV) {
                for (int i = 0; i < 3; i++)
                    write_row(bands[i] + at, width, line + i * strides[0], (ptrdiff_t)strides[2]);
                continue;
            }
            work->color(y, cb, cr, bands[3], width);
            for (int i = 0; i < 3; i++)
                for (int x = 0; x < width; x++) line[i * strides[0] + x * strides[2]] = bands[3][3 * x + i];
        }
    }
    return true;
}

/* The rows and columns that the axes of luma need, as whole planes of red, green and blue. */
static bool make_rgb(Context *context, const Planes *picture, const Axis *rows, const Axis *columns, Plane *planes,
                     const Work *work) {
    const int height = rows->end - rows->begin, width = columns->end - columns->begin;
    const size_t stride = (size_t)width, plane = stride * (size_t)height, line = stride + 2 * SLACK_BYTES;
    const bool doubled = picture->down_columns == 2;
    const int chroma_height = (picture->height + picture->down_rows - 1) / picture->down_rows;
    ChromaRow chroma = {.begin = columns->begin / picture->down_columns,
                        .length = (picture->width + picture->down_columns - 1) / picture->down_columns,
                        .doubled = doubled};
    chroma.count = (columns->end + picture->down_columns - 1) / picture->down_columns - chroma.begin;
    chroma.interpolated = interpolates(picture);
    uint8_t *pixels = buffer_reserve(&context->pixels, 3 * plane);
    uint8_t *lines = buffer_reserve(&context->packed, 2 * line + 2 * line);
    if (pixels == NULL || lines == NULL) return false;

    for (int row = 0; row < height; row++) {
        const int y = rows->begin + row, near = y / picture->down_rows;
        int far = y & 1 ? near + 1 : near - 1;
        far = far < 0 ? 0 : far >= chroma_height ? chroma_height - 1 : far;
        for (int i = 0; i < 2; i++) {
            chroma.near = picture->data[1 + i] + (ptrdiff_t)near * chroma.length;
            chroma.far = picture->down_rows == 2 && chroma.interpolated
                             ? picture->data[1 + i] + (ptrdiff_t)far * chroma.length
                             : NULL;
            chroma.turn = y & 1;
            work->fine(&chroma, (uint16_t *)(lines + 2 * line), lines + (size_t)i * line);
        }
        const size_t before = doubled ? (size_t)(columns->begin & 1) : 0;
        uint8_t *at = pixels + (size_t)row * stride;
        uint8_t *const rgb[3] = {at, at + plane, at + 2 * plane};
        work->split(picture->data[0] + (ptrdiff_t)y * picture->width + columns->begin, lines + before,
                    lines + line + before, rgb, width);
    }
    for (int i = 0; i < 3; i++) {
        planes[i] = planes[0];
        planes[i].stride = (ptrdiff_t)stride;
        planes[i].data = pixels + (size_t)i * plane - (ptrdiff_t)rows->begin * (ptrdiff_t)stride - columns->begin;
    }
    return true;
}

static Work choose_work(Passes passes, bool convert) {
    Work work = {.rows = plane_rows_portable,
                 .fine = fine_row_portable,
                 .split = split_row_portable,
                 .color = convert ? to_rgb_portable : interleave_portable,
                 .vectors = vectors_of(passes)};
#if defined(__x86_64__)
    if (work.vectors >= VECTORS_AVX2) {
        work.rows = plane_rows_avx2;
        work.fine = fine_row_avx2;
        work.split = split_row_avx2;
        work.color = convert ? to_rgb_avx2 : interleave_avx2;
    }
#endif
#if defined(HAS_AVX512)
    if (work.vectors == VECTORS_AVX512) work.rows = plane_rows_avx512;
#endif
    return work;
}

/* The axes of chroma, which are those of luma where it is as fine. */
static const Axis *chroma_axis(Context *context, int number, int factor, int length, bool interpolated, bool halved,
                               int shown_begin) {
    const Axis *luma = &context->plane_axes[number];
    Axis *axis = &context->plane_axes[2 + number];

    if (factor == 1 && !halved) return luma;
    return axis_make_chroma(axis, &context->temporary, luma, factor, length, interpolated, halved, shown_begin & 1)
               ? axis
               : NULL;
}

bool planes_write_view(Context *context, const Planes *picture, const int64_t *view, Shown shown, const Target *target,
                       Passes passes) {
    /* Gray pictures become RGB as they are written, others before they are resampled: a decoder of JPEG clamps each
     * pixel, and where many are out of range (saturated edges), their mean is another than that of their Y, Cb and Cr:
     * by up to 31 levels in one of 20,000 values of a crop, on 750 photographs (2026-11). */
    const bool convert = target->output == OUTPUT_RGB && picture->count == 1;
    const Work work = choose_work(passes, convert);
    const int64_t *strides = target->strides, *chroma = target->chroma_strides;
    const int top = (int)view[WINDOW_TOP], left = (int)view[WINDOW_LEFT];
    Axis *axes = context->plane_axes;

    paint_border(view, shown, target);
    if (shown.bottom == shown.top) return true;
    const Span down = {(int)view[TOP], (int)view[HEIGHT], picture->height};
    const Span across = {(int)view[LEFT], (int)view[WIDTH], picture->width};
    if (!axis_make(&axes[0], &context->temporary, down, (int)view[RESIZED_HEIGHT], top + shown.top, top + shown.bottom,
                   1) ||
        !axis_make(&axes[1], &context->temporary, across, (int)view[RESIZED_WIDTH], left + shown.left,
                   left + shown.right, 1))
        return false;
    Plane planes[3] = {{.data = picture->data[0], .stride = picture->width, .rows = &axes[0]}};
    if (!columns_make(&planes[0].columns, &context->plane_columns[0], &axes[1], passes)) return false;
    uint8_t *output = target->data + shown.top * strides[1] + shown.left * strides[2];
    if (picture->count == 3 && target->output == OUTPUT_RGB)
        return make_rgb(context, picture, &axes[0], &axes[1], planes, &work) &&
               write_pixels(context, planes, 3, output, strides, OUTPUT_YUV, &work);
    if (picture->count == 3) {
        const int height = (picture->height + picture->down_rows - 1) / picture->down_rows;
        const int width = (picture->width + picture->down_columns - 1) / picture->down_columns;
        const bool halved = target->output == OUTPUT_PLANES;
        const bool interpolated = interpolates(picture);
        const Axis *rows = chroma_axis(context, 0, picture->down_rows, height, interpolated, halved, shown.top);
        const Axis *columns = chroma_axis(context, 1, picture->down_columns, width, interpolated, halved, shown.left);
        if (rows == NULL || columns == NULL) return false;
        for (int i = 1; i < 3; i++) planes[i] = (Plane){.data = picture->data[i], .stride = width, .rows = rows};
        if (columns == &axes[1])
            planes[1].columns = planes[0].columns;
        else if (!columns_make(&planes[1].columns, &context->plane_columns[1], columns, passes))
            return false;
        planes[2].columns = planes[1].columns;
    }
    if (target->output != OUTPUT_PLANES)
        return write_pixels(context, planes, picture->count, output, strides, target->output, &work);
    if (!write_plane(context, &planes[0], output, strides, &work)) return false;
    output = target->chroma + shown.top / 2 * chroma[1] + shown.left / 2 * chroma[2];
    for (int i = 0; i < 2; i++) {
        if (picture->count == 3 && !write_plane(context, &planes[1 + i], output + i * chroma[0], chroma, &work))
            return false;
        if (picture->count == 1)
            for (int row = 0; row < (shown.bottom + 1) / 2 - shown.top / 2; row++)
                for (int x = 0; x < (shown.right + 1) / 2 - shown.left / 2; x++)
                    output[i * chroma[0] + row * chroma[1] + x * chroma[2]] = 128;
    }
    return true;
}

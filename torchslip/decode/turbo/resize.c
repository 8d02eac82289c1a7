/* A resampling in two passes over bytes, the cheaper one first, and the passes in plain C. */
#include <string.h>

#include "turbo.h"

static uint8_t to_byte(int32_t sum, int shift) {
    int32_t value = sum >> shift;
    return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

void horizontal_rest(const uint8_t *source, uint8_t *output, int from, const Axis *axis) {
    const int32_t half = 1 << axis->shift >> 1;

    for (int x = from; x < axis->count; x++) {
        const int16_t *weights = axis->weights + (ptrdiff_t)x * axis->taps;
        const uint8_t *pixel = source + (ptrdiff_t)axis->first[x] * 3;
        int32_t red = half, green = half, blue = half;
        for (int i = 0; i < axis->sizes[x]; i++, pixel += 3) {
            red += pixel[0] * weights[i];
            green += pixel[1] * weights[i];
            blue += pixel[2] * weights[i];
        }
        output[3 * x] = to_byte(red, axis->shift);
        output[3 * x + 1] = to_byte(green, axis->shift);
        output[3 * x + 2] = to_byte(blue, axis->shift);
    }
}

void horizontal_portable(const uint8_t *source, ptrdiff_t source_stride, uint8_t *output, ptrdiff_t output_stride,
                         int rows, const Axis *axis) {
    for (int row = 0; row < rows; row++)
        horizontal_rest(source + row * source_stride, output + row * output_stride, 0, axis);
}

/* Blocks of bytes, so that the compiler can keep the sums in vector registers. */
#define BLOCK 32

void vertical_rest(const uint8_t *source, ptrdiff_t source_stride, uint8_t *output, ptrdiff_t from, ptrdiff_t width,
                   const Axis *axis, int row) {
    const int16_t *weights = axis->weights + (ptrdiff_t)row * axis->taps;
    const uint8_t *first = source + axis->first[row] * source_stride;
    const int32_t half = 1 << axis->shift >> 1;
    ptrdiff_t x = from;

    for (; x + BLOCK <= width; x += BLOCK) {
        int32_t sums[BLOCK];
        for (int j = 0; j < BLOCK; j++) sums[j] = half;
        for (int i = 0; i < axis->sizes[row]; i++)
            for (int j = 0; j < BLOCK; j++) sums[j] += first[i * source_stride + x + j] * weights[i];
        for (int j = 0; j < BLOCK; j++) output[x + j] = to_byte(sums[j], axis->shift);
    }
    for (; x < width; x++) {
        int32_t sum = half;
        for (int i = 0; i < axis->sizes[row]; i++) sum += first[i * source_stride + x] * weights[i];
        output[x] = to_byte(sum, axis->shift);
    }
}

void vertical_portable(const uint8_t *source, ptrdiff_t source_stride, uint8_t *output, ptrdiff_t output_stride,
                       ptrdiff_t width, const Axis *axis) {
    for (int row = 0; row < axis->count; row++)
        vertical_rest(source, source_stride, output + row * output_stride, 0, width, axis, row);
}

Vectors vectors_of(Passes passes) {
    Vectors vectors = VECTORS_NONE;
#if defined(__x86_64__)
    if (passes != PASSES_PORTABLE && __builtin_cpu_supports("avx2")) vectors = VECTORS_AVX2;
#endif
#if defined(HAS_AVX512)
    if (passes == PASSES_BEST && vectors == VECTORS_AVX2 && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
        __builtin_cpu_supports("avx512vnni"))
        vectors = VECTORS_AVX512;
#endif
    (void)passes;
    return vectors;
}

/* The passes of a resampling. */
typedef struct {
    const Axis *rows, *columns;
    Vectors vectors;
#if defined(HAS_AVX512)
    Windows windows;
    bool windowed;
#endif
} Work;

static void make_columns(const Work *work, const uint8_t *source, ptrdiff_t source_stride, uint8_t *output,
                         ptrdiff_t output_stride, int rows) {
#if defined(HAS_AVX512)
    if (work->windowed) {
        windowed_rows_avx512(source + (ptrdiff_t)work->columns->begin * 3, source_stride, output, output_stride, rows,
                             &work->windows);
        return;
    }
#endif
#if defined(__x86_64__)
    if (work->vectors >= VECTORS_AVX2) {
        horizontal_avx2(source, source_stride, output, output_stride, rows, work->columns);
        return;
    }
#endif
    horizontal_portable(source, source_stride, output, output_stride, rows, work->columns);
}

static void make_rows(const Work *work, const uint8_t *source, ptrdiff_t source_stride, uint8_t *output,
                      ptrdiff_t output_stride, ptrdiff_t width) {
    VerticalPass *vertical = vertical_portable;
#if defined(__x86_64__)
    if (work->vectors == VECTORS_AVX2) vertical = vertical_avx2;
#endif
#if defined(HAS_AVX512)
    if (work->vectors == VECTORS_AVX512) vertical = vertical_avx512;
#endif
    vertical(source, source_stride, output, output_stride, width, work->rows);
}

/* Vector instructions of the passes for the two orders, about. A function of sizes alone, never of the processor:
 * the order decides how the middle is rounded. */
static bool vertical_first(const Axis *rows, const Axis *columns) {
    int64_t in_height = rows->end - rows->begin, in_width = columns->end - columns->begin;
    int64_t height = rows->count, width = columns->count;
    int64_t across = 7 * ((columns->taps + 3) / 4);
    int64_t down = 2 + 3 * ((rows->taps + 1) / 2) / 2;

    return height * in_width * down + height * width * across < in_height * width * across + height * width * down;
}

bool resize(const uint8_t *source, ptrdiff_t source_stride, const Axis *rows, const Axis *columns, uint8_t *output,
            ptrdiff_t output_stride, Room *room, Passes passes) {
    Work work = {.rows = rows, .columns = columns, .vectors = vectors_of(passes)};
#if defined(HAS_AVX512)
    work.windowed = work.vectors == VECTORS_AVX512 && !columns->identity &&
                    windows_make(&work.windows, &room->windows, columns, 3);
#endif
    const ptrdiff_t left = (ptrdiff_t)columns->begin * 3, width = (ptrdiff_t)columns->count * 3;
    const ptrdiff_t in_width = (ptrdiff_t)(columns->end - columns->begin) * 3;
    const uint8_t *top = source + rows->begin * source_stride;
    const int in_height = rows->end - rows->begin;

    if (rows->identity && columns->identity) {
        for (int row = 0; row < rows->count; row++)
            memcpy(output + row * output_stride, top + row * source_stride + left, (size_t)width);
    } else if (rows->identity) {
        make_columns(&work, top, source_stride, output, output_stride, rows->count);
    } else if (columns->identity) {
        make_rows(&work, source + left, source_stride, output, output_stride, width);
    } else if (vertical_first(rows, columns)) {
        size_t slack = (size_t)columns->taps * 3 + SLACK_BYTES;
        uint8_t *between = buffer_reserve(&room->middle, (size_t)in_width * (size_t)rows->count + slack);
        if (between == NULL) return false;
        make_rows(&work, source + left, source_stride, between, in_width, in_width);
        make_columns(&work, between - left, in_width, output, output_stride, rows->count);
    } else {
        uint8_t *between = buffer_reserve(&room->middle, (size_t)width * (size_t)in_height + SLACK_BYTES);
        if (between == NULL) return false;
        make_columns(&work, top, source_stride, between, width, in_height);
        make_rows(&work, between - rows->begin * width, width, output, output_stride, width);
    }
    return true;
}

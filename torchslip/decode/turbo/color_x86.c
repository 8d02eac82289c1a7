/* The rows of color.c with AVX2, byte for byte. Compiled for every x86-64; the callers ask the processor. */
#include "turbo.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#define AVX2 __attribute__((target("avx2")))
#define GROUP 16 /* outputs, in four quads */

/* What two taps of a group need: where the pixels of each output lie in the 16 that were loaded for its quad, and their
 * weights. Quads 0 and 2 stand in the first vectors, 1 and 3 in the second, so that packing puts all in order. */
typedef struct {
    int32_t places[2][8];
    int32_t weights[2][8];
} Step;

/* No pixel, pixel, no pixel, pixel: bytes become int16. */
#define NOTHING ((int32_t)0x80808080)

static void fill_steps(const Columns *columns, int32_t *bases, Step *steps) {
    const Axis *axis = columns->axis;

    for (int x = 0; x < (int)columns_room(axis); x++) {
        const int quad = x / 4 % 4, group = x / GROUP, lane = quad / 2 * 4 + x % 4;
        const int base = axis->first[x / 4 * 4 < axis->count ? x / 4 * 4 : axis->count - 1];
        bases[x / 4] = base - axis->begin;
        for (int pair = 0; pair < columns->pairs; pair++) {
            Step *step = &steps[group * columns->pairs + pair];
            int32_t places = NOTHING, weights = 0;
            if (x < axis->count) {
                int place = axis->first[x] - base + 2 * pair;
                memcpy(&weights, axis->weights + (ptrdiff_t)x * axis->taps + 2 * pair, sizeof(weights));
                if (2 * pair < axis->sizes[x]) places = place | (int32_t)0x80008000;
                if (2 * pair + 1 < axis->sizes[x])
                    places |= (place + 1) << 16;
                else
                    places |= 0x00800000;
            }
            step->places[quad % 2][lane] = places;
            step->weights[quad % 2][lane] = weights;
        }
    }
}

bool columns_make_avx2(Columns *columns, Buffer *memory) {
    const Axis *axis = columns->axis;
    const size_t room = columns_room(axis);
    int most = 0, reach = 0;

    for (int x = 0; x < axis->count; x++) {
        int end = axis->first[x] + axis->sizes[x] - axis->first[x / 4 * 4];
        if (axis->sizes[x] > most) most = axis->sizes[x];
        if (end > reach) reach = end;
    }
    if (reach <= 16) {
        columns->pairs = (most + 1) / 2;
        size_t steps = room / GROUP * (size_t)columns->pairs * sizeof(Step);
        char *bytes = buffer_reserve(memory, steps + room / 4 * sizeof(int32_t));
        if (bytes == NULL) return false;
        fill_steps(columns, (int32_t *)(bytes + steps), (Step *)bytes);
        columns->steps = bytes;
        columns->bases = (int32_t *)(bytes + steps);
        return true;
    }
    columns->dot_taps = (most + 15) & ~15;
    int16_t *dots = buffer_reserve(memory, (size_t)axis->count * (size_t)columns->dot_taps * sizeof(int16_t));
    if (dots == NULL) return false;
    memset(dots, 0, (size_t)axis->count * (size_t)columns->dot_taps * sizeof(int16_t));
    for (int x = 0; x < axis->count; x++)
        memcpy(dots + (ptrdiff_t)x * columns->dot_taps, axis->weights + (ptrdiff_t)x * axis->taps,
               (size_t)axis->sizes[x] * sizeof(int16_t));
    columns->dots = dots;
    return true;
}

AVX2 static inline __m256i load_quads(const uint8_t *source, int32_t low, int32_t high) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(source + low))),
                                   _mm_loadu_si128((const __m128i *)(source + high)), 1);
}

AVX2 static inline __m256i load(const void *at) { return _mm256_loadu_si256((const __m256i *)at); }

AVX2 static inline __m128i to_bytes(__m256i words) {
    return _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

AVX2 static inline void windowed_rows(const uint8_t *source, ptrdiff_t source_stride, uint8_t *output,
                                      ptrdiff_t output_stride, int rows, const Columns *columns, int pairs) {
    const int shift_bits = columns->axis->shift, groups = (int)columns_room(columns->axis) / GROUP;
    const __m256i half = _mm256_set1_epi32(1 << shift_bits >> 1);
    const __m128i shift = _mm_cvtsi32_si128(shift_bits);
    const Step *step = columns->steps;
    const int32_t *bases = columns->bases;

    for (int group = 0; group < groups; group++, step += pairs, bases += 4) {
        const uint8_t *from = source;
        uint8_t *to = output + (ptrdiff_t)group * GROUP;
        for (int row = 0; row < rows; row++, from += source_stride, to += output_stride) {
            __m256i front = load_quads(from, bases[0], bases[2]), back = load_quads(from, bases[1], bases[3]);
            __m256i sums[2] = {half, half};
            for (int i = 0; i < pairs; i++) {
                __m256i a = _mm256_shuffle_epi8(front, load(step[i].places[0]));
                __m256i b = _mm256_shuffle_epi8(back, load(step[i].places[1]));
                sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(a, load(step[i].weights[0])));
                sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(b, load(step[i].weights[1])));
            }
            __m256i words = _mm256_packs_epi32(_mm256_sra_epi32(sums[0], shift), _mm256_sra_epi32(sums[1], shift));
            _mm_storeu_si128((__m128i *)to, to_bytes(words));
        }
    }
}

AVX2 static void dotted_rows(const uint8_t *source, ptrdiff_t source_stride, uint8_t *output, ptrdiff_t output_stride,
                             int rows, const Columns *columns) {
    const Axis *axis = columns->axis;

    for (int row = 0; row < rows; row++, source += source_stride, output += output_stride)
        for (int x = 0; x < axis->count; x++) {
            const uint8_t *pixel = source + (axis->first[x] - axis->begin);
            const int16_t *weights = columns->dots + (ptrdiff_t)x * columns->dot_taps;
            __m256i sums = _mm256_setzero_si256();
            for (int i = 0; i < columns->dot_taps; i += 16)
                sums = _mm256_add_epi32(
                    sums, _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(pixel + i))),
                                            load(weights + i)));
            __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
            __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
            int32_t sum = _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xB1)));
            output[x] = (uint8_t)((sum + (1 << axis->shift >> 1)) >> axis->shift);
        }
}

AVX2 void plane_rows_avx2(const uint8_t *source, ptrdiff_t source_stride, uint8_t *output, ptrdiff_t output_stride,
                          int rows, const Columns *columns) {
    if (columns->axis->identity)
        plane_rows_portable(source, source_stride, output, output_stride, rows, columns);
    else if (columns->pairs == 0)
        dotted_rows(source, source_stride, output, output_stride, rows, columns);
    else if (columns->pairs == 1)
        windowed_rows(source, source_stride, output, output_stride, rows, columns, 1);
    else if (columns->pairs == 2)
        windowed_rows(source, source_stride, output, output_stride, rows, columns, 2);
    else if (columns->pairs == 3)
        windowed_rows(source, source_stride, output, output_stride, rows, columns, 3);
    else
        windowed_rows(source, source_stride, output, output_stride, rows, columns, columns->pairs);
}

AVX2 static inline __m256i centered(const uint8_t *at) {
    return _mm256_sub_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)at)), _mm256_set1_epi16(128));
}

/* (factor * value + 32768) >> 16, of which the product is taken as one of 2 * value and halved again. */
AVX2 static inline __m256i scaled(__m256i twice, int factor) {
    __m256i product = _mm256_mulhi_epi16(twice, _mm256_set1_epi16((short)factor));
    return _mm256_srai_epi16(_mm256_add_epi16(product, _mm256_set1_epi16(1)), 1);
}

/* Factors above 1/2 do not fit: 1.402 is 1 + 0.402, 1.772 is 2 - 0.228, and -0.714 is 0.286 - 1. */
AVX2 static inline void to_rgb(__m256i y, __m256i cb, __m256i cr, __m128i *rgb) {
    const __m256i twice_cb = _mm256_add_epi16(cb, cb), twice_cr = _mm256_add_epi16(cr, cr);
    const __m256i green = _mm256_set1_epi32((int32_t)((uint16_t)-22554 | (uint32_t)18734 << 16));
    const __m256i half = _mm256_set1_epi32(32768);

    rgb[0] = to_bytes(_mm256_add_epi16(y, _mm256_add_epi16(cr, scaled(twice_cr, 26345))));
    rgb[2] = to_bytes(_mm256_add_epi16(y, _mm256_add_epi16(twice_cb, scaled(twice_cb, -14942))));
    __m256i low = _mm256_madd_epi16(_mm256_unpacklo_epi16(cb, cr), green);
    __m256i high = _mm256_madd_epi16(_mm256_unpackhi_epi16(cb, cr), green);
    low = _mm256_srai_epi32(_mm256_add_epi32(low, half), 16);
    high = _mm256_srai_epi32(_mm256_add_epi32(high, half), 16);
    rgb[1] = to_bytes(_mm256_add_epi16(y, _mm256_sub_epi16(_mm256_packs_epi32(low, high), cr)));
}

/* 16 pixels of three bytes. */
AVX2 static inline void store_pixels(uint8_t *output, __m128i a, __m128i b, __m128i c) {
    const __m128i places[9] = {
        _mm_setr_epi8(0, -1, -1, 1, -1, -1, 2, -1, -1, 3, -1, -1, 4, -1, -1, 5),
        _mm_setr_epi8(-1, 0, -1, -1, 1, -1, -1, 2, -1, -1, 3, -1, -1, 4, -1, -1),
        _mm_setr_epi8(-1, -1, 0, -1, -1, 1, -1, -1, 2, -1, -1, 3, -1, -1, 4, -1),
        _mm_setr_epi8(-1, -1, 6, -1, -1, 7, -1, -1, 8, -1, -1, 9, -1, -1, 10, -1),
        _mm_setr_epi8(5, -1, -1, 6, -1, -1, 7, -1, -1, 8, -1, -1, 9, -1, -1, 10),
        _mm_setr_epi8(-1, 5, -1, -1, 6, -1, -1, 7, -1, -1, 8, -1, -1, 9, -1, -1),
        _mm_setr_epi8(-1, 11, -1, -1, 12, -1, -1, 13, -1, -1, 14, -1, -1, 15, -1, -1),
        _mm_setr_epi8(-1, -1, 11, -1, -1, 12, -1, -1, 13, -1, -1, 14, -1, -1, 15, -1),
        _mm_setr_epi8(10, -1, -1, 11, -1, -1, 12, -1, -1, 13, -1, -1, 14, -1, -1, 15)};

    for (int i = 0; i < 3; i++) {
        __m128i both = _mm_or_si128(_mm_shuffle_epi8(a, places[3 * i]), _mm_shuffle_epi8(b, places[3 * i + 1]));
        __m128i bytes = _mm_or_si128(both, _mm_shuffle_epi8(c, places[3 * i + 2]));
        _mm_storeu_si128((__m128i *)(output + 16 * i), bytes);
    }
}

AVX2 static inline void load_rgb(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, __m128i *rgb) {
    to_rgb(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)y)), centered(cb), centered(cr), rgb);
}

/* The last group overlaps the one before it. */
AVX2 void to_rgb_avx2(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, uint8_t *output, int width) {
    if (width < GROUP) {
        to_rgb_portable(y, cb, cr, output, width);
        return;
    }
    for (int next = 0; next < width; next += GROUP) {
        int x = next + GROUP <= width ? next : width - GROUP;
        __m128i rgb[3];
        load_rgb(y + x, cb + x, cr + x, rgb);
        store_pixels(output + 3 * x, rgb[0], rgb[1], rgb[2]);
    }
}

AVX2 void split_row_avx2(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, uint8_t *const rgb[3], int width) {
    if (width < GROUP) {
        split_row_portable(y, cb, cr, rgb, width);
        return;
    }
    for (int next = 0; next < width; next += GROUP) {
        int x = next + GROUP <= width ? next : width - GROUP;
        __m128i bytes[3];
        load_rgb(y + x, cb + x, cr + x, bytes);
        for (int i = 0; i < 3; i++) _mm_storeu_si128((__m128i *)(rgb[i] + x), bytes[i]);
    }
}

AVX2 void interleave_avx2(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, uint8_t *output, int width) {
    if (width < GROUP) {
        interleave_portable(y, cb, cr, output, width);
        return;
    }
    for (int next = 0; next < width; next += GROUP) {
        int x = next + GROUP <= width ? next : width - GROUP;
        store_pixels(output + 3 * x, _mm_loadu_si128((const __m128i *)(y + x)),
                     _mm_loadu_si128((const __m128i *)(cb + x)), _mm_loadu_si128((const __m128i *)(cr + x)));
    }
}
#endif

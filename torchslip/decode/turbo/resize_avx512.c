/* The passes with AVX-512, byte for byte those of resize.c and color.c. The callers ask the processor.
 *
 * The bytes of a row are made 16 at a time, whatever channel they belong to: the pixels that they need lie within 64
 * bytes, and one instruction puts two taps of each where they are weighed. */
#include "turbo.h"

#if defined(HAS_AVX512)
#include <immintrin.h>

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")))
#define GROUP 16 /* bytes of the output, in 32 bits each */
#define BLOCK 64

/* What two taps of a group need: their places within the 64 bytes that were loaded, in the even ones, and weights. */
typedef struct {
    uint8_t places[BLOCK];
    int32_t weights[GROUP];
} Step;

/* Pixel and channel of the bytes of a group, from the pixel and the channel that it begins with. */
typedef struct {
    int32_t pixels[GROUP], channels[GROUP];
} Layout;

static const Layout layouts[4] = {
    {{0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5}, {0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0}},
    {{0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5}, {1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1}},
    {{0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5}, {2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2}},
    {{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {0}},
};

/* False: they lie too far apart. */
AVX512 static bool fill_steps(const Windows *windows, const Axis *axis, int32_t *bases, Step *steps) {
    const int channels = windows->channels, groups = windows->blocks * (BLOCK / GROUP);
    const __m512i last = _mm512_set1_epi32(axis->count - 1), step = _mm512_set1_epi32(axis->taps / 2);

    for (int group = 0; group < groups; group++) {
        const Layout *layout = &layouts[channels == 1 ? 3 : group * GROUP % 3];
        __m512i pixels = _mm512_add_epi32(_mm512_loadu_si512(layout->pixels),
                                          _mm512_set1_epi32(group * GROUP / channels));
        pixels = _mm512_min_epi32(pixels, last);
        __m512i firsts = _mm512_i32gather_epi32(pixels, axis->first, 4);
        __m512i ends = _mm512_add_epi32(firsts, _mm512_i32gather_epi32(pixels, axis->sizes, 4));
        const int32_t base = _mm512_reduce_min_epi32(firsts);
        if ((_mm512_reduce_max_epi32(ends) - base) * channels > BLOCK) return false;
        bases[group] = (base - axis->begin) * channels;
        __m512i places = _mm512_sub_epi32(firsts, _mm512_set1_epi32(base));
        if (channels == 3) places = _mm512_add_epi32(_mm512_add_epi32(places, places), places);
        places = _mm512_add_epi32(places, _mm512_loadu_si512(layout->channels));
        /* Those of taps that there are not may be anything below 256: their weights are 0. */
        places = _mm512_or_si512(places, _mm512_slli_epi32(_mm512_add_epi32(places, _mm512_set1_epi32(channels)), 16));
        __m512i pairs = _mm512_mullo_epi32(pixels, step);
        for (int i = 0; i < windows->pairs; i++, steps++) {
            _mm512_storeu_si512(steps->places, places);
            _mm512_storeu_si512(steps->weights, _mm512_i32gather_epi32(pairs, axis->weights, 4));
            places = _mm512_add_epi32(places, _mm512_set1_epi32(2 * channels * 0x00010001));
            pairs = _mm512_add_epi32(pairs, _mm512_set1_epi32(1));
        }
    }
    return true;
}

bool windows_make(Windows *windows, Buffer *memory, const Axis *axis, int channels) {
    int most = 0;

    for (int x = 0; x < axis->count; x++)
        if (axis->sizes[x] > most) most = axis->sizes[x];
    *windows = (Windows){.channels = channels,
                         .bytes = axis->count * channels,
                         .blocks = (axis->count * channels + BLOCK - 1) / BLOCK,
                         .pairs = (most + 1) / 2,
                         .shift = axis->shift};
    if (most * channels > BLOCK) return false;
    const size_t groups = (size_t)windows->blocks * (BLOCK / GROUP), steps = groups * (size_t)windows->pairs;
    char *bytes = buffer_reserve(memory, steps * sizeof(Step) + groups * sizeof(int32_t));
    if (bytes == NULL) return false;
    windows->steps = bytes;
    windows->bases = (int32_t *)(bytes + steps * sizeof(Step));
    return fill_steps(windows, axis, (int32_t *)(bytes + steps * sizeof(Step)), (Step *)bytes);
}

/* Sums of four groups to bytes, clamped. */
AVX512 static inline __m512i to_bytes(const __m512i *sums, __m128i shift) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i low = _mm512_packs_epi32(_mm512_sra_epi32(sums[0], shift), _mm512_sra_epi32(sums[1], shift));
    __m512i high = _mm512_packs_epi32(_mm512_sra_epi32(sums[2], shift), _mm512_sra_epi32(sums[3], shift));
    return _mm512_permutexvar_epi32(order, _mm512_packus_epi16(low, high));
}

#define EVEN_BYTES 0x5555555555555555u

/* Up to `MOST_HELD` pairs stay in registers from row to row. */
#define MOST_HELD 3

AVX512 static inline __attribute__((always_inline)) void held_rows(const uint8_t *source, ptrdiff_t source_stride,
                                                                   uint8_t *output, ptrdiff_t output_stride, int rows,
                                                                   const Windows *windows, int pairs) {
    const __m128i shift = _mm_cvtsi32_si128(windows->shift);
    const __m512i half = _mm512_set1_epi32(1 << windows->shift >> 1);
    const Step *step = windows->steps;
    const int32_t *bases = windows->bases;

    for (int block = 0; block < windows->blocks; block++, step += 4 * pairs, bases += 4) {
        const int rest = windows->bytes - block * BLOCK;
        const __mmask64 shown = rest >= BLOCK ? ~(__mmask64)0 : ((__mmask64)1 << rest) - 1;
        const uint8_t *from[4] = {source + bases[0], source + bases[1], source + bases[2], source + bases[3]};
        uint8_t *to = output + (ptrdiff_t)block * BLOCK;
        __m512i places[4 * MOST_HELD], weights[4 * MOST_HELD];
        for (int i = 0; i < 4 * pairs; i++) {
            places[i] = _mm512_loadu_si512(step[i].places);
            weights[i] = _mm512_loadu_si512(step[i].weights);
        }
        for (ptrdiff_t row = 0, at = 0; row < rows; row++, at += source_stride, to += output_stride) {
            __m512i sums[4];
            for (int i = 0; i < 4; i++) {
                __m512i bytes = _mm512_loadu_si512(from[i] + at);
                sums[i] = half;
                for (int pair = 0; pair < pairs; pair++)
                    sums[i] = _mm512_dpwssd_epi32(
                        sums[i], _mm512_maskz_permutexvar_epi8(EVEN_BYTES, places[i * pairs + pair], bytes),
                        weights[i * pairs + pair]);
            }
            _mm512_mask_storeu_epi8(to, shown, to_bytes(sums, shift));
        }
    }
}

AVX512 static void long_rows(const uint8_t *source, ptrdiff_t source_stride, uint8_t *output, ptrdiff_t output_stride,
                             int rows, const Windows *windows) {
    const __m128i shift = _mm_cvtsi32_si128(windows->shift);
    const __m512i half = _mm512_set1_epi32(1 << windows->shift >> 1);
    const Step *steps = windows->steps;
    const int32_t *bases = windows->bases;

    for (int block = 0; block < windows->blocks; block++, steps += 4 * windows->pairs, bases += 4) {
        const int rest = windows->bytes - block * BLOCK;
        const __mmask64 shown = rest >= BLOCK ? ~(__mmask64)0 : ((__mmask64)1 << rest) - 1;
        const uint8_t *from = source;
        uint8_t *to = output + (ptrdiff_t)block * BLOCK;
        for (int row = 0; row < rows; row++, from += source_stride, to += output_stride) {
            const Step *step = steps;
            __m512i sums[4];
            for (int i = 0; i < 4; i++) {
                __m512i bytes = _mm512_loadu_si512(from + bases[i]);
                sums[i] = half;
                for (int pair = 0; pair < windows->pairs; pair++, step++)
                    sums[i] = _mm512_dpwssd_epi32(
                        sums[i],
                        _mm512_maskz_permutexvar_epi8(EVEN_BYTES, _mm512_loadu_si512(step->places), bytes),
                        _mm512_loadu_si512(step->weights));
            }
            _mm512_mask_storeu_epi8(to, shown, to_bytes(sums, shift));
        }
    }
}

AVX512 void windowed_rows_avx512(const uint8_t *source, ptrdiff_t source_stride, uint8_t *output,
                                 ptrdiff_t output_stride, int rows, const Windows *windows) {
    if (windows->pairs == 1)
        held_rows(source, source_stride, output, output_stride, rows, windows, 1);
    else if (windows->pairs == 2)
        held_rows(source, source_stride, output, output_stride, rows, windows, 2);
    else if (windows->pairs == 3)
        held_rows(source, source_stride, output, output_stride, rows, windows, 3);
    else
        long_rows(source, source_stride, output, output_stride, rows, windows);
}

AVX512 void plane_rows_avx512(const uint8_t *source, ptrdiff_t source_stride, uint8_t *output, ptrdiff_t output_stride,
                              int rows, const Columns *columns) {
    if (columns->windowed)
        windowed_rows_avx512(source, source_stride, output, output_stride, rows, &columns->windows);
    else
        plane_rows_avx2(source, source_stride, output, output_stride, rows, columns);
}

/* `pairs` pairs of rows; the row behind the last one stands in with weight 0 where their number is odd. The last vector
 * overlaps the one before it. */
AVX512 static inline __attribute__((always_inline)) void one_row(const uint8_t *first, ptrdiff_t source_stride,
                                                                 uint8_t *output, ptrdiff_t width, const Axis *axis,
                                                                 int row, int pairs) {
    const int32_t *weights = (const int32_t *)(const void *)(axis->weights + (ptrdiff_t)row * axis->taps);
    const int size = axis->sizes[row];
    const __m128i shift = _mm_cvtsi32_si128(axis->shift);
    const __m512i half = _mm512_set1_epi32(1 << axis->shift >> 1), zero = _mm512_setzero_si512();

    for (ptrdiff_t next = 0; next < width; next += BLOCK) {
        const ptrdiff_t x = next + BLOCK <= width ? next : width - BLOCK;
        __m512i sums[4] = {half, half, half, half};
        for (int i = 0; i < pairs; i++) {
            const uint8_t *upper = first + 2 * i * source_stride + x;
            const uint8_t *lower = 2 * i + 1 < size ? upper + source_stride : upper;
            const __m512i both = _mm512_set1_epi32(weights[i]);
            __m512i a = _mm512_loadu_si512(upper), b = _mm512_loadu_si512(lower);
            __m512i low = _mm512_unpacklo_epi8(a, b), high = _mm512_unpackhi_epi8(a, b);
            sums[0] = _mm512_dpwssd_epi32(sums[0], _mm512_unpacklo_epi8(low, zero), both);
            sums[1] = _mm512_dpwssd_epi32(sums[1], _mm512_unpackhi_epi8(low, zero), both);
            sums[2] = _mm512_dpwssd_epi32(sums[2], _mm512_unpacklo_epi8(high, zero), both);
            sums[3] = _mm512_dpwssd_epi32(sums[3], _mm512_unpackhi_epi8(high, zero), both);
        }
        for (int i = 0; i < 4; i++) sums[i] = _mm512_sra_epi32(sums[i], shift);
        __m512i words[2] = {_mm512_packs_epi32(sums[0], sums[1]), _mm512_packs_epi32(sums[2], sums[3])};
        _mm512_storeu_si512(output + x, _mm512_packus_epi16(words[0], words[1]));
    }
}

AVX512 void vertical_row_avx512(const uint8_t *source, ptrdiff_t source_stride, uint8_t *output, ptrdiff_t width,
                                const Axis *axis, int row) {
    const uint8_t *first = source + axis->first[row] * source_stride;
    const int pairs = (axis->sizes[row] + 1) / 2;

    if (width < BLOCK)
        vertical_row_avx2(source, source_stride, output, width, axis, row);
    else if (pairs == 1)
        one_row(first, source_stride, output, width, axis, row, 1);
    else if (pairs == 2)
        one_row(first, source_stride, output, width, axis, row, 2);
    else
        one_row(first, source_stride, output, width, axis, row, pairs);
}

AVX512 void vertical_avx512(const uint8_t *source, ptrdiff_t source_stride, uint8_t *output, ptrdiff_t output_stride,
                            ptrdiff_t width, const Axis *axis) {
    for (int row = 0; row < axis->count; row++, output += output_stride)
        vertical_row_avx512(source, source_stride, output, width, axis, row);
}
#endif

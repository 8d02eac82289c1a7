/* The passes with AVX2, byte for byte those of resize.c. Compiled for every x86-64; resize.c asks the processor. */
#include "turbo.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#define AVX2 __attribute__((target("avx2")))

/* One output pixel of two rows: red, green and blue as int32, one row in each half. */
AVX2 static inline __m256i weigh_pixel(const uint8_t *upper, const uint8_t *lower, const int16_t *weights, int taps,
                                       __m256i sum) {
    /* Bytes to pairs of int16: red of pixel 0 and 1, green, blue, nothing; then those of pixel 2 and 3. */
    const __m256i front =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
    const __m256i back =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1));

    for (int i = 0; i < taps; i += 4) {
        int32_t pairs[2];
        memcpy(pairs, weights + i, sizeof(pairs)); /* both exist: their number is a multiple of 4 */
        __m256i pixels = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)upper)),
                                                 _mm_loadu_si128((const __m128i *)lower), 1);
        sum = _mm256_add_epi32(
            sum, _mm256_madd_epi16(_mm256_shuffle_epi8(pixels, front), _mm256_set1_epi32(pairs[0])));
        if (i + 2 >= taps) break;
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_shuffle_epi8(pixels, back), _mm256_set1_epi32(pairs[1])));
        upper += 12;
        lower += 12;
    }
    return sum;
}

AVX2 static inline void store_four_pixels(uint8_t *output, __m128i pixels) {
    int32_t last = _mm_extract_epi32(pixels, 2);
    _mm_storel_epi64((__m128i *)output, pixels);
    memcpy(output + 8, &last, sizeof(last));
}

AVX2 static inline void two_rows(const uint8_t *upper, const uint8_t *lower, uint8_t *upper_output,
                                 uint8_t *lower_output, const Axis *axis, int taps) {
    const __m256i half = _mm256_set1_epi32(1 << axis->shift >> 1);
    const __m128i shift = _mm_cvtsi32_si128(axis->shift);
    const __m256i dense =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
    const int16_t *weights = axis->weights;
    int x = 0;

    for (; x + 4 <= axis->count; x += 4) {
        __m256i sums[4];
        for (int i = 0; i < 4; i++, weights += axis->taps) {
            ptrdiff_t offset = (ptrdiff_t)axis->first[x + i] * 3;
            sums[i] = _mm256_sra_epi32(weigh_pixel(upper + offset, lower + offset, weights, taps, half), shift);
        }
        __m256i words[2] = {_mm256_packs_epi32(sums[0], sums[1]), _mm256_packs_epi32(sums[2], sums[3])};
        __m256i bytes = _mm256_shuffle_epi8(_mm256_packus_epi16(words[0], words[1]), dense);
        store_four_pixels(upper_output + 3 * x, _mm256_castsi256_si128(bytes));
        store_four_pixels(lower_output + 3 * x, _mm256_extracti128_si256(bytes, 1));
    }
    horizontal_rest(upper, upper_output, x, axis);
    horizontal_rest(lower, lower_output, x, axis);
}

AVX2 void horizontal_avx2(const uint8_t *source, ptrdiff_t source_stride, uint8_t *output, ptrdiff_t output_stride,
                          int rows, const Axis *axis) {
    int taps = 0;

    for (int x = 0; x < axis->count; x++)
        if (axis->sizes[x] > taps) taps = axis->sizes[x];
    taps = (taps + 1) & ~1;
    for (int row = 0; row < rows; row += 2) {
        int next = row + 1 < rows ? row + 1 : row;
        const uint8_t *upper = source + row * source_stride, *lower = source + next * source_stride;
        uint8_t *upper_output = output + row * output_stride, *lower_output = output + next * output_stride;
        /* A known number of taps lets the compiler unroll the inner loop; most crops have no more than 8. */
        if (taps == 2)
            two_rows(upper, lower, upper_output, lower_output, axis, 2);
        else if (taps == 4)
            two_rows(upper, lower, upper_output, lower_output, axis, 4);
        else if (taps == 6)
            two_rows(upper, lower, upper_output, lower_output, axis, 6);
        else if (taps == 8)
            two_rows(upper, lower, upper_output, lower_output, axis, 8);
        else
            two_rows(upper, lower, upper_output, lower_output, axis, taps);
    }
}

/* `pairs` pairs of rows; the row behind the last one stands in with weight 0 where their number is odd. The last vector
 * overlaps the one before it. */
AVX2 static inline void one_row(const uint8_t *first, ptrdiff_t source_stride, uint8_t *output, ptrdiff_t width,
                                const int16_t *weights, int size, int pairs, int shift_bits) {
    const __m128i shift = _mm_cvtsi32_si128(shift_bits);
    const __m256i half = _mm256_set1_epi32(1 << shift_bits >> 1), zero = _mm256_setzero_si256();

    for (ptrdiff_t next = 0; next < width; next += 32) {
        ptrdiff_t x = next + 32 <= width ? next : width - 32;
        __m256i sums[4] = {half, half, half, half};
        for (int i = 0; i < pairs; i++) {
            const uint8_t *upper = first + 2 * i * source_stride + x;
            const uint8_t *lower = 2 * i + 1 < size ? upper + source_stride : upper;
            int32_t pair;
            memcpy(&pair, weights + 2 * i, sizeof(pair));
            __m256i both = _mm256_set1_epi32(pair);
            __m256i a = _mm256_loadu_si256((const __m256i *)upper), b = _mm256_loadu_si256((const __m256i *)lower);
            __m256i low = _mm256_unpacklo_epi8(a, b), high = _mm256_unpackhi_epi8(a, b);
            sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(_mm256_unpacklo_epi8(low, zero), both));
            sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(_mm256_unpackhi_epi8(low, zero), both));
            sums[2] = _mm256_add_epi32(sums[2], _mm256_madd_epi16(_mm256_unpacklo_epi8(high, zero), both));
            sums[3] = _mm256_add_epi32(sums[3], _mm256_madd_epi16(_mm256_unpackhi_epi8(high, zero), both));
        }
        for (int i = 0; i < 4; i++) sums[i] = _mm256_sra_epi32(sums[i], shift);
        __m256i words[2] = {_mm256_packs_epi32(sums[0], sums[1]), _mm256_packs_epi32(sums[2], sums[3])};
        _mm256_storeu_si256((__m256i *)(output + x), _mm256_packus_epi16(words[0], words[1]));
    }
}

AVX2 void vertical_row_avx2(const uint8_t *source, ptrdiff_t source_stride, uint8_t *output, ptrdiff_t width,
                            const Axis *axis, int row) {
    const int16_t *weights = axis->weights + (ptrdiff_t)row * axis->taps;
    const uint8_t *first = source + axis->first[row] * source_stride;
    const int size = axis->sizes[row], pairs = (size + 1) / 2;

    if (width < 32)
        vertical_rest(source, source_stride, output, 0, width, axis, row);
    else if (pairs == 1)
        one_row(first, source_stride, output, width, weights, size, 1, axis->shift);
    else if (pairs == 2)
        one_row(first, source_stride, output, width, weights, size, 2, axis->shift);
    else
        one_row(first, source_stride, output, width, weights, size, pairs, axis->shift);
}

AVX2 void vertical_avx2(const uint8_t *source, ptrdiff_t source_stride, uint8_t *output, ptrdiff_t output_stride,
                        ptrdiff_t width, const Axis *axis) {
    for (int row = 0; row < axis->count; row++, output += output_stride)
        vertical_row_avx2(source, source_stride, output, width, axis, row);
}
#endif

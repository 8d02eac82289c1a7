/* Chroma at the size of luma, as libjpeg interpolates it: 3/4 of the nearer sample and 1/4 of the other, along columns
 * first; halves are rounded up and down in turn. The loops are compiled twice, and the compiler makes vector code of
 * them. */
#include <string.h>

#include "turbo.h"

static inline __attribute__((always_inline)) void fine_row(const ChromaRow *row, uint16_t *restrict sums,
                                                           uint8_t *restrict output) {
    const uint8_t *near = row->near + row->begin, *far = row->far == NULL ? NULL : row->far + row->begin;
    const int count = row->count, turn = row->turn;
    const int first = row->begin > 0 ? -1 : 0, last = row->begin + count < row->length ? count + 1 : count;
    uint16_t *sum = sums + 1;

    if (!row->doubled) {
        if (far == NULL)
            memcpy(output, near, (size_t)count);
        else
            for (int i = 0; i < count; i++) output[i] = (uint8_t)((3 * near[i] + far[i] + 1 + turn) >> 2);
        return;
    }
    if (!row->interpolated) {
        for (int i = 0; i < count; i++) output[2 * i] = output[2 * i + 1] = near[i];
        return;
    }
    if (far == NULL)
        for (int i = first; i < last; i++) sum[i] = near[i];
    else
        for (int i = first; i < last; i++) sum[i] = (uint16_t)(3 * near[i] + far[i]);
    if (first == 0) sum[-1] = sum[0];
    if (last == count) sum[count] = sum[count - 1];
    const int one = far == NULL ? 1 : 8, other = far == NULL ? 2 : 7, shift = far == NULL ? 2 : 4;
    for (int i = 0; i < count; i++) {
        const uint16_t thrice = (uint16_t)(3 * sum[i]);
        const uint16_t left = (uint16_t)((uint16_t)(thrice + sum[i - 1] + one) >> shift);
        const uint16_t right = (uint16_t)((uint16_t)(thrice + sum[i + 1] + other) >> shift);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
        /* In one store: of two, the compiler makes shuffles that take half of the time (2026-11). */
        const uint16_t both = (uint16_t)(left | right << 8);
        memcpy(output + 2 * i, &both, sizeof(both));
#else
        output[2 * i] = (uint8_t)left;
        output[2 * i + 1] = (uint8_t)right;
#endif
    }
}

void fine_row_portable(const ChromaRow *row, uint16_t *sums, uint8_t *output) { fine_row(row, sums, output); }

#if defined(__x86_64__)
__attribute__((target("avx2"))) void fine_row_avx2(const ChromaRow *row, uint16_t *sums, uint8_t *output) {
    fine_row(row, sums, output);
}
#endif

/* The filter of chroma planes that are less fine than luma.
 *
 * A decoder first interpolates chroma to the size of luma (3/4 of the nearer sample, 1/4 of the other, as libjpeg) and
 * then resamples. Both are weighted sums along each axis, and so is one after the other: the weight of a chroma sample
 * is the sum, over all luma pixels that an output takes, of the pixel's weight times the sample's part in that pixel.
 * So crops at odd offsets, and edges, are right by construction. */
#include <string.h>

#include "turbo.h"

/* One luma pixel is 4 parts of chroma samples, and an output two of luma, or the same one twice: 8 parts. */

typedef struct {
    const Axis *luma;
    int factor, length;
    bool interpolated;
} Chroma;

static int clamped(int value, int length) { return value < 0 ? 0 : value >= length ? length - 1 : value; }

static int first_of(const Axis *axis, int i) { return axis->identity ? axis->begin + i : axis->first[i]; }
static int size_of(const Axis *axis, int i) { return axis->identity ? 1 : axis->sizes[i]; }

/* The chroma samples of which luma pixel `position` is made: the nearer one and the other. */
static int near(const Chroma *chroma, int position) { return clamped(position / chroma->factor, chroma->length); }
static int far(const Chroma *chroma, int position) {
    int at = position / chroma->factor;
    return chroma->factor == 1 || !chroma->interpolated ? clamped(at, chroma->length)
                                                        : clamped(position & 1 ? at + 1 : at - 1, chroma->length);
}

/* Adds output `i` of luma, `parts` times. */
static void add_output(const Chroma *chroma, int i, int parts, int first, int32_t *sums) {
    const Axis *luma = chroma->luma;
    const int16_t *weights = luma->identity ? NULL : luma->weights + (ptrdiff_t)i * luma->taps;

    for (int j = 0, position = first_of(luma, i); j < size_of(luma, i); j++, position++) {
        int32_t weight = parts * (weights == NULL ? 1 << luma->shift : weights[j]);
        sums[near(chroma, position) - first] += 3 * weight;
        sums[far(chroma, position) - first] += weight;
    }
}

bool axis_make_chroma(Axis *axis, Buffer *temporary, const Axis *luma, int factor, int length, bool interpolated,
                      bool halved, int parity) {
    const Chroma chroma = {.luma = luma, .factor = factor, .length = length, .interpolated = interpolated};
    const int count = halved ? (luma->count + parity + 1) / 2 : luma->count;
    int32_t *first = buffer_reserve(&axis->memory, 2 * (size_t)count * sizeof(int32_t)), *sizes = first + count;
    int taps = 1;

    if (first == NULL) return false;
    for (int i = 0; i < count; i++) {
        int one = halved ? clamped(2 * i - parity, luma->count) : i;
        int other = halved ? clamped(2 * i - parity + 1, luma->count) : i;
        int start = first_of(luma, one), last = first_of(luma, other) + size_of(luma, other) - 1;
        /* The nearer sample of the next pixel can lie before the other one of this. */
        int low = near(&chroma, start), high = near(&chroma, last);
        if (far(&chroma, start) < low) low = far(&chroma, start);
        if (far(&chroma, last) > high) high = far(&chroma, last);
        first[i] = low;
        sizes[i] = high - low + 1;
        if (sizes[i] > taps) taps = sizes[i];
    }
    taps = (taps + 3) & ~3;
    size_t cells = (size_t)count * (size_t)taps, head = 2 * (size_t)count * sizeof(int32_t);
    int32_t *sums = buffer_reserve(temporary, cells * sizeof(int32_t) + head);
    if (sums == NULL) return false;
    int32_t *kept = sums + cells;
    memcpy(kept, first, head);
    memset(sums, 0, cells * sizeof(int32_t));
    int32_t most = 0;
    for (int i = 0; i < count; i++) {
        int32_t *row = sums + (ptrdiff_t)i * taps;
        int one = halved ? clamped(2 * i - parity, luma->count) : i;
        int other = halved ? clamped(2 * i - parity + 1, luma->count) : i;
        add_output(&chroma, one, one == other ? 2 : 1, kept[i], row);
        if (one != other) add_output(&chroma, other, 1, kept[i], row);
        for (int j = 0; j < taps; j++)
            if (row[j] > most) most = row[j];
    }
    int drop = 3;
    while (most >> drop >= INT16_MAX) drop++;

    char *memory = buffer_reserve(&axis->memory, head + cells * sizeof(int16_t));
    if (memory == NULL) return false;
    memcpy(memory, kept, head);
    int16_t *weights = (int16_t *)(memory + head);
    for (int i = 0; i < count; i++) {
        int32_t total = 1 << drop >> 1, before = 0;
        /* What a rounding leaves goes to the next weight, so that their sum is exact. */
        for (int j = 0; j < taps; j++) {
            total += sums[(ptrdiff_t)i * taps + j];
            weights[(ptrdiff_t)i * taps + j] = (int16_t)((total >> drop) - before);
            before = total >> drop;
        }
    }
    axis->count = count;
    axis->taps = taps;
    axis->shift = luma->shift + 3 - drop;
    axis->identity = false;
    axis->first = (int32_t *)memory;
    axis->sizes = axis->first + count;
    axis->weights = weights;
    axis->begin = axis->first[0];
    axis->end = 0;
    for (int i = 0; i < count; i++)
        if (axis->first[i] + axis->sizes[i] > axis->end) axis->end = axis->first[i] + axis->sizes[i];
    return true;
}

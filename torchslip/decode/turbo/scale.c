/* At which scale the views of a picture are decoded. */
#include "turbo.h"

int choose_denominator(const int64_t *view, double least_ratio) {
    for (int denominator = 8; least_ratio > 0 && denominator > 1; denominator /= 2) {
        const double least = least_ratio * denominator / 2;
        if ((double)view[HEIGHT] >= least * (double)view[RESIZED_HEIGHT] &&
            (double)view[WIDTH] >= least * (double)view[RESIZED_WIDTH])
            return denominator;
    }
    return 1;
}

/* Nanoseconds of one core, about (AMD EPYC, 2026-11); only their ratios matter. */
#define OF_A_BYTE 6.0     /* entropy decoding, which takes as long at any scale */
#define OF_A_PIXEL 1.3    /* inverse DCT, chroma and colours of the region of all views */
#define OF_RESIZING 0.4   /* one pixel of the crop of a view */

/* One decode at 1 / `denominator` for the views that could take any of `members`. */
static double work_of(const Decodes *decodes, const int *denominators, unsigned members, int denominator) {
    int64_t top = INT64_MAX, left = INT64_MAX, bottom = 0, right = 0;
    double resized = 0;

    for (int64_t i = 0; i < decodes->views; i++) {
        if (!(members & (unsigned)denominators[i])) continue;
        const int64_t *view = decodes->geometry + i * decodes->stride;
        const int64_t below = view[TOP] + view[HEIGHT], behind = view[LEFT] + view[WIDTH];
        if (view[TOP] < top) top = view[TOP];
        if (view[LEFT] < left) left = view[LEFT];
        if (below > bottom) bottom = below;
        if (behind > right) right = behind;
        resized += (double)view[HEIGHT] * (double)view[WIDTH];
    }
    const double pixels = (double)(bottom - top) * (double)(right - left), area = denominator * denominator;
    return OF_A_BYTE * (double)decodes->bytes * (double)bottom / (double)decodes->height +
           (OF_A_PIXEL * pixels + OF_RESIZING * resized) / area;
}

unsigned join_scales(const Decodes *decodes, int *denominators) {
    unsigned wanted = 0, remaining = 0;

    for (int64_t i = 0; i < decodes->views; i++) wanted |= (unsigned)denominators[i];
    if ((wanted & (wanted - 1)) == 0) return wanted;
    unsigned group = 0;
    int scale = 0, taken[9] = {0};
    for (int each = 1; each <= 8; each *= 2) {
        if (!(wanted & (unsigned)each)) continue;
        if (group == 0 || work_of(decodes, denominators, group | (unsigned)each, scale) >
                              work_of(decodes, denominators, group, scale) +
                                  work_of(decodes, denominators, (unsigned)each, each)) {
            group = 0;
            scale = each;
        }
        group |= (unsigned)each;
        taken[each] = scale;
        remaining |= (unsigned)scale;
    }
    for (int64_t i = 0; i < decodes->views; i++) denominators[i] = taken[denominators[i]];
    return remaining;
}

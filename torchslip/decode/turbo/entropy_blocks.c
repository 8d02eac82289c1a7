/* The blocks of an MCU, decoded or passed over.
 *
 * Each lookup needs the length of the one before, 7 cycles later at best; a block of a smooth picture of 3 megapixels
 * takes 82 cycles for 5 lookups, one of 256 pixels and quality 95 takes 200 for 15. Much of the rest is the end of the
 * block, which cannot be predicted. Still, to choose the next table by arithmetic and not by a branch was no gain: 96
 * cycles instead of 90, and 268 instead of 222. Nor were both lookups at once, one of which is dropped: 85, and 217
 * (AMD EPYC, 2026-11). */
#include "entropy.h"

/* Natural order of zigzag order. An end of a block is written too, as a zero behind the others, where nothing is. */
static const uint8_t natural_order[END_OF_BLOCK + 64] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6,
    7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46,
    53, 60, 61, 54, 47, 55, 62, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63,
    63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63,
    63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63,
    63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63,
    63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63,
};

/* One coefficient, the index of which is `k` or more, and then less than the new one. Whether the block ends. */
static __attribute__((noinline)) bool take_one(Context *context, Bits *at, const Table *table, unsigned *k,
                                               JCOEF *block) {
    refill(at);
    const int code = code_at(table->first, at->bits), length = code & 255, symbol = code >> 8;
    const int size = table->dc ? symbol : symbol & 15;
    if (code == 0) entropy_refuse(context);
    const int value = value_of(at->bits << length, size);
    take(at, length + size);
    refill(at);
    if (!table->dc && is_end(symbol)) return true;
    if (!table->dc) *k += (unsigned)symbol >> 4;
    if (*k > 63) entropy_refuse(context);
    block[natural_order[*k]] = (JCOEF)value;
    return ++*k == 64;
}

/* The coefficients of one lookup, from index `k` on. Whether the block ends with them. Nothing but the DC coefficient is
 * stored if `all` is false. Bits are loaded if `load` is true: after the lookup, while its result is waited for, which
 * takes 10 % less than before it (2026-11). */
static inline __attribute__((always_inline)) bool take_some(Context *context, Bits *at, const Table *table, unsigned *k,
                                                            JCOEF *block, bool all, bool dc, bool load) {
    const Entry entry = table->entries[lookup_of(at)];
    const unsigned last = *k + entry.last;

    if (load) refill(at);
    if (__builtin_expect(is_apart(last), 0)) {
        /* Copies, so that these here stay in registers. */
        Bits bits = *at;
        unsigned next = *k;
        const bool ends = take_one(context, &bits, table, &next, block);
        *at = bits;
        *k = next;
        return ends;
    }
    const int size = entry.run_size >> 4;
    if (all || dc) {
        const int value = value_of(at->bits << (entry.length - size), size);
        if (all) {
            block[natural_order[*k + (entry.run_size & 15)]] = entry.value;
            block[natural_order[last]] = (JCOEF)value;
        } else {
            block[0] = (JCOEF)(entry.last == 0 ? value : entry.value);
        }
    }
    take(at, entry.length);
    *k = last + 1;
    return last >= END_OF_BLOCK;
}

/* A block, with the difference of its DC coefficient. There are bits enough to load more for every other lookup. */
static inline __attribute__((always_inline)) void take_block(Context *context, Bits *at, const Place *place,
                                                             JCOEF *block, bool all) {
    const Table *ac = place->ac;
    unsigned k = 0;

    if (take_some(context, at, place->dc, &k, block, all, true, true)) return;
    for (;;) {
        if (take_some(context, at, ac, &k, block, all, false, false)) return;
        if (take_some(context, at, ac, &k, block, all, false, true)) return;
    }
}

void mcu_decode(Context *context, struct Entropy *entropy, JBLOCKROW *blocks) {
    Bits at = entropy->at;

    refill(&at);
    for (int i = 0; i < entropy->blocks; i++) {
        const Place *place = &entropy->places[i];
        JCOEF *block = *blocks[i];
        take_block(context, &at, place, block, true);
        const int dc = entropy->predictions[place->member] + block[0];
        if (dc != (int16_t)dc) entropy_refuse(context);
        entropy->predictions[place->member] = dc;
        block[0] = (JCOEF)dc;
    }
    entropy->at = at;
    /* Bits that were not there. */
    if (at.next - (at.count >> 3) > entropy->end) entropy_refuse(context);
}

void mcus_pass(Context *context, struct Entropy *entropy, int64_t count) {
    Bits at = entropy->at;
    JCOEF block[DCTSIZE2];

    refill(&at);
    for (; count > 0; count--) {
        for (int i = 0; i < entropy->blocks; i++) {
            const Place *place = &entropy->places[i];
            take_block(context, &at, place, block, false);
            const int dc = entropy->predictions[place->member] + block[0];
            if (dc != (int16_t)dc) entropy_refuse(context);
            entropy->predictions[place->member] = dc;
        }
        if (at.next - (at.count >> 3) > entropy->end) entropy_refuse(context);
    }
    entropy->at = at;
}

/* What the parts of the entropy decoder share. */
#ifndef TORCHSLIP_ENTROPY_H
#define TORCHSLIP_ENTROPY_H

#include <string.h>

#include "turbo.h"

/* Bits that are looked up at once. With 11, crops decode 1 to 2 % slower; with 9, 3 to 6 %, and 1 % where the file has
 * tables of its own, which are made for each (2026-11). */
#define LOOKUP_BITS 10
#define LOOKUPS (1 << LOOKUP_BITS)

/* Bits that are taken at once: of 56, enough for a lookup are left after two times. */
#define MAX_LENGTH 21

/* What the end of a block adds to the index of a coefficient, and what a lookup that cannot be taken at once does. */
#define END_OF_BLOCK 128
#define APART 64

/* Whether a lookup must be taken one by one: if the last coefficient is among its own, no end of the block follows that
 * one, and the rest is of the next block. `index` is that of the last of them; all of it costs one comparison. */
static inline bool is_apart(unsigned index) { return (index & (END_OF_BLOCK - 1)) >= 63; }

/* The codes of a table in a file. */
typedef struct {
    uint64_t version;               /* another number whenever they change; 0: there are none yet */
    uint8_t bits[17], symbols[256]; /* as in the file; what the rest was made of */
    uint16_t codes[LOOKUPS];        /* length of the first code, and its symbol above; 0: longer than the lookup */
    int64_t least_above[17];        /* codes of this length are below it, shifted to 16 bits */
    int32_t first_symbol[17];       /* index of the symbol of code 0 of this length */
} Codes;

/* The coefficients that begin in the next bits: one or two, so many as have their codes within the lookup. Four bytes:
 * four tables of them take half of the first cache. */
typedef struct {
    uint8_t length;   /* of all of it, in bits: up to the end of the value of the last */
    uint8_t run_size; /* zeros before the first, and above that the bits of the value of the last */
    uint8_t last;     /* index of the last, relative to that of the next one; END_OF_BLOCK and more: it is that */
    int8_t value;     /* of the first, if there are two; else 0, which that of the last replaces */
} Entry;

/* What bits may mean, at the beginning of a block and after that. */
typedef struct {
    Entry entries[LOOKUPS];
    const Codes *first, *then;
    uint64_t versions[2]; /* of these */
    bool dc; /* the first is the DC coefficient */
} Table;

/* A block of an MCU. */
typedef struct {
    const Table *dc, *ac;
    int member;
} Place;

/* Bits that come next, from the top. */
typedef struct {
    uint64_t bits;
    int count; /* of those that are there */
    const uint8_t *next;
} Bits;

struct Entropy {
    Codes dc_codes[NUM_HUFF_TBLS], ac_codes[NUM_HUFF_TBLS];
    Table dc[NUM_HUFF_TBLS][NUM_HUFF_TBLS], ac[NUM_HUFF_TBLS]; /* DC with the AC that follows, and AC */
    uint64_t version; /* the last one given */
    Buffer data, segments;

    /* The picture at hand. */
    Place places[D_MAX_BLOCKS_IN_MCU];
    int blocks;
    const uint8_t *begin;
    size_t *ends; /* of the segments between restart markers, as offsets in the data */
    size_t segment_count;
    int64_t next_mcu;                  /* that libjpeg will ask for, */
    int next_column;                   /* and its column */
    int64_t parsed_mcus;               /* the bits stand behind so many */
    int64_t interval;                  /* MCUs of a segment */
    int64_t segment_end;               /* behind the MCUs of the one that the bits stand in */
    int first_column, last_column, columns;
    Bits at;
    const uint8_t *end; /* of the segment */
    int predictions[MAX_COMPS_IN_SCAN];
};

/* Makes them at least 56. */
static inline void refill(Bits *at) {
    uint64_t word;
    memcpy(&word, at->next, sizeof(word));
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    at->bits |= word >> at->count;
    at->next += (63 - at->count) >> 3;
    at->count |= 56;
}

static inline void take(Bits *at, int count) {
    at->bits <<= count;
    at->count -= count;
}

static inline unsigned lookup_of(const Bits *at) { return (unsigned)(at->bits >> (64 - LOOKUP_BITS)); }

/* The first `size` bits, as T.81 codes values: negative ones begin with 0, and are one's complements. */
static inline int value_of(uint64_t bits, int size) {
    const uint64_t negative = ~(uint64_t)((int64_t)bits >> 63);
    return (int)(((bits ^ negative) >> 1 >> (63 - size) ^ negative) - negative);
}

/* Of AC: the rest of the block is zero. The other symbol without a value is 16 zeros. */
static inline bool is_end(int symbol) { return (symbol & 15) == 0 && symbol != 0xF0; }

/* Makes what a table of the file needs, unless it is as it was. */
void codes_make(struct Entropy *entropy, Codes *codes, const JHUFF_TBL *table);
void table_make(Table *table, const Codes *first, const Codes *then, bool dc);
/* The length of the next code, and its symbol above; 0 if there is no such code. */
int code_at(const Codes *codes, uint64_t bits);

/* The next MCU, into `blocks`, which are zero; and so many MCUs, passed over. Damaged data is left to libjpeg. */
void mcu_decode(Context *context, struct Entropy *entropy, JBLOCKROW *blocks);
void mcus_pass(Context *context, struct Entropy *entropy, int64_t count);

/* Leaves the picture to libjpeg. */
_Noreturn void entropy_refuse(Context *context);

#endif

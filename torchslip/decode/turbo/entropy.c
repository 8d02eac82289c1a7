/* The entropy-coded data of a baseline JPEG (ITU-T T.81, F.2.2), decoded in place of libjpeg's own Huffman decoder.
 *
 * libjpeg asks for one MCU after the other through a function pointer, which is replaced here. What is different:
 *
 *   - the data is copied once without its stuffed zeros, so that bits are loaded eight bytes at a time, unchecked;
 *   - a table of the next bits gives run, value and length of a coefficient at once;
 *   - an MCU outside the region is not decoded but passed over, several coefficients at a time, and only if one that is
 *     needed follows it before the next restart marker: where there are such markers, all other tiles cost nothing.
 *
 * Whatever is not as it should be (codes that do not exist, data that ends early, markers out of order) is left to
 * libjpeg: `refused` is set, and the picture is decoded again without this. So damaged files give the same pixels. */
#include <stdlib.h>
#include <string.h>

#include "turbo.h"

/* How jpegint.h, which not every distribution installs, begins the decoder; so since libjpeg 6 (1995). */
typedef struct {
    void (*start_pass)(j_decompress_ptr);
    boolean (*decode_mcu)(j_decompress_ptr, JBLOCKROW *);
} EntropyDecoder;

/* Bits that are looked up at once. With 11, files of 40 kB that have the usual tables decode as fast, and those with
 * tables of their own, which are made for each file, 5 % slower (2026-11). */
#define LOOKUP_BITS 10
#define LOOKUPS (1 << LOOKUP_BITS)

/* An advance that no block survives. */
#define END_OF_BLOCK 128

/* The bytes that may be loaded behind the end of the data: an MCU has at most 10 blocks, of 64 coefficients, of 31
 * bits. */
#define PADDING_BYTES 4096

/* The coefficients that begin in the next bits: one or two, so many as have their codes within the lookup. */
typedef struct {
    uint8_t length;        /* of all of it, in bits; 0: the first code is longer than the lookup */
    uint8_t advance;       /* by how much the index of the coefficient grows, */
    uint8_t offset, size;  /* and where the bits of its value lie */
    uint8_t advance_2;     /* the same of the second; if there is none, 0 and those of the first again */
    uint8_t offset_2, size_2;
    uint8_t unused; /* eight bytes are found sooner than seven */
} Entry;

/* What can be passed over at once. */
typedef struct {
    uint8_t length, advance; /* 0: not known yet */
} Pass;

typedef struct {
    bool made;
    uint8_t bits[17], symbols[256]; /* as in the file; what the rest was made of */
    uint16_t codes[LOOKUPS];        /* length of the first code, and its symbol above; 0: longer than the lookup */
    Entry entries[LOOKUPS];
    Pass passes[LOOKUPS];
    int64_t least_above[17];    /* codes of this length are below it, shifted to 16 bits */
    int32_t first_symbol[17];   /* index of the symbol of code 0 of this length */
} Codes;

/* Bits that come next, from the top. */
typedef struct {
    uint64_t bits;
    int count; /* of those that are there */
    const uint8_t *next;
} Bits;

struct Entropy {
    Codes dc[NUM_HUFF_TBLS], ac[NUM_HUFF_TBLS];
    Buffer data, segments;

    /* The picture at hand. */
    const uint8_t *begin;
    size_t *ends; /* of the segments between restart markers, as offsets in the data */
    size_t segment_count;
    int64_t next_mcu;    /* that libjpeg will ask for */
    int64_t parsed_mcus; /* the bits stand behind so many */
    int64_t interval;    /* MCUs of a segment */
    int64_t segment;     /* that the bits stand in */
    int first_column, last_column, columns;
    Bits at;
    const uint8_t *end; /* of the segment */
    int predictions[MAX_COMPS_IN_SCAN];
};

/* Zigzag order to natural order. */
static const uint8_t natural_order[64] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48,
    41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
    30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
};

static int advance_of(int symbol) { return (symbol & 15) || symbol == 0xF0 ? (symbol >> 4) + 1 : END_OF_BLOCK; }

static Entry make_entry(const Codes *codes, unsigned lookup) {
    int code = codes->codes[lookup], length = code & 255, symbol = code >> 8, size = symbol & 15;
    Entry entry = {0};

    if (code == 0) return entry;
    entry.advance = (uint8_t)advance_of(symbol);
    entry.offset = entry.offset_2 = (uint8_t)length;
    entry.size = entry.size_2 = (uint8_t)size;
    entry.length = (uint8_t)(length + size);
    code = entry.length < LOOKUP_BITS ? codes->codes[(lookup << entry.length) & (LOOKUPS - 1)] : 0;
    if (code != 0 && entry.length + (code & 255) <= LOOKUP_BITS) {
        entry.advance_2 = (uint8_t)advance_of(code >> 8);
        entry.offset_2 = (uint8_t)(entry.length + (code & 255));
        entry.size_2 = (uint8_t)(code >> 8 & 15);
        entry.length = (uint8_t)(entry.offset_2 + entry.size_2);
    }
    return entry;
}

/* libjpeg has checked the table when the scan began. */
static void make_codes(Codes *codes, const JHUFF_TBL *table, bool ac) {
    if (codes->made && memcmp(codes->bits, table->bits, sizeof(codes->bits)) == 0 &&
        memcmp(codes->symbols, table->huffval, sizeof(codes->symbols)) == 0)
        return;
    memcpy(codes->bits, table->bits, sizeof(codes->bits));
    memcpy(codes->symbols, table->huffval, sizeof(codes->symbols));
    memset(codes->passes, 0, sizeof(codes->passes));
    memset(codes->codes, 0, sizeof(codes->codes));
    int code = 0, symbol = 0;
    for (int length = 1; length <= 16; length++, code <<= 1) {
        codes->first_symbol[length] = symbol - code;
        for (int i = 0; i < table->bits[length] && symbol < 256; i++, code++, symbol++)
            for (int rest = 0; length <= LOOKUP_BITS && rest < 1 << (LOOKUP_BITS - length); rest++)
                codes->codes[(code << (LOOKUP_BITS - length)) + rest] =
                    (uint16_t)(length | table->huffval[symbol] << 8);
        codes->least_above[length] = (int64_t)code << (16 - length);
    }
    for (unsigned lookup = 0; ac && lookup < LOOKUPS; lookup++) codes->entries[lookup] = make_entry(codes, lookup);
    codes->made = true;
}

/* Leaves the picture to libjpeg. */
static void refuse(Context *context) {
    context->refused = true;
    longjmp(context->escape, 1);
}

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

/* The length of the next code, and its symbol above; 0 if there is no such code. */
static int long_code(const Codes *codes, uint64_t bits) {
    int64_t next = (int64_t)(bits >> 48);
    for (int length = LOOKUP_BITS + 1; length <= 16; length++)
        if (next < codes->least_above[length])
            return length | codes->symbols[(codes->first_symbol[length] + (int)(next >> (16 - length))) & 255] << 8;
    return 0;
}

/* `size` bits from `offset` on, as T.81 codes values: negative ones begin with 0, and are one's complements. */
static inline int value_of(uint64_t bits, int offset, int size) {
    bits <<= offset;
    int64_t negative = (int64_t)~bits >> 63;
    return (int)((int64_t)(bits >> 1 >> (63 - size)) - (negative & ((1 << size) - 1)));
}

/* Takes one coefficient, of at most 31 bits, and returns its advance. */
static inline int take_one(Context *context, Bits *at, const Codes *codes, bool dc, int *value) {
    int code = codes->codes[lookup_of(at)];
    if (__builtin_expect(code == 0, 0) && (code = long_code(codes, at->bits)) == 0) refuse(context);
    int length = code & 255, symbol = code >> 8, size = dc ? symbol : symbol & 15;
    *value = value_of(at->bits, length, size);
    take(at, length + size);
    return dc ? 0 : advance_of(symbol);
}

static inline int read_dc(Context *context, Bits *at, const Codes *codes, int prediction) {
    int difference;
    refill(at);
    take_one(context, at, codes, true, &difference);
    prediction += difference;
    if (prediction != (int16_t)prediction) refuse(context);
    return prediction;
}

/* The last coefficient, or the end of the block before it. */
static inline void end_block(Context *context, unsigned k, int value, JCOEF *block) {
    if (k == 63)
        block[63] = (JCOEF)value;
    else if (k < END_OF_BLOCK)
        refuse(context);
}

static inline void decode_block(Context *context, Bits *at, const Codes *codes, JCOEF *block) {
    for (unsigned k = 0;;) {
        refill(at);
        for (int i = 0; i < 2; i++) {
            const Entry entry = codes->entries[lookup_of(at)];
            if (__builtin_expect(entry.length == 0, 0)) {
                int value;
                refill(at);
                k += (unsigned)take_one(context, at, codes, false, &value);
                if (k >= 63) {
                    end_block(context, k, value, block);
                    return;
                }
                block[natural_order[k]] = (JCOEF)value;
                break;
            }
            const uint64_t bits = at->bits;
            const int first = value_of(bits, entry.offset, entry.size);
            k += entry.advance;
            if (k >= 63) { /* whatever follows belongs to the next block */
                take(at, entry.offset + entry.size);
                end_block(context, k, first, block);
                return;
            }
            block[natural_order[k]] = (JCOEF)first;
            take(at, entry.length);
            k += entry.advance_2;
            const int second = value_of(bits, entry.offset_2, entry.size_2);
            if (k >= 63) {
                end_block(context, k, second, block);
                return;
            }
            block[natural_order[k]] = (JCOEF)second;
        }
    }
}

/* What can be passed over at once: as many coefficients as have their codes within the lookup. */
static __attribute__((noinline)) Pass make_pass(Codes *codes, unsigned lookup) {
    int length = 0, advance = 0;
    while (length < LOOKUP_BITS) {
        int code = codes->codes[(lookup << length) & (LOOKUPS - 1)];
        if (code == 0 || length + (code & 255) > LOOKUP_BITS) break;
        length += (code & 255) + (code >> 8 & 15);
        advance += advance_of(code >> 8);
        if (advance >= END_OF_BLOCK) break;
    }
    return codes->passes[lookup] = (Pass){(uint8_t)length, (uint8_t)advance};
}

static inline void pass_block(Context *context, Bits *at, Codes *codes) {
    for (unsigned k = 0;;) {
        refill(at);
        Pass pass = codes->passes[lookup_of(at)];
        if (__builtin_expect(pass.length == 0, 0)) pass = make_pass(codes, lookup_of(at));
        unsigned advance = pass.advance, last = k + (advance & (END_OF_BLOCK - 1));
        /* The last of several may belong to the next block already. */
        if (pass.length == 0 || last > 63 || (last == 63 && advance >= END_OF_BLOCK)) {
            int value;
            advance = (unsigned)take_one(context, at, codes, false, &value);
        } else {
            take(at, pass.length);
        }
        k += advance;
        if (k >= 63) {
            if (k > 63 && k < END_OF_BLOCK) refuse(context);
            return;
        }
    }
}

/* Bits of one MCU, into `blocks`, or passed over. */
static void parse_mcu(Context *context, struct Entropy *entropy, JBLOCKROW *blocks) {
    j_decompress_ptr jpeg = &context->jpeg;
    Bits at = entropy->at;

    for (int i = 0; i < jpeg->blocks_in_MCU; i++) {
        int member = jpeg->MCU_membership[i];
        const jpeg_component_info *component = jpeg->cur_comp_info[member];
        Codes *ac = &entropy->ac[component->ac_tbl_no];
        int dc = read_dc(context, &at, &entropy->dc[component->dc_tbl_no], entropy->predictions[member]);
        entropy->predictions[member] = dc;
        if (blocks == NULL) {
            pass_block(context, &at, ac);
        } else {
            (*blocks[i])[0] = (JCOEF)dc;
            decode_block(context, &at, ac, *blocks[i]);
        }
    }
    entropy->at = at;
    /* Bits that were not there. */
    if (at.next - (at.count >> 3) > entropy->end) refuse(context);
}

static void begin_segment(Context *context, struct Entropy *entropy, int64_t segment) {
    if ((size_t)segment >= entropy->segment_count) refuse(context);
    entropy->at = (Bits){.next = entropy->begin + (segment == 0 ? 0 : entropy->ends[segment - 1])};
    entropy->end = entropy->begin + entropy->ends[segment];
    memset(entropy->predictions, 0, sizeof(entropy->predictions));
    entropy->segment = segment;
    entropy->parsed_mcus = segment * entropy->interval;
}

/* In place of libjpeg's function: `blocks` are zero, or NULL if nobody needs them. */
static boolean decode_mcu(j_decompress_ptr jpeg, JBLOCKROW *blocks) {
    Context *context = jpeg->client_data;
    struct Entropy *entropy = context->entropy;
    const int64_t mcu = entropy->next_mcu++;
    const int column = (int)(mcu % entropy->columns);

    if (blocks == NULL || column < entropy->first_column || column > entropy->last_column) return TRUE;
    const int64_t segment = mcu / entropy->interval;
    if (segment != entropy->segment) begin_segment(context, entropy, segment);
    while (entropy->parsed_mcus < mcu) {
        parse_mcu(context, entropy, NULL);
        entropy->parsed_mcus++;
    }
    parse_mcu(context, entropy, blocks);
    entropy->parsed_mcus++;
    return TRUE;
}

/* Copies the entropy-coded data, and notes where its segments end. False: it is not as it should be. */
static bool gather(struct Entropy *entropy, const uint8_t *data, size_t size, size_t segments) {
    uint8_t *out = buffer_reserve(&entropy->data, size + PADDING_BYTES);
    size_t *ends = buffer_reserve(&entropy->segments, segments * sizeof(size_t));
    const uint8_t *last = data + size;
    if (out == NULL || ends == NULL) return false;
    entropy->begin = out;
    entropy->ends = ends;
    entropy->segment_count = 0;
    for (;;) {
        const uint8_t *marker = memchr(data, 0xFF, (size_t)(last - data));
        if (marker == NULL || marker + 1 == last) return false; /* there is no end */
        size_t before = (size_t)(marker - data);
        memcpy(out, data, before);
        out += before;
        data = marker + 2;
        if (marker[1] == 0) {
            *out++ = 0xFF;
            continue;
        }
        if (entropy->segment_count == segments) return false;
        ends[entropy->segment_count] = (size_t)(out - entropy->begin);
        if (marker[1] != JPEG_RST0 + (int)(entropy->segment_count++ & 7)) break;
    }
    memset(out, 0, PADDING_BYTES);
    /* Without restart markers the scan may go on behind one that is none, such as a fill byte: libjpeg knows. */
    return entropy->segment_count == segments && data[-1] == JPEG_EOI;
}

void entropy_take_over(Context *context, int first_column, int last_column) {
    j_decompress_ptr jpeg = &context->jpeg;

    if (context->refused || jpeg->progressive_mode || jpeg->arith_code || jpeg->data_precision != 8 ||
        jpeg_has_multiple_scans(jpeg) || jpeg->comps_in_scan != jpeg->num_components || jpeg->Ss != 0 ||
        jpeg->Se != DCTSIZE2 - 1)
        return;
    /* MCUs of a single component are single blocks, whatever its sampling factors say. */
    if (jpeg->num_components == 1 && (jpeg->max_h_samp_factor != 1 || jpeg->max_v_samp_factor != 1)) return;
    if (context->entropy == NULL && (context->entropy = calloc(1, sizeof(struct Entropy))) == NULL) return;
    struct Entropy *entropy = context->entropy;
    const int64_t mcus = (int64_t)jpeg->MCUs_per_row * jpeg->MCU_rows_in_scan;
    entropy->interval = jpeg->restart_interval == 0 ? mcus : jpeg->restart_interval;
    entropy->columns = (int)jpeg->MCUs_per_row;
    entropy->first_column = first_column;
    entropy->last_column = last_column;
    entropy->next_mcu = entropy->parsed_mcus = 0;
    const int64_t segments = (mcus + entropy->interval - 1) / entropy->interval;
    if (!gather(entropy, context->scan, context->scan_bytes, (size_t)segments)) return;
    begin_segment(context, entropy, 0);
    for (int i = 0; i < jpeg->comps_in_scan; i++) {
        const jpeg_component_info *component = jpeg->cur_comp_info[i];
        make_codes(&entropy->dc[component->dc_tbl_no], jpeg->dc_huff_tbl_ptrs[component->dc_tbl_no], false);
        make_codes(&entropy->ac[component->ac_tbl_no], jpeg->ac_huff_tbl_ptrs[component->ac_tbl_no], true);
    }
    ((EntropyDecoder *)jpeg->entropy)->decode_mcu = decode_mcu;
}

void entropy_trim(Context *context) {
    if (context->entropy == NULL) return;
    buffer_trim(&context->entropy->data);
    buffer_trim(&context->entropy->segments);
}

void entropy_release(Context *context) {
    if (context->entropy == NULL) return;
    buffer_release(&context->entropy->data);
    buffer_release(&context->entropy->segments);
    free(context->entropy);
    context->entropy = NULL;
}

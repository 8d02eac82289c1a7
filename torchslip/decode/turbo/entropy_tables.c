/* The tables of the entropy decoder: what the next bits mean. */
#include "entropy.h"

/* libjpeg has checked the table when the scan began. */
void codes_make(struct Entropy *entropy, Codes *codes, const JHUFF_TBL *table) {
    if (codes->version != 0 && memcmp(codes->bits, table->bits, sizeof(codes->bits)) == 0 &&
        memcmp(codes->symbols, table->huffval, sizeof(codes->symbols)) == 0)
        return;
    memcpy(codes->bits, table->bits, sizeof(codes->bits));
    memcpy(codes->symbols, table->huffval, sizeof(codes->symbols));
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
    codes->version = ++entropy->version;
}

int code_at(const Codes *codes, uint64_t bits) {
    int64_t next = (int64_t)(bits >> 48);
    int code = codes->codes[bits >> (64 - LOOKUP_BITS)];
    if (code != 0) return code;
    for (int length = LOOKUP_BITS + 1; length <= 16; length++)
        if (next < codes->least_above[length])
            return length | codes->symbols[(codes->first_symbol[length] + (int)(next >> (16 - length))) & 255] << 8;
    return 0;
}

static Entry make_entry(const Table *table, unsigned lookup) {
    const int code = table->first->codes[lookup], symbol = code >> 8;
    const int size = table->dc ? symbol : symbol & 15, run = table->dc ? 0 : symbol >> 4;
    const int begin = code & 255, end = begin + size; /* of the value */
    Entry entry = {.last = APART};

    if (code == 0 || end > MAX_LENGTH) return entry;
    entry.length = (uint8_t)end;
    if (!table->dc && is_end(symbol)) {
        entry.last = END_OF_BLOCK;
        return entry;
    }
    entry.last = (uint8_t)run;
    entry.run_size = (uint8_t)(run | size << 4);
    if (end >= LOOKUP_BITS) return entry;
    const int code_2 = table->then->codes[lookup << end & (LOOKUPS - 1)], symbol_2 = code_2 >> 8;
    const int begin_2 = end + (code_2 & 255), size_2 = symbol_2 & 15;
    const int value = value_of((uint64_t)lookup << (64 - LOOKUP_BITS + begin), size);
    if (code_2 == 0 || begin_2 > LOOKUP_BITS || begin_2 + size_2 > MAX_LENGTH || value != (int8_t)value) return entry;
    entry.value = (int8_t)value;
    entry.last = (uint8_t)(run + 1 + (is_end(symbol_2) ? END_OF_BLOCK : symbol_2 >> 4));
    entry.run_size = (uint8_t)(run | size_2 << 4);
    entry.length = (uint8_t)(begin_2 + size_2);
    return entry;
}

void table_make(Table *table, const Codes *first, const Codes *then, bool dc) {
    if (table->versions[0] == first->version && table->versions[1] == then->version) return;
    table->first = first;
    table->then = then;
    table->versions[0] = first->version;
    table->versions[1] = then->version;
    table->dc = dc;
    for (unsigned lookup = 0; lookup < LOOKUPS; lookup++) table->entries[lookup] = make_entry(table, lookup);
}

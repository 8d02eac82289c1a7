/* The entropy-coded data of a baseline JPEG (ITU-T T.81, F.2.2), decoded in place of libjpeg's own Huffman decoder.
 *
 * libjpeg asks for one MCU after the other through a function pointer, which is replaced here. What is different:
 *
 *   - the data is copied once without its stuffed zeros, so that bits are loaded eight bytes at a time, unchecked;
 *   - a table of the next bits gives two coefficients at once, or one and the end of the block (entropy_tables.c);
 *   - an MCU outside the region is not decoded but passed over (entropy_blocks.c), and only if one that is needed
 *     follows it before the next restart marker: where there are such markers, all other tiles cost nothing.
 *
 * Whatever is not as it should be (codes that do not exist, data that ends early, markers out of order) is left to
 * libjpeg: `refused` is set, and the picture is decoded again without this. So damaged files give the same pixels. */
#include <stdlib.h>

#include "entropy.h"

/* How jpegint.h, which not every distribution installs, begins the decoder; so since libjpeg 6 (1995). */
typedef struct {
    void (*start_pass)(j_decompress_ptr);
    boolean (*decode_mcu)(j_decompress_ptr, JBLOCKROW *);
} EntropyDecoder;

/* The bytes that may be loaded behind the end of the data: an MCU has at most 10 blocks, of 64 coefficients, of 31
 * bits. */
#define PADDING_BYTES 4096

/* Leaves the picture to libjpeg. */
void entropy_refuse(Context *context) {
    context->refused = true;
    longjmp(context->escape, 1);
}

/* Goes to the segment in which this MCU is. */
static void begin_segment(Context *context, struct Entropy *entropy, int64_t mcu) {
    const int64_t segment = mcu / entropy->interval;
    if ((size_t)segment >= entropy->segment_count) entropy_refuse(context);
    entropy->at = (Bits){.next = entropy->begin + (segment == 0 ? 0 : entropy->ends[segment - 1])};
    entropy->end = entropy->begin + entropy->ends[segment];
    memset(entropy->predictions, 0, sizeof(entropy->predictions));
    entropy->parsed_mcus = segment * entropy->interval;
    entropy->segment_end = entropy->parsed_mcus + entropy->interval;
}

/* In place of libjpeg's function: `blocks` are zero, or NULL if nobody needs them. */
static boolean decode_mcu(j_decompress_ptr jpeg, JBLOCKROW *blocks) {
    Context *context = jpeg->client_data;
    struct Entropy *entropy = context->entropy;
    const int64_t mcu = entropy->next_mcu++;
    const int column = entropy->next_column++;

    if (entropy->next_column == entropy->columns) entropy->next_column = 0;
    if (blocks == NULL || column < entropy->first_column || column > entropy->last_column) return TRUE;
    if (mcu >= entropy->segment_end) begin_segment(context, entropy, mcu);
    if (mcu > entropy->parsed_mcus) mcus_pass(context, entropy, mcu - entropy->parsed_mcus);
    mcu_decode(context, entropy, blocks);
    entropy->parsed_mcus = mcu + 1;
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

static void make_tables(struct Entropy *entropy, j_decompress_ptr jpeg) {
    for (int i = 0; i < jpeg->comps_in_scan; i++) {
        const int dc = jpeg->cur_comp_info[i]->dc_tbl_no, ac = jpeg->cur_comp_info[i]->ac_tbl_no;
        Codes *first = &entropy->dc_codes[dc], *then = &entropy->ac_codes[ac];
        codes_make(entropy, first, jpeg->dc_huff_tbl_ptrs[dc]);
        codes_make(entropy, then, jpeg->ac_huff_tbl_ptrs[ac]);
        table_make(&entropy->dc[dc][ac], first, then, true);
        table_make(&entropy->ac[ac], then, then, false);
    }
    entropy->blocks = jpeg->blocks_in_MCU;
    for (int i = 0; i < entropy->blocks; i++) {
        const jpeg_component_info *component = jpeg->cur_comp_info[jpeg->MCU_membership[i]];
        entropy->places[i] = (Place){.dc = &entropy->dc[component->dc_tbl_no][component->ac_tbl_no],
                                     .ac = &entropy->ac[component->ac_tbl_no],
                                     .member = jpeg->MCU_membership[i]};
    }
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
    entropy->next_mcu = 0;
    entropy->next_column = 0;
    const int64_t segments = (mcus + entropy->interval - 1) / entropy->interval;
    if (!gather(entropy, context->scan, context->scan_bytes, (size_t)segments)) return;
    begin_segment(context, entropy, 0);
    make_tables(entropy, jpeg);
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

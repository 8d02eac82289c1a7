/* A JPEG file written again without loss, with a restart marker after every tile, so that a tile can be decoded alone.
 *
 * The quantised coefficients are those of the source; only their Huffman coding is new: sequential, all components in
 * one scan, whatever the source was. All APPn and COM segments are kept, except an index of further pictures behind the
 * first (MPF), which are left out. So any decoder gives the same pixels as of the source.
 *
 * A tile is a run of MCUs in one row of them, at most 64 pixels wide. Its length, the restart interval, divides the
 * row: tiles begin where rows begin, and the tile with any block in it follows from its position. */
#include <stdlib.h>
#include <string.h>

#include "turbo.h"

#define EXPORT __attribute__((visibility("default")))

/* Four MCUs of 16 x 16 cost 0.7 % in size and leave little that is decoded in vain around a crop. Gray MCUs are single
 * blocks, 8 pixels wide. */
#define MAX_TILE_PX 64
#define MAX_TILE_MCUS 4
#define MAX_TILE_MCUS_GRAY 8

/* All coefficients are held at once, 3 to 6 bytes per pixel. */
#define MAX_PIXELS ((size_t)1 << 28)
/* Each scan is a pass over all of them, and a small file may have thousands. */
#define MAX_SCANS 500
/* What a baseline file can hold: 10 bits and a sign, of DC in differences. */
#define MAX_COEFFICIENT 1023
#define CHUNK_BYTES ((size_t)1 << 16)

typedef struct {
    struct jpeg_decompress_struct source;
    struct jpeg_compress_struct result;
    struct jpeg_error_mgr errors;
    struct jpeg_progress_mgr progress;
    struct jpeg_destination_mgr destination;
    jmp_buf escape;
    char *message; /* MESSAGE_BYTES */
    uint8_t *data; /* of the result */
    size_t size;
} Transcoder;

static Transcoder *transcoder_of(j_common_ptr jpeg) { return jpeg->client_data; }

static void escape_with(Transcoder *transcoder, const char *reason) {
    snprintf(transcoder->message, MESSAGE_BYTES, "%s", reason);
    longjmp(transcoder->escape, 1);
}

static void exit_with_error(j_common_ptr jpeg) {
    Transcoder *transcoder = transcoder_of(jpeg);
    jpeg->err->format_message(jpeg, transcoder->message);
    longjmp(transcoder->escape, 1);
}

/* Damaged entropy-coded data is only a warning, here as in decoders: what they show of it is kept. */
static void refuse_end_of_data(j_common_ptr jpeg, int level) {
    if (level < 0 && jpeg->err->msg_code == JWRN_JPEG_EOF)
        escape_with(transcoder_of(jpeg), "the file is truncated: its data ends before the picture does");
}

static void print_nothing(j_common_ptr jpeg) { (void)jpeg; }

static void refuse_many_scans(j_common_ptr jpeg) {
    Transcoder *transcoder = transcoder_of(jpeg);
    if (jpeg->is_decompressor && transcoder->source.input_scan_number > MAX_SCANS)
        escape_with(transcoder, "it has more than 500 scans");
}

static void use_room(Transcoder *transcoder, size_t used, size_t size) {
    uint8_t *data = realloc(transcoder->data, size);
    if (data == NULL) escape_with(transcoder, "there is not enough memory for the file");
    transcoder->data = data;
    transcoder->size = size;
    transcoder->destination.next_output_byte = data + used;
    transcoder->destination.free_in_buffer = size - used;
}

static void begin_output(j_compress_ptr jpeg) {
    Transcoder *transcoder = transcoder_of((j_common_ptr)jpeg);
    use_room(transcoder, 0, transcoder->size);
}

/* The buffer is full, whatever `free_in_buffer` says. */
static boolean grow_output(j_compress_ptr jpeg) {
    Transcoder *transcoder = transcoder_of((j_common_ptr)jpeg);
    use_room(transcoder, transcoder->size, 2 * transcoder->size);
    return TRUE;
}

static void end_output(j_compress_ptr jpeg) {
    Transcoder *transcoder = transcoder_of((j_common_ptr)jpeg);
    transcoder->size -= transcoder->destination.free_in_buffer;
}

/* The longest that divides the row, so that no tile is in two rows. */
static unsigned choose_interval(const struct jpeg_decompress_struct *jpeg) {
    bool gray = jpeg->num_components == 1;
    /* A component that is alone in its scan has MCUs of one block, whatever its sampling factors say. */
    unsigned mcu_px = DCTSIZE * (gray ? 1 : (unsigned)jpeg->max_h_samp_factor);
    unsigned mcus = (jpeg->image_width + mcu_px - 1) / mcu_px;
    unsigned interval = MAX_TILE_PX / mcu_px, most = gray ? MAX_TILE_MCUS_GRAY : MAX_TILE_MCUS;
    if (interval > most) interval = most;
    while (interval > 1 && mcus % interval != 0) interval--;
    return interval;
}

/* Decoders smooth what scans that are missing would have told; of a sequential file they could not know. */
static bool is_complete(const struct jpeg_decompress_struct *jpeg) {
    if (!jpeg->progressive_mode) return true;
    for (int component = 0; component < jpeg->num_components; component++)
        for (int i = 0; i < DCTSIZE2; i++)
            if (jpeg->coef_bits[component][i] != 0) return false;
    return true;
}

/* Only where all fit are the standard Huffman tables known to have every code that is needed. */
static bool fit_baseline(j_decompress_ptr jpeg, jvirt_barray_ptr *coefficients) {
    for (int i = 0; i < jpeg->num_components; i++) {
        const jpeg_component_info *component = &jpeg->comp_info[i];
        for (JDIMENSION row = 0; row < component->height_in_blocks; row++) {
            JBLOCKARRAY blocks =
                jpeg->mem->access_virt_barray((j_common_ptr)jpeg, coefficients[i], row, 1, FALSE);
            const JCOEF *values = blocks[0][0];
            for (size_t j = 0; j < (size_t)component->width_in_blocks * DCTSIZE2; j++)
                if (values[j] > MAX_COEFFICIENT || values[j] < -MAX_COEFFICIENT) return false;
        }
    }
    return true;
}

static void copy_segments(Transcoder *transcoder) {
    for (jpeg_saved_marker_ptr each = transcoder->source.marker_list; each != NULL; each = each->next) {
        if (each->marker == JPEG_APP0 + 2 && each->data_length >= 4 && memcmp(each->data, "MPF", 4) == 0) continue;
        jpeg_write_marker(&transcoder->result, each->marker, each->data, each->data_length);
    }
}

static void transcode(Transcoder *transcoder, const uint8_t *data, size_t size, bool optimize) {
    j_decompress_ptr source = &transcoder->source;
    j_compress_ptr result = &transcoder->result;

    jpeg_mem_src(source, data, (unsigned long)size);
    for (int i = 0; i < 16; i++) jpeg_save_markers(source, JPEG_APP0 + i, 0xFFFF);
    jpeg_save_markers(source, JPEG_COM, 0xFFFF);
    jpeg_read_header(source, TRUE);
    if ((size_t)source->image_height * source->image_width > MAX_PIXELS)
        escape_with(transcoder, "it has more than 268 million pixels, too many to hold their coefficients");
    jvirt_barray_ptr *coefficients = jpeg_read_coefficients(source);
    if (!is_complete(source)) escape_with(transcoder, "the file is incomplete: it lacks some of its progressive scans");

    jpeg_copy_critical_parameters(source, result);
    result->restart_interval = choose_interval(source);
    result->optimize_coding = optimize || !fit_baseline(source, coefficients);
    /* Theirs are among the segments. */
    result->write_JFIF_header = FALSE;
    result->write_Adobe_marker = FALSE;
    jpeg_write_coefficients(result, coefficients);
    copy_segments(transcoder);
    jpeg_finish_compress(result);
}

EXPORT int turbo_libjpeg_version(void) { return LIBJPEG_TURBO_VERSION_NUMBER; }

EXPORT void turbo_free(uint8_t *data) { free(data); }

/* The file with restart markers, which `turbo_free` gives back, and its size in `result_bytes`. NULL: `message` says why.
 * With `optimize`, Huffman tables are made for the picture, else they are the standard ones. */
EXPORT uint8_t *turbo_index_tiles(const uint8_t *data, int64_t data_bytes, int optimize, int64_t *result_bytes,
                                  char *message) {
    Transcoder *transcoder = calloc(1, sizeof(Transcoder));
    if (transcoder == NULL) {
        snprintf(message, MESSAGE_BYTES, "there is not enough memory for an encoder");
        return NULL;
    }
    transcoder->message = message;
    transcoder->size = (size_t)data_bytes + CHUNK_BYTES;
    jpeg_std_error(&transcoder->errors);
    transcoder->errors.error_exit = exit_with_error;
    transcoder->errors.emit_message = refuse_end_of_data;
    transcoder->errors.output_message = print_nothing;
    transcoder->progress.progress_monitor = refuse_many_scans;
    transcoder->destination.init_destination = begin_output;
    transcoder->destination.empty_output_buffer = grow_output;
    transcoder->destination.term_destination = end_output;
    transcoder->source.err = transcoder->result.err = &transcoder->errors;
    transcoder->source.client_data = transcoder->result.client_data = transcoder;

    uint8_t *written = NULL;
    if (setjmp(transcoder->escape) == 0) {
        jpeg_create_decompress(&transcoder->source);
        jpeg_create_compress(&transcoder->result);
        transcoder->source.progress = &transcoder->progress;
        transcoder->result.dest = &transcoder->destination;
        transcode(transcoder, data, (size_t)data_bytes, optimize != 0);
        *result_bytes = (int64_t)transcoder->size;
        written = transcoder->data;
    } else {
        free(transcoder->data);
    }
    /* Neither of these can fail, nor does it matter how far they have come. */
    jpeg_destroy_compress(&transcoder->result);
    jpeg_destroy_decompress(&transcoder->source);
    free(transcoder);
    return written;
}

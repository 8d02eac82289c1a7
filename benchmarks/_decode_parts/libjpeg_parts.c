/* The passes of a JPEG decoder over whole files, by libjpeg, each over all given files: what decode_parts.py times. */
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#define ROWS (4 * DCTSIZE) /* of the highest MCU */

typedef struct {
    struct jpeg_decompress_struct jpeg;
    struct jpeg_error_mgr errors;
    jmp_buf escape;
    uint8_t *pixels;
    size_t bytes;
} Reader;

static void stop(j_common_ptr jpeg) { longjmp(((Reader *)jpeg->client_data)->escape, 1); }
static void say_nothing(j_common_ptr jpeg, int level) { (void)jpeg, (void)level; }

static uint8_t *room(Reader *reader, size_t bytes) {
    if (reader->bytes < bytes) {
        free(reader->pixels);
        reader->pixels = malloc(bytes);
        reader->bytes = bytes;
    }
    return reader->pixels;
}

/* The coefficients of each plane through the inverse DCT, without upsampling and colours. */
static void read_planes(Reader *reader) {
    j_decompress_ptr jpeg = &reader->jpeg;
    jpeg->raw_data_out = TRUE;
    jpeg_start_decompress(jpeg);
    JSAMPROW rows[4][ROWS];
    JSAMPARRAY planes[4];
    size_t stride = (size_t)jpeg->image_width + 128;
    uint8_t *pixels = room(reader, 4 * ROWS * stride);
    for (int i = 0; i < 4; i++) {
        planes[i] = rows[i];
        for (int j = 0; j < ROWS; j++) rows[i][j] = pixels + ((size_t)i * ROWS + (size_t)j) * stride;
    }
    while (jpeg->output_scanline < jpeg->output_height)
        jpeg_read_raw_data(jpeg, planes, (JDIMENSION)(jpeg->max_v_samp_factor * DCTSIZE));
    jpeg_finish_decompress(jpeg);
}

static void read_pixels(Reader *reader) {
    j_decompress_ptr jpeg = &reader->jpeg;
    jpeg->out_color_space = JCS_RGB;
    jpeg_start_decompress(jpeg);
    size_t stride = (size_t)jpeg->output_width * 3;
    uint8_t *pixels = room(reader, stride * jpeg->output_height);
    while (jpeg->output_scanline < jpeg->output_height) {
        JSAMPROW row = pixels + jpeg->output_scanline * stride;
        jpeg_read_scanlines(jpeg, &row, 1);
    }
    jpeg_finish_decompress(jpeg);
}

enum { HEADER, COEFFICIENTS, PLANES, RGB };

/* Returns how many files could not be read so. */
int64_t parts_decode(int pass, int64_t files, const uint8_t *const *data, const int64_t *bytes) {
    Reader reader = {0};
    volatile int64_t failed = 0;
    reader.jpeg.err = jpeg_std_error(&reader.errors);
    reader.errors.error_exit = stop;
    reader.errors.emit_message = say_nothing;
    for (volatile int64_t i = 0; i < files; i++) {
        reader.jpeg.client_data = &reader;
        if (setjmp(reader.escape)) {
            failed++;
        } else {
            jpeg_create_decompress(&reader.jpeg);
            jpeg_mem_src(&reader.jpeg, data[i], (unsigned long)bytes[i]);
            jpeg_read_header(&reader.jpeg, TRUE);
            if (pass == COEFFICIENTS) jpeg_read_coefficients(&reader.jpeg);
            if (pass == PLANES) read_planes(&reader);
            if (pass == RGB) read_pixels(&reader);
        }
        jpeg_destroy_decompress(&reader.jpeg);
    }
    free(reader.pixels);
    return failed;
}

/* Looks at every FF of each file; returns how many restart markers there are. */
int64_t parts_scan(int64_t files, const uint8_t *const *data, const int64_t *bytes) {
    int64_t found = 0;
    for (int64_t i = 0; i < files; i++) {
        const uint8_t *at = data[i], *end = at + bytes[i] - 1;
        while (at < end && (at = memchr(at, 0xFF, (size_t)(end - at))) != NULL) {
            found += at[1] >= 0xD0 && at[1] <= 0xD7;
            at += 2;
        }
    }
    return found;
}

/* Copies `bytes` of each to the same place, `from` and `to` being far apart. */
void parts_copy(int64_t files, const uint8_t *const *data, const int64_t *bytes, uint8_t *to) {
    for (int64_t i = 0; i < files; i++) {
        memcpy(to, data[i], (size_t)bytes[i]);
        __asm__ volatile("" ::"r"(to) : "memory");
    }
}

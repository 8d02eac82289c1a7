/* A part of one JPEG picture, by libjpeg-turbo: only the columns and rows that are needed, down to the last of them.
 *
 * Every error of libjpeg comes back as false with its message. Its warnings (damaged entropy-coded data) are none, as
 * in torchvision and Pillow; data that ends early is always one. */
#include <stdlib.h>
#include <string.h>

#include "turbo.h"

void *buffer_reserve(Buffer *buffer, size_t size) {
    if (buffer->data == NULL || buffer->size < size) {
        buffer_release(buffer);
        buffer->data = malloc(size);
        buffer->size = buffer->data == NULL ? 0 : size;
    }
    return buffer->data;
}

void buffer_release(Buffer *buffer) {
    free(buffer->data);
    buffer->data = NULL;
    buffer->size = 0;
}

void buffer_trim(Buffer *buffer) {
    if (buffer->size > KEPT_BYTES) buffer_release(buffer);
}

bool fail(Context *context, const char *reason) {
    snprintf(context->message, MESSAGE_BYTES, "%s", reason);
    return false;
}

static Context *context_of(j_common_ptr jpeg) { return jpeg->client_data; }

static void exit_with_error(j_common_ptr jpeg) {
    Context *context = context_of(jpeg);
    jpeg->err->format_message(jpeg, context->message);
    longjmp(context->escape, 1);
}

static void end_of_data(j_decompress_ptr jpeg) {
    Context *context = context_of((j_common_ptr)jpeg);
    fail(context, "the file is truncated: its data ends before the picture does");
    longjmp(context->escape, 1);
}

static boolean fill_input_buffer(j_decompress_ptr jpeg) {
    end_of_data(jpeg);
    return FALSE;
}

static void skip_input_data(j_decompress_ptr jpeg, long count) {
    if (count <= 0) return;
    if ((size_t)count > jpeg->src->bytes_in_buffer) end_of_data(jpeg);
    jpeg->src->next_input_byte += count;
    jpeg->src->bytes_in_buffer -= (size_t)count;
}

static void do_nothing(j_decompress_ptr jpeg) { (void)jpeg; }
static void print_nothing(j_common_ptr jpeg) { (void)jpeg; }
static void count_warning(j_common_ptr jpeg, int level) {
    if (level < 0) jpeg->err->num_warnings++;
}

/* A fresh decompressor for every picture, which costs a microsecond: a used one keeps its quantisation and Huffman
 * tables, and a file that lacks some would be decoded with those of another. */
static bool create(Context *context) {
    if (setjmp(context->escape)) return false;
    jpeg_create_decompress(&context->jpeg); /* keeps err and client_data */
    context->jpeg.src = &context->source;
    return true;
}

void jpeg_close(Context *context) {
    if (setjmp(context->escape)) return;
    jpeg_destroy_decompress(&context->jpeg);
}

bool jpeg_make(Context *context) {
    context->jpeg.err = jpeg_std_error(&context->errors);
    context->errors.error_exit = exit_with_error;
    context->errors.emit_message = count_warning;
    context->errors.output_message = print_nothing;
    context->jpeg.client_data = context;
    context->source.init_source = do_nothing;
    context->source.fill_input_buffer = fill_input_buffer;
    context->source.skip_input_data = skip_input_data;
    context->source.resync_to_restart = jpeg_resync_to_restart;
    context->source.term_source = do_nothing;
    bool fits = create(context);
    jpeg_close(context);
    return fits;
}

/* Rows below the last one that is needed are never read, so a lost end would go unseen. The marker cannot occur
 * within entropy-coded data, and files are written in order: where it is, so is the rest. */
static bool has_end_marker(const uint8_t *data, size_t size) {
    for (size_t i = size; i >= 2; i--)
        if (data[i - 1] == 0xD9 && data[i - 2] == 0xFF) return true;
    return false;
}

bool jpeg_open(Context *context, const uint8_t *data, size_t size) {
    j_decompress_ptr jpeg = &context->jpeg;

    if (!create(context)) return false;
    if (setjmp(context->escape)) return false;
    context->source.next_input_byte = data;
    context->source.bytes_in_buffer = size;
    jpeg_read_header(jpeg, TRUE);
    context->scan = context->source.next_input_byte;
    context->scan_bytes = context->source.bytes_in_buffer;
    if (!has_end_marker(context->scan, context->scan_bytes))
        return fail(context, "the file is truncated: it has no end-of-image marker");
    if (jpeg->num_components != 1 && jpeg->num_components != 3)
        return fail(context, "its number of colour components is neither 1 nor 3");
    return true;
}

#define MIN_WIDTH 8

bool jpeg_read_region(Context *context, Region *region, int denominator) {
    j_decompress_ptr jpeg = &context->jpeg;

    if (setjmp(context->escape)) return false;
    jpeg->out_color_space = JCS_RGB;
    jpeg->dct_method = JDCT_ISLOW;
    jpeg->do_fancy_upsampling = TRUE;
    jpeg->scale_num = 1;
    jpeg->scale_denom = (unsigned)denominator;
    jpeg_start_decompress(jpeg);
    if (region->right > (int)jpeg->output_width || region->bottom > (int)jpeg->output_height)
        return fail(context, "the crop reaches over the edge of the picture");

    /* Chroma is interpolated between neighbours. At the edges of a cropped row libjpeg knows none, so one pixel more is
     * decoded at both ends, which it rounds to whole blocks at the left. Nor does it interpolate in rows of less than 3
     * chroma pixels. */
    JDIMENSION left = (JDIMENSION)(region->left > 0 ? region->left - 1 : 0);
    JDIMENSION right = (JDIMENSION)region->right + 1;
    if (right < left + MIN_WIDTH) right = left + MIN_WIDTH;
    if (right > jpeg->output_width) right = jpeg->output_width;
    if (right < left + MIN_WIDTH) left = right > MIN_WIDTH ? right - MIN_WIDTH : 0;
    JDIMENSION width = right - left;
    jpeg_crop_scanline(jpeg, &left, &width);
    region->left = (int)left;
    region->right = (int)(left + width);
    int mcu = jpeg->max_h_samp_factor * DCTSIZE / denominator;
    entropy_take_over(context, region->left / mcu, (region->right - 1) / mcu);

    size_t rows = (size_t)(region->bottom - region->top);
    region->stride = (ptrdiff_t)width * 3;
    region->data = buffer_reserve(&context->pixels, rows * (size_t)region->stride + region->slack);
    if (region->data == NULL) return fail(context, "there is not enough memory for the pixels of its crop");
    if (region->top > 0 && jpeg_skip_scanlines(jpeg, (JDIMENSION)region->top) != (JDIMENSION)region->top)
        return fail(context, "its rows could not be skipped");
    for (size_t row = 0; row < rows;) {
        JSAMPROW lines[8];
        size_t count = rows - row < 8 ? rows - row : 8;
        for (size_t i = 0; i < count; i++) lines[i] = region->data + (row + i) * (size_t)region->stride;
        JDIMENSION read = jpeg_read_scanlines(jpeg, lines, (JDIMENSION)count);
        if (read == 0) return fail(context, "its rows could not be read");
        row += read;
    }
    return true;
}

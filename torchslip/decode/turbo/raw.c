/* The planes of a JPEG picture as they are stored in it: neither interpolated nor converted. */
#include <string.h>

#include "turbo.h"

#define BLOCK DCTSIZE

/* Factors of 1 or 2 from luma to both chroma planes; gray has none. */
static bool has_form(const struct jpeg_decompress_struct *jpeg, Planes *planes) {
    const jpeg_component_info *each = jpeg->comp_info;

    planes->height = (int)jpeg->image_height;
    planes->width = (int)jpeg->image_width;
    planes->down_rows = planes->down_columns = 1;
    planes->count = jpeg->num_components;
    if (jpeg->num_components == 1) return jpeg->jpeg_color_space == JCS_GRAYSCALE;
    if (jpeg->jpeg_color_space != JCS_YCbCr || each[0].h_samp_factor != jpeg->max_h_samp_factor ||
        each[0].v_samp_factor != jpeg->max_v_samp_factor || each[1].h_samp_factor != each[2].h_samp_factor ||
        each[1].v_samp_factor != each[2].v_samp_factor || each[0].h_samp_factor % each[1].h_samp_factor ||
        each[0].v_samp_factor % each[1].v_samp_factor)
        return false;
    planes->down_columns = each[0].h_samp_factor / each[1].h_samp_factor;
    planes->down_rows = each[0].v_samp_factor / each[1].v_samp_factor;
    return planes->down_columns <= 2 && planes->down_rows <= 2;
}

bool jpeg_read_planes(Context *context, uint8_t *output, size_t capacity, Planes *planes, size_t *size) {
    j_decompress_ptr jpeg = &context->jpeg;

    if (setjmp(context->escape)) return false;
    if (!has_form(jpeg, planes)) {
        planes->count = 0;
        return true;
    }
    jpeg->out_color_space = jpeg->jpeg_color_space;
    jpeg->dct_method = JDCT_ISLOW;
    jpeg->raw_data_out = TRUE;
    jpeg_start_decompress(jpeg);

    uint8_t *ends[3];
    size_t total = 0, strides[3], room = 0;
    for (int i = 0; i < planes->count; i++) {
        const jpeg_component_info *each = &jpeg->comp_info[i];
        ends[i] = output + total;
        total += (size_t)each->downsampled_width * each->downsampled_height;
        /* Whole blocks, and whole groups of them. */
        strides[i] = ((size_t)each->width_in_blocks + (size_t)each->h_samp_factor) * BLOCK;
        room += strides[i] * (size_t)each->v_samp_factor * BLOCK;
    }
    *size = total;
    if (total > capacity) return fail(context, "its planes are larger than its header says");
    uint8_t *rows = buffer_reserve(&context->pixels, room);
    if (rows == NULL) return fail(context, "there is not enough memory for its planes");

    JSAMPROW lines[3][MAX_SAMP_FACTOR * BLOCK];
    JSAMPARRAY planes_lines[3] = {lines[0], lines[1], lines[2]};
    for (int i = 0; i < planes->count; i++)
        for (int row = 0; row < jpeg->comp_info[i].v_samp_factor * BLOCK; row++, rows += strides[i])
            lines[i][row] = rows;
    const JDIMENSION step = (JDIMENSION)jpeg->max_v_samp_factor * BLOCK;
    for (JDIMENSION group = 0; jpeg->output_scanline < jpeg->output_height; group++) {
        if (jpeg_read_raw_data(jpeg, planes_lines, step) == 0) return fail(context, "its rows could not be read");
        for (int i = 0; i < planes->count; i++) {
            const jpeg_component_info *each = &jpeg->comp_info[i];
            JDIMENSION count = (JDIMENSION)each->v_samp_factor * BLOCK, begin = group * count;
            for (JDIMENSION row = 0; row < count && begin + row < each->downsampled_height; row++) {
                memcpy(ends[i], lines[i][row], each->downsampled_width);
                ends[i] += each->downsampled_width;
            }
        }
    }
    return true;
}

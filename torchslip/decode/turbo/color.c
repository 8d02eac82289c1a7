/* Y, Cb and Cr to RGB and back, after JFIF 1.02: ITU-R BT.601 in the full range, in the fixed point of libjpeg, so that
 * the bytes are its bytes. And what goes with it: rows of single planes, and writing to any layout. */
#include <string.h>

#include "turbo.h"

bool columns_make(Columns *columns, Buffer *memory, const Axis *axis, Passes passes) {
    const Vectors vectors = axis->identity ? VECTORS_NONE : vectors_of(passes);

    *columns = (Columns){.axis = axis};
#if defined(HAS_AVX512)
    columns->windowed = vectors == VECTORS_AVX512 && windows_make(&columns->windows, memory, axis, 1);
    if (columns->windowed) return true;
#endif
#if defined(__x86_64__)
    if (vectors >= VECTORS_AVX2) return columns_make_avx2(columns, memory);
#endif
    (void)vectors;
    (void)memory;
    return true;
}

size_t columns_slack(const Axis *axis) { return (axis->identity ? 0 : (size_t)axis->taps) + SLACK_BYTES; }

size_t columns_room(const Axis *axis) { return ((size_t)axis->count + 15) & ~(size_t)15; }

void plane_rows_portable(const uint8_t *source, ptrdiff_t source_stride, uint8_t *output, ptrdiff_t output_stride,
                         int rows, const Columns *columns) {
    const Axis *axis = columns->axis;

    for (int row = 0; row < rows; row++, source += source_stride, output += output_stride) {
        if (axis->identity) {
            memcpy(output, source, (size_t)axis->count);
            continue;
        }
        for (int x = 0; x < axis->count; x++) {
            const int16_t *weights = axis->weights + (ptrdiff_t)x * axis->taps;
            const uint8_t *pixel = source + (axis->first[x] - axis->begin);
            int32_t sum = 1 << axis->shift >> 1;
            for (int i = 0; i < axis->sizes[x]; i++) sum += pixel[i] * weights[i];
            /* The weights are not negative and their sum is 1: nothing to clamp. */
            output[x] = (uint8_t)(sum >> axis->shift);
        }
    }
}

static uint8_t clamp(int32_t value) { return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value); }

#define FIXED(value) ((int32_t)((value) * 65536 + 0.5))
#define HALF 32768

void to_rgb_portable(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, uint8_t *output, int width) {
    for (int x = 0; x < width; x++, output += 3) {
        int32_t blue = cb[x] - 128, red = cr[x] - 128;
        output[0] = clamp(y[x] + ((FIXED(1.402) * red + HALF) >> 16));
        output[1] = clamp(y[x] + ((-FIXED(0.34414) * blue - FIXED(0.71414) * red + HALF) >> 16));
        output[2] = clamp(y[x] + ((FIXED(1.772) * blue + HALF) >> 16));
    }
}

void split_row_portable(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, uint8_t *const rgb[3], int width) {
    for (int x = 0; x < width; x++) {
        uint8_t pixel[3];
        to_rgb_portable(y + x, cb + x, cr + x, pixel, 1);
        for (int i = 0; i < 3; i++) rgb[i][x] = pixel[i];
    }
}

void interleave_portable(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, uint8_t *output, int width) {
    for (int x = 0; x < width; x++, output += 3) {
        output[0] = y[x];
        output[1] = cb[x];
        output[2] = cr[x];
    }
}

void to_yuv(uint8_t *pixels, size_t count) {
    const int32_t middle = (128 << 16) + HALF - 1;

    for (size_t i = 0; i < count; i++, pixels += 3) {
        int32_t red = pixels[0], green = pixels[1], blue = pixels[2];
        pixels[0] = (uint8_t)((FIXED(0.299) * red + FIXED(0.587) * green + FIXED(0.114) * blue + HALF) >> 16);
        pixels[1] = (uint8_t)((-FIXED(0.168735892) * red - FIXED(0.331264108) * green + HALF * blue + middle) >> 16);
        pixels[2] = (uint8_t)((HALF * red - FIXED(0.418687589) * green - FIXED(0.081312411) * blue + middle) >> 16);
    }
}

static void fill(uint8_t *output, const int64_t *strides, int channel, int64_t height, int64_t width, uint8_t value) {
    for (int64_t row = 0; row < height; row++)
        for (int64_t column = 0; column < width; column++)
            output[channel * strides[0] + row * strides[1] + column * strides[2]] = value;
}

void paint_border(const int64_t *view, Shown shown, const Target *target) {
    const int64_t height = view[OUT_HEIGHT], width = view[OUT_WIDTH];

    if (shown.bottom - shown.top == height && shown.right - shown.left == width) return;
    for (int channel = 0; channel < (target->output == OUTPUT_PLANES ? 1 : 3); channel++)
        fill(target->data, target->strides, channel, height, width, target->output != OUTPUT_RGB && channel ? 128 : 0);
    for (int channel = 0; channel < (target->output == OUTPUT_PLANES ? 2 : 0); channel++)
        fill(target->chroma, target->chroma_strides, channel, (height + 1) / 2, (width + 1) / 2, 128);
}

/* The mean of the pixels of each 2 x 2 that are shown. */
static void write_halved(const uint8_t *pixels, ptrdiff_t stride, Shown shown, const Target *target) {
    for (int row = shown.top / 2; row < (shown.bottom + 1) / 2; row++)
        for (int column = shown.left / 2; column < (shown.right + 1) / 2; column++)
            for (int channel = 0; channel < 2; channel++) {
                int sum = 0, parts = 0;
                for (int y = 2 * row; y < 2 * row + 2; y++)
                    for (int x = 2 * column; x < 2 * column + 2; x++)
                        if (y >= shown.top && y < shown.bottom && x >= shown.left && x < shown.right) {
                            sum += pixels[(y - shown.top) * stride + 3 * (x - shown.left) + 1 + channel];
                            parts++;
                        }
                const int64_t *strides = target->chroma_strides;
                target->chroma[channel * strides[0] + row * strides[1] + column * strides[2]] =
                    (uint8_t)((sum + parts / 2) / parts);
            }
}

void write_packed(const uint8_t *pixels, ptrdiff_t stride, Shown shown, const Target *target) {
    const int64_t *strides = target->strides;
    const int channels = target->output == OUTPUT_PLANES ? 1 : 3;
    const int height = shown.bottom - shown.top, width = shown.right - shown.left;
    uint8_t *output = target->data + shown.top * strides[1] + shown.left * strides[2];

    if (target->output == OUTPUT_PLANES) write_halved(pixels, stride, shown, target);
    if (channels == 3 && strides[0] == 1 && strides[2] == 3) {
        for (int row = 0; row < height; row++)
            memcpy(output + row * strides[1], pixels + row * stride, 3 * (size_t)width);
        return;
    }
    for (int channel = 0; channel < channels; channel++)
        for (int row = 0; row < height; row++)
            for (int column = 0; column < width; column++)
                output[channel * strides[0] + row * strides[1] + column * strides[2]] =
                    pixels[row * stride + 3 * column + channel];
}

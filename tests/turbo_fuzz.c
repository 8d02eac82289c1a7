/* Damaged pictures and random geometry through the kernel, meant for AddressSanitizer.
 *
 * turbo_fuzz CASES SEED FILE...  Every case is a function of SEED and its number. Outputs have exactly the bytes they
 * need. Each case runs twice, with other bytes in all buffers, and must give the same pixels: none may be stale. The
 * digest of all pixels that is printed must not depend on what fresh memory holds either. */
#include "turbo.c"

static uint64_t state;

static uint32_t draw(uint32_t below) {
    state += 0x9E3779B97F4A7C15u;
    uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (uint32_t)((z ^ (z >> 31)) % below);
}

static void fill(Buffer *buffer, int byte) {
    if (buffer->data != NULL) memset(buffer->data, byte, buffer->size);
}

static void fill_contexts(int byte) {
    for (int i = 0; i < KEPT_CONTEXTS; i++) {
        Context *context = atomic_load(&kept[i]);
        if (context == NULL) continue;
        fill(&context->pixels, byte);
        fill(&context->room.middle, byte);
        fill(&context->room.windows, byte);
        fill(&context->packed, byte);
        fill(&context->temporary, byte);
        for (int j = 0; j < 2 * context->views; j++) fill(&context->axes[j].memory, byte);
        for (int j = 0; j < 4; j++) fill(&context->plane_axes[j].memory, byte);
        for (int j = 0; j < 2; j++) fill(&context->plane_columns[j], byte);
    }
}

/* A copy of exactly its size, with some damage; sometimes none. */
static uint8_t *mutate(const uint8_t *data, size_t *size) {
    uint8_t *copy = malloc(*size + 1);
    memcpy(copy, data, *size);
    for (uint32_t i = draw(5); i > 0; i--) {
        uint32_t at = draw(draw(2) ? (uint32_t)*size : 700) % (uint32_t)*size, kind = draw(6);
        if (kind == 0) copy[at] ^= (uint8_t)(1u << draw(8));
        if (kind == 1) copy[at] = (uint8_t)draw(256);
        if (kind == 2) copy[at] = 0xFF;
        if (kind == 3) copy[at] = 0xFF, copy[(at + 1) % *size] = (uint8_t)(0xC0 + draw(64));
        if (kind == 4) memmove(copy + at, copy + at + draw((uint32_t)(*size - at)) / 8, (*size - at) * 7 / 8);
        if (kind == 5 && draw(4) == 0) *size = 2 + draw((uint32_t)*size - 1);
    }
    uint8_t *exact = malloc(*size);
    memcpy(exact, copy, *size);
    free(copy);
    return exact;
}

/* The size that the first header of the damaged file names, as a caller would read it. */
static bool read_size(const uint8_t *data, size_t size, int64_t *height_width) {
    if (is_planes(data, size)) {
        if (size < 16) return false;
        for (int i = 0; i < 2; i++) height_width[i] = data[8 + 4 * i] | data[9 + 4 * i] << 8;
        return height_width[0] * height_width[1] > 0;
    }
    for (size_t i = 2; i + 9 < size;) {
        if (data[i] != 0xFF) return false;
        if (data[i + 1] >= 0xC0 && data[i + 1] <= 0xC2) {
            height_width[0] = data[i + 5] << 8 | data[i + 6];
            height_width[1] = data[i + 7] << 8 | data[i + 8];
            return height_width[0] * height_width[1] > 0 && height_width[0] * height_width[1] < 4000000;
        }
        i += 2 + (size_t)(data[i + 2] << 8 | data[i + 3]);
    }
    return false;
}

static void draw_view(int64_t *view, const int64_t *size) {
    view[HEIGHT] = 1 + draw((uint32_t)size[0]);
    view[WIDTH] = 1 + draw((uint32_t)size[1]);
    view[TOP] = draw((uint32_t)(size[0] - view[HEIGHT] + 1));
    view[LEFT] = draw((uint32_t)(size[1] - view[WIDTH] + 1));
    view[RESIZED_HEIGHT] = draw(4) ? 1 + draw(draw(2) ? 9 : 90) : view[HEIGHT];
    view[RESIZED_WIDTH] = draw(4) ? 1 + draw(draw(2) ? 9 : 90) : view[WIDTH];
    bool window = draw(3) == 0;
    view[WINDOW_TOP] = window ? (int64_t)draw(60) - 30 : 0;
    view[WINDOW_LEFT] = window ? (int64_t)draw(60) - 30 : 0;
    view[OUT_HEIGHT] = window ? draw(80) : view[RESIZED_HEIGHT];
    view[OUT_WIDTH] = window ? draw(80) : view[RESIZED_WIDTH];
    if (draw(50) == 0) view[draw(FIELDS)] = (int64_t)draw(100000) - 50000;
    for (int i = OUT_HEIGHT; i <= OUT_WIDTH; i++)
        if (view[i] < 0 || view[i] > 5000) view[i] = 1;
}

static uint64_t digest = 1469598103934665603u; /* FNV-1a */

static void digest_bytes(const uint8_t *bytes, int64_t count) {
    for (int64_t i = 0; i < count; i++) digest = (digest ^ bytes[i]) * 1099511628211u;
}

/* Reads the planes of a JPEG twice, into exactly the room that its header makes a caller reserve. */
static bool read_planes_of(const uint8_t *data, size_t size, const int64_t *height_width) {
    int64_t room = 3 * height_width[0] * height_width[1], form[2][6];
    int found[2];

    for (int run = 0; run < 2; run++) {
        char message[MESSAGE_BYTES] = {0};
        uint8_t *planes = malloc((size_t)room);
        fill_contexts(run ? 0xAA : 0x55);
        found[run] = turbo_read_planes(data, (int64_t)size, planes, room, form[run], message);
        if (found[run] == 0) digest_bytes(planes, form[run][5]);
        if ((found[run] == 1) != (message[0] != 0)) return false;
        free(planes);
    }
    return found[0] == found[1] && memcmp(form[0], form[1], sizeof(form[0])) == 0;
}

enum { VIEWS = 3 };

int main(int count, char **arguments) {
    long cases = strtol(arguments[1], NULL, 10), decoded = 0;
    int files = count - 3;

    for (long number = 0; number < cases; number++) {
        state = (uint64_t)strtol(arguments[2], NULL, 10) << 32 | (uint64_t)number;
        FILE *file = fopen(arguments[3 + draw((uint32_t)files)], "rb");
        static uint8_t bytes[1 << 20];
        size_t size = fread(bytes, 1, sizeof(bytes), file);
        fclose(file);
        uint8_t *data = mutate(bytes, &size);
        int64_t height_width[2];
        if (!read_size(data, size, height_width)) height_width[0] = height_width[1] = 40;

        int64_t geometry[VIEWS][FIELDS], strides[2 * VIEWS][3], views = 1 + draw(VIEWS), length = (int64_t)size;
        uint8_t *outputs[2][2 * VIEWS];
        int variant = (int)draw(8), other = 1 + (int)draw(7), output = (int)draw(3);
        double least_ratio = draw(3) == 0 ? 0 : 2 + draw(5) / 2.0;
        int64_t bytes_of[2 * VIEWS], parts = output == OUTPUT_PLANES ? 2 * views : views;
        for (int64_t i = 0; i < parts; i++) {
            if (i < views) draw_view(geometry[i], height_width);
            int64_t high = geometry[i % views][OUT_HEIGHT], wide = geometry[i % views][OUT_WIDTH];
            int64_t channels = output != OUTPUT_PLANES ? 3 : i < views ? 1 : 2;
            if (i >= views) high = (high + 1) / 2, wide = (wide + 1) / 2;
            bool packed = draw(3) > 0;
            strides[i][0] = packed ? 1 : high * wide;
            strides[i][1] = packed ? channels * wide : wide;
            strides[i][2] = packed ? channels : 1;
            bytes_of[i] = channels * high * wide;
            for (int run = 0; run < 2; run++) {
                outputs[run][i] = malloc((size_t)bytes_of[i]);
                if (bytes_of[i]) memset(outputs[run][i], 85 + 85 * run, (size_t)bytes_of[i]);
            }
        }
        int64_t failed[2];
        char messages[2][MESSAGE_BYTES] = {{0}};
        for (int run = 0; run < 2; run++) {
            const uint8_t *image = data;
            fill_contexts(run ? 0xAA : 0x55);
            /* The second run with other passes or libjpeg's entropy decoder: all are the same, byte for byte. */
            failed[run] = turbo_decode(1, views, &image, &length, height_width, geometry[0], outputs[run], strides[0],
                                       output, 1, least_ratio, run ? variant ^ other : variant, messages[run]);
        }
        if (failed[0] != failed[1] || (failed[0] != 0) != (messages[0][0] != 0)) {
            fprintf(stderr, "case %ld: %s / %s\n", number, messages[0], messages[1]);
            return 1;
        }
        for (int64_t i = 0; i < parts; i++) {
            if (!failed[0] && bytes_of[i] && memcmp(outputs[0][i], outputs[1][i], (size_t)bytes_of[i]) != 0) {
                fprintf(stderr, "case %ld: part %d differs between two runs\n", number, (int)i);
                return 1;
            }
            if (!failed[0]) digest_bytes(outputs[0][i], bytes_of[i]);
            free(outputs[0][i]);
            free(outputs[1][i]);
        }
        if (draw(4) == 0 && !read_planes_of(data, size, height_width)) {
            fprintf(stderr, "case %ld: its planes differ between two runs\n", number);
            return 1;
        }
        free(data);
        decoded += !failed[0];
    }
    printf("%ld of %ld decoded, digest %016llx\n", decoded, cases, (unsigned long long)digest);
    return 0;
}

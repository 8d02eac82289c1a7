/* Damaged files through the lossless transcoder, meant for AddressSanitizer.
 *
 * transcode_fuzz CASES SEED FILE...  Whatever is written has the coefficients and quantisation tables that libjpeg
 * reads from the damaged file, gives no warning, and is the same when it is written again. */
#include <string.h>

#include "transcode.c"

static uint64_t state;

static uint32_t draw(uint32_t below) {
    state += 0x9E3779B97F4A7C15u;
    uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (uint32_t)((z ^ (z >> 31)) % below);
}

/* A copy of exactly its size, with some damage; sometimes none. */
static uint8_t *mutate(const uint8_t *data, size_t *size) {
    if (draw(12) == 0) *size = draw((uint32_t)*size);
    uint8_t *copy = malloc(*size);
    memcpy(copy, data, *size);
    for (uint32_t i = *size ? draw(5) : 0; i > 0; i--) {
        uint32_t at = draw(draw(2) ? (uint32_t)*size : 700) % (uint32_t)*size, kind = draw(4);
        if (kind == 0) copy[at] ^= (uint8_t)(1u << draw(8));
        if (kind == 1) copy[at] = (uint8_t)draw(256);
        if (kind == 2) copy[at] = 0xFF, copy[(at + 1) % *size] = (uint8_t)(0xC0 + draw(64));
        if (kind == 3) memmove(copy + at, copy + at + draw((uint32_t)(*size - at)) / 8, (*size - at) * 7 / 8);
    }
    return copy;
}

typedef struct {
    struct jpeg_decompress_struct jpeg;
    struct jpeg_error_mgr errors;
    jmp_buf escape;
    uint64_t digest;
} Reader;

static void stop(j_common_ptr jpeg) { longjmp(((Reader *)jpeg->client_data)->escape, 1); }

/* Of the picture: what is odd in a segment is kept with it. */
static void count_warning(j_common_ptr jpeg, int level) {
    int code = jpeg->err->msg_code;
    if (level < 0 && code != JWRN_JFIF_MAJOR && code != JWRN_ADOBE_XFORM) jpeg->err->num_warnings++;
}

static void digest_bytes(Reader *reader, const void *bytes, size_t count) {
    for (size_t i = 0; i < count; i++) reader->digest = (reader->digest ^ ((const uint8_t *)bytes)[i]) * 1099511628211u;
}

/* Of size, sampling, tables and coefficients; 0 if it cannot be read. */
static uint64_t digest_file(const uint8_t *data, size_t size, long *warnings) {
    static Reader reader;
    reader.jpeg.err = jpeg_std_error(&reader.errors);
    reader.errors.error_exit = stop;
    reader.errors.emit_message = count_warning;
    reader.jpeg.client_data = &reader;
    reader.digest = 14695981039346656037u;
    j_decompress_ptr jpeg = &reader.jpeg;
    if (setjmp(reader.escape)) {
        reader.digest = 0;
    } else {
        jpeg_create_decompress(jpeg);
        jpeg_mem_src(jpeg, data, size);
        jpeg_read_header(jpeg, TRUE);
        jvirt_barray_ptr *coefficients = jpeg_read_coefficients(jpeg);
        int of_all[] = {(int)jpeg->image_width, (int)jpeg->image_height, jpeg->num_components, jpeg->jpeg_color_space};
        digest_bytes(&reader, of_all, sizeof(of_all));
        for (int i = 0; i < jpeg->num_components; i++) {
            const jpeg_component_info *component = &jpeg->comp_info[i];
            /* In the file of a single component, they mean nothing. */
            int factors[] = {component->h_samp_factor, component->v_samp_factor};
            if (jpeg->num_components > 1) digest_bytes(&reader, factors, sizeof(factors));
            digest_bytes(&reader, component->quant_table->quantval, sizeof(component->quant_table->quantval));
            for (JDIMENSION row = 0; row < component->height_in_blocks; row++) {
                JBLOCKARRAY blocks =
                    jpeg->mem->access_virt_barray((j_common_ptr)jpeg, coefficients[i], row, 1, FALSE);
                digest_bytes(&reader, blocks[0][0], sizeof(JBLOCK) * component->width_in_blocks);
            }
        }
    }
    *warnings = reader.errors.num_warnings;
    jpeg_destroy_decompress(jpeg);
    return reader.digest;
}

int main(int count, char **arguments) {
    long cases = strtol(arguments[1], NULL, 10), written = 0;

    for (long number = 0; number < cases; number++) {
        state = (uint64_t)strtol(arguments[2], NULL, 10) << 32 | (uint64_t)number;
        FILE *file = fopen(arguments[3 + draw((uint32_t)count - 3)], "rb");
        static uint8_t bytes[1 << 20];
        size_t size = fread(bytes, 1, sizeof(bytes), file);
        fclose(file);
        uint8_t *data = mutate(bytes, &size);
        char message[MESSAGE_BYTES] = {0};
        int64_t sizes[2];
        int optimize = (int)draw(2);
        uint8_t *result = turbo_index_tiles(data, (int64_t)size, optimize, &sizes[0], message);
        if ((result == NULL) != (*message != 0)) return fprintf(stderr, "case %ld: %s\n", number, message), 1;
        if (result != NULL) {
            long warnings;
            uint64_t wanted = digest_file(data, size, &warnings);
            if (wanted != digest_file(result, (size_t)sizes[0], &warnings) || warnings)
                return fprintf(stderr, "case %ld: other coefficients, or %ld warnings\n", number, warnings), 1;
            uint8_t *again = turbo_index_tiles(result, sizes[0], optimize, &sizes[1], message);
            if (again == NULL || sizes[0] != sizes[1] || memcmp(result, again, (size_t)sizes[0]) != 0)
                return fprintf(stderr, "case %ld: another file when written again: %s\n", number, message), 1;
            free(again);
            written++;
        }
        turbo_free(result);
        free(data);
    }
    printf("%ld of %ld written\n", written, cases);
    return 0;
}

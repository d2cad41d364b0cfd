/* Pillow's antialiased bicubic resize of RGB pictures, equal to it in every bit, on as many pixels at once as the processor has lanes for.

As Pillow does: rows first, then columns, each pass in integers of 22 fractional bits, rounded to 8 bits in between. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>
#include <stdint.h>
#include <string.h>

#define CHANNELS 3
#define PRECISION 22
#define SUPPORT 2.0 /* input pixels on each side of the centre when enlarging */
#define MAX_SIDE 65535
#define HALF (1 << (PRECISION - 1))
#define BLOCK 64 /* bytes: sums of that many stay in registers */

#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_AVX2 1
#include <immintrin.h>
#endif

typedef struct {
    int taps;        /* room for each output pixel's weights */
    int *first;      /* the first input pixel it looks at */
    int *count;      /* and how many */
    int32_t *weight; /* [size, taps] */
} Filter;

static double bicubic(double x) {
    x = fabs(x);
    if (x < 1.0) return ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1;
    return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0.0;
}

static void free_filter(Filter *filter) {
    PyMem_RawFree(filter->first);
    PyMem_RawFree(filter->count);
    PyMem_RawFree(filter->weight);
}

/* Weights of `from` pixels for each of `to`; `mirrored` gives them to the output pixels from the last to the first. */
static int make_filter(Filter *filter, int from, int to, int mirrored) {
    double scale = (double)from / to, stretch = scale < 1.0 ? 1.0 : scale, support = SUPPORT * stretch;
    filter->taps = (int)ceil(support) * 2 + 1;
    filter->first = PyMem_RawMalloc(sizeof(int) * to);
    filter->count = PyMem_RawMalloc(sizeof(int) * to);
    filter->weight = PyMem_RawMalloc(sizeof(int32_t) * to * filter->taps);
    double *exact = PyMem_RawMalloc(sizeof(double) * filter->taps);
    if (!filter->first || !filter->count || !filter->weight || !exact) {
        PyMem_RawFree(exact);
        return -1;
    }
    for (int pixel = 0; pixel < to; pixel++) {
        double centre = (pixel + 0.5) * scale, total = 0.0;
        int first = (int)(centre - support + 0.5), end = (int)(centre + support + 0.5), place = mirrored ? to - 1 - pixel : pixel;
        first = first < 0 ? 0 : first;
        end = end > from ? from : end;
        for (int x = 0; x < end - first; x++) total += exact[x] = bicubic((x + first - centre + 0.5) * (1.0 / stretch));
        for (int x = 0; x < end - first; x++) {
            double weight = (total != 0.0 ? exact[x] / total : exact[x]) * (1 << PRECISION);
            filter->weight[(size_t)place * filter->taps + x] = (int32_t)(weight < 0 ? weight - 0.5 : weight + 0.5);
        }
        filter->first[place] = first;
        filter->count[place] = end - first;
    }
    PyMem_RawFree(exact);
    return 0;
}

static inline uint8_t rounded(int32_t sum) {
    int32_t value = sum >> PRECISION;
    return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

static void plain_row(const Filter *filter, int to, const uint8_t *in, uint8_t *out) {
    for (int x = 0; x < to; x++) {
        const int32_t *weight = filter->weight + (size_t)x * filter->taps;
        const uint8_t *pixel = in + (size_t)filter->first[x] * CHANNELS;
        int32_t red = HALF, green = HALF, blue = HALF;
        for (int tap = 0; tap < filter->count[x]; tap++, pixel += CHANNELS) {
            red += pixel[0] * weight[tap];
            green += pixel[1] * weight[tap];
            blue += pixel[2] * weight[tap];
        }
        out[x * CHANNELS] = rounded(red), out[x * CHANNELS + 1] = rounded(green), out[x * CHANNELS + 2] = rounded(blue);
    }
}

/* `count` rows of `size` bytes from `in` on become one. */
static inline void plain_column_block(const int32_t *weight, int count, const uint8_t *in, size_t row_bytes, int size, uint8_t *out) {
    int32_t sum[BLOCK];
    for (int j = 0; j < size; j++) sum[j] = HALF;
    for (int tap = 0; tap < count; tap++)
        for (int j = 0; j < size; j++) sum[j] += in[tap * row_bytes + j] * weight[tap];
    for (int j = 0; j < size; j++) out[j] = rounded(sum[j]);
}

static void plain_columns(const int32_t *weight, int count, const uint8_t *in, size_t row_bytes, uint8_t *out) {
    size_t start = 0;
    for (; start + BLOCK <= row_bytes; start += BLOCK) plain_column_block(weight, count, in + start, row_bytes, BLOCK, out + start);
    plain_column_block(weight, count, in + start, row_bytes, (int)(row_bytes - start), out + start);
}

#ifdef HAS_AVX2
#define AVX2 __attribute__((target("avx2")))

AVX2 static inline __m128i four_bytes(const uint8_t *place) {
    int32_t bytes;
    memcpy(&bytes, place, sizeof bytes);
    return _mm_cvtsi32_si128(bytes);
}

AVX2 static inline void store_pixel(uint8_t *place, __m128i sums) {
    __m128i words = _mm_packs_epi32(sums, sums);
    int32_t bytes = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
    memcpy(place, &bytes, CHANNELS);
}

/* Two rows in one register, a pixel each in four lanes: the fourth is the next pixel's and ignored, so there must be a byte behind the last one. */
AVX2 static void avx2_two_rows(const Filter *filter, int to, const uint8_t *in, const uint8_t *below, uint8_t *out, uint8_t *out_below) {
    for (int x = 0; x < to; x++) {
        const int32_t *weight = filter->weight + (size_t)x * filter->taps;
        size_t place = (size_t)filter->first[x] * CHANNELS;
        __m256i sum = _mm256_set1_epi32(HALF);
        for (int tap = 0; tap < filter->count[x]; tap++, place += CHANNELS) {
            __m256i pixels = _mm256_cvtepu8_epi32(_mm_unpacklo_epi32(four_bytes(in + place), four_bytes(below + place)));
            sum = _mm256_add_epi32(sum, _mm256_mullo_epi32(pixels, _mm256_set1_epi32(weight[tap])));
        }
        sum = _mm256_srai_epi32(sum, PRECISION);
        store_pixel(out + x * CHANNELS, _mm256_castsi256_si128(sum));
        store_pixel(out_below + x * CHANNELS, _mm256_extracti128_si256(sum, 1));
    }
}

AVX2 static void avx2_columns(const int32_t *weight, int count, const uint8_t *in, size_t row_bytes, uint8_t *out) {
    size_t start = 0;
    for (; start + BLOCK <= row_bytes; start += BLOCK) plain_column_block(weight, count, in + start, row_bytes, BLOCK, out + start);
    plain_column_block(weight, count, in + start, row_bytes, (int)(row_bytes - start), out + start);
}
#endif

static void resize_rows(const Filter *filter, const uint8_t *in, int height, int width, uint8_t *out, int to, uint8_t *padded,
                        int vectors) {
    size_t from_bytes = (size_t)width * CHANNELS, to_bytes = (size_t)to * CHANNELS;
#ifdef HAS_AVX2
    if (vectors) {
        memcpy(padded, in + (height - 1) * from_bytes, from_bytes); /* the last row has nothing behind it: it is read from a copy that has */
        for (int y = 0; y < height; y += 2) {
            int below = y + 1 < height ? y + 1 : y;
            avx2_two_rows(filter, to, y == height - 1 ? padded : in + y * from_bytes, below == height - 1 ? padded : in + below * from_bytes,
                          out + y * to_bytes, out + below * to_bytes);
        }
        return;
    }
#endif
    (void)padded, (void)vectors;
    for (int y = 0; y < height; y++) plain_row(filter, to, in + y * from_bytes, out + y * to_bytes);
}

static void resize_columns(const Filter *filter, const uint8_t *in, size_t row_bytes, uint8_t *out, int to, int vectors) {
    void (*columns)(const int32_t *, int, const uint8_t *, size_t, uint8_t *) = plain_columns;
#ifdef HAS_AVX2
    if (vectors) columns = avx2_columns;
#endif
    (void)vectors;
    for (int y = 0; y < to; y++)
        columns(filter->weight + (size_t)y * filter->taps, filter->count[y], in + filter->first[y] * row_bytes, row_bytes, out + y * row_bytes);
}

/* Runs without the interpreter lock. 0, or -1 without memory. */
static int resize(const uint8_t *in, int height, int width, uint8_t *out, int to_height, int to_width, int mirrored, int vectors) {
    Filter rows = {0}, columns = {0};
    int columns_first = height > to_height && height - to_height > 2 * (width - to_width); /* Pillow's rule since 13 */
    int middle_height = columns_first ? to_height : height, middle_width = columns_first ? width : to_width;
    uint8_t *middle = PyMem_RawMalloc((size_t)middle_height * middle_width * CHANNELS), *padded = PyMem_RawMalloc((size_t)width * CHANNELS + 1);
    int status = -1;
    if (middle && padded && !make_filter(&rows, width, to_width, mirrored) && !make_filter(&columns, height, to_height, 0)) {
        if (columns_first) {
            resize_columns(&columns, in, (size_t)width * CHANNELS, middle, to_height, vectors);
            resize_rows(&rows, middle, to_height, width, out, to_width, padded, vectors);
        } else {
            resize_rows(&rows, in, height, width, middle, to_width, padded, vectors);
            resize_columns(&columns, middle, (size_t)to_width * CHANNELS, out, to_height, vectors);
        }
        status = 0;
    }
    free_filter(&rows);
    free_filter(&columns);
    PyMem_RawFree(middle);
    PyMem_RawFree(padded);
    return status;
}

static int is_picture(const Py_buffer *view) {
    return view->ndim == 3 && view->itemsize == 1 && view->shape[2] == CHANNELS && view->shape[0] > 0 && view->shape[1] > 0 && view->shape[0] <= MAX_SIDE &&
           view->shape[1] <= MAX_SIDE;
}

static PyObject *bicubic_resize(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *source, *target;
    Py_buffer in, out;
    int mirrored, vectors = 1, status = -1;
    if (!PyArg_ParseTuple(args, "OOp|p", &source, &target, &mirrored, &vectors)) return NULL;
#ifdef HAS_AVX2
    vectors = vectors && __builtin_cpu_supports("avx2");
#endif
    if (PyObject_GetBuffer(source, &in, PyBUF_ND | PyBUF_C_CONTIGUOUS) < 0) return NULL;
    if (PyObject_GetBuffer(target, &out, PyBUF_ND | PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE) < 0) {
        PyBuffer_Release(&in);
        return NULL;
    }
    int pictures = is_picture(&in) && is_picture(&out);
    if (pictures) {
        Py_BEGIN_ALLOW_THREADS status = resize(in.buf, (int)in.shape[0], (int)in.shape[1], out.buf, (int)out.shape[0], (int)out.shape[1], mirrored, vectors);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&in);
    PyBuffer_Release(&out);
    if (!pictures) return PyErr_Format(PyExc_ValueError, "expected uint8 [height, width, %d] twice", CHANNELS);
    if (status < 0) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"bicubic", bicubic_resize, METH_VARARGS, "bicubic(picture, out, mirrored, vectors=True): fill `out`, uint8 [height, width, 3], from a picture of any size"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_resize", .m_size = 0, .m_methods = methods};

PyMODINIT_FUNC PyInit__resize(void) { return PyModuleDef_Init(&module); }

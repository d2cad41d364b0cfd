/* JPEGs decoded under a crop alone, by libjpeg-turbo: blocks beside and above it are read but not transformed, those below are not read at all.

Every pixel equals the one of the whole picture's decode. Errors and warnings alike raise ValueError: after a warning, libjpeg guesses. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>

#if !defined(LIBJPEG_TURBO_VERSION_NUMBER) || LIBJPEG_TURBO_VERSION_NUMBER < 2001005
#error "libjpeg-turbo 2.1.5 or newer is needed: older ones were not tested for crops that equal the whole picture's"
#endif

#define CHANNELS 3
#define MARGIN 2      /* pixels decoded beside the crop: smooth chroma upsampling looks at one neighbour, two pixels wide */
#define EXIF_BYTES 6  /* of an EXIF segment's name */

typedef struct {
    struct jpeg_error_mgr base; /* first: libjpeg hands it back to us as a jpeg_error_mgr */
    jmp_buf escape;
    char message[JMSG_LENGTH_MAX];
} Errors;

typedef struct {
    const unsigned char *data;
    size_t size;
    unsigned char *pixels; /* height x width x CHANNELS */
    JDIMENSION top, left, height, width;
    unsigned int reduce;
} Crop;

static void escape(j_common_ptr info) {
    Errors *errors = (Errors *)info->err;
    errors->base.format_message(info, errors->message);
    longjmp(errors->escape, 1);
}

static void escape_from_warning(j_common_ptr info, int level) {
    if (level < 0) escape(info);
}

static void handle_errors(j_decompress_ptr info, Errors *errors) {
    info->err = jpeg_std_error(&errors->base);
    errors->base.error_exit = escape;
    errors->base.emit_message = escape_from_warning;
}

static int has_exif(j_decompress_ptr info) {
    for (jpeg_saved_marker_ptr marker = info->marker_list; marker; marker = marker->next)
        if (marker->data_length == EXIF_BYTES && !memcmp(marker->data, "Exif\0\0", EXIF_BYTES)) return 1;
    return 0;
}

/* 0, or -1 with errors->message. The sizes and colours stay in `info`. */
static int read_header(const unsigned char *data, size_t size, j_decompress_ptr info, Errors *errors, int *exif) {
    handle_errors(info, errors);
    if (setjmp(errors->escape)) {
        jpeg_destroy_decompress(info);
        return -1;
    }
    jpeg_create_decompress(info);
    jpeg_mem_src(info, data, (unsigned long)size);
    jpeg_save_markers(info, JPEG_APP0 + 1, EXIF_BYTES);
    jpeg_read_header(info, TRUE);
    *exif = has_exif(info);
    jpeg_destroy_decompress(info);
    return 0;
}

static void decode_rows(j_decompress_ptr info, const Crop *crop) {
    JDIMENSION first = 0, decoded = info->output_width;
    if (crop->width < info->output_width) {
        JDIMENSION end = crop->left + crop->width + MARGIN;
        first = crop->left > MARGIN ? crop->left - MARGIN : 0;
        decoded = (end < info->output_width ? end : info->output_width) - first;
        jpeg_crop_scanline(info, &first, &decoded); /* moves `first` to the left, to a whole block */
    }
    if (crop->top > 0) jpeg_skip_scanlines(info, crop->top);
    JSAMPARRAY row = info->mem->alloc_sarray((j_common_ptr)info, JPOOL_IMAGE, decoded * CHANNELS, 1);
    size_t stride = (size_t)crop->width * CHANNELS, before = (size_t)(crop->left - first) * CHANNELS;
    for (JDIMENSION y = 0; y < crop->height; y++) {
        jpeg_read_scanlines(info, row, 1);
        memcpy(crop->pixels + y * stride, row[0] + before, stride);
    }
}

/* Runs without the interpreter lock. 0, or -1 with errors->message. */
static int decode_crop(const Crop *crop, Errors *errors) {
    struct jpeg_decompress_struct info;
    handle_errors(&info, errors);
    if (setjmp(errors->escape)) {
        jpeg_destroy_decompress(&info);
        return -1;
    }
    jpeg_create_decompress(&info);
    jpeg_mem_src(&info, crop->data, (unsigned long)crop->size);
    jpeg_read_header(&info, TRUE);
    info.out_color_space = JCS_RGB;
    info.scale_num = 1;
    info.scale_denom = crop->reduce;
    jpeg_start_decompress(&info);
    if ((size_t)crop->top + crop->height > info.output_height || (size_t)crop->left + crop->width > info.output_width) {
        snprintf(errors->message, sizeof errors->message, "crop outside of a picture of %u x %u pixels", info.output_width, info.output_height);
        jpeg_destroy_decompress(&info);
        return -1;
    }
    decode_rows(&info, crop);
    jpeg_destroy_decompress(&info);
    return 0;
}

static PyObject *header(PyObject *Py_UNUSED(module), PyObject *arg) {
    Py_buffer data;
    struct jpeg_decompress_struct info;
    Errors errors;
    if (PyObject_GetBuffer(arg, &data, PyBUF_SIMPLE) < 0) return NULL;
    int exif = 0, status = read_header(data.buf, (size_t)data.len, &info, &errors, &exif);
    PyBuffer_Release(&data);
    if (status < 0) return PyErr_Format(PyExc_ValueError, "%s", errors.message);
    int plain = info.jpeg_color_space == JCS_YCbCr || info.jpeg_color_space == JCS_GRAYSCALE || info.jpeg_color_space == JCS_RGB;
    return Py_BuildValue("IINN", info.image_height, info.image_width, PyBool_FromLong(plain && info.data_precision == 8), PyBool_FromLong(exif));
}

static PyObject *decode(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer data, out;
    PyObject *target;
    Crop crop = {0};
    Errors errors;
    if (!PyArg_ParseTuple(args, "y*OIII", &data, &target, &crop.top, &crop.left, &crop.reduce)) return NULL;
    if (PyObject_GetBuffer(target, &out, PyBUF_ND | PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE) < 0) {
        PyBuffer_Release(&data);
        return NULL;
    }
    int status = -1;
    if (out.ndim != 3 || out.itemsize != 1 || out.shape[2] != CHANNELS || out.shape[0] < 1 || out.shape[1] < 1 || out.shape[0] > JPEG_MAX_DIMENSION ||
        out.shape[1] > JPEG_MAX_DIMENSION || crop.top > JPEG_MAX_DIMENSION || crop.left > JPEG_MAX_DIMENSION) {
        snprintf(errors.message, sizeof errors.message, "expected a place for uint8 [height, width, %d]", CHANNELS);
    } else {
        crop.data = data.buf, crop.size = (size_t)data.len, crop.pixels = out.buf;
        crop.height = (JDIMENSION)out.shape[0], crop.width = (JDIMENSION)out.shape[1];
        Py_BEGIN_ALLOW_THREADS status = decode_crop(&crop, &errors);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&out);
    PyBuffer_Release(&data);
    if (status < 0) return PyErr_Format(PyExc_ValueError, "%s", errors.message);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"header", header, METH_O, "header(data) -> (height, width, whether decode() knows its colours, whether there is EXIF)"},
    {"decode", decode, METH_VARARGS, "decode(data, out, top, left, reduce): fill `out`, uint8 [height, width, 3], from the picture reduced to 1/reduce"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_jpeg", .m_size = 0, .m_methods = methods};

PyMODINIT_FUNC PyInit__jpeg(void) { return PyModuleDef_Init(&module); }

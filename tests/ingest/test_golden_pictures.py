"""A corpus of odd pictures whose right pixels are known in closed form: every one must come out right.

Tolerances are the largest mean difference, in levels of 255, over patches of one colour; JPEG at quality 98 and 4:4:4 moves a patch by at most 1.
"""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageCms

from ingest.outcomes import Ended
from ingest.picture import Preparer
from ingest.store import StoreConfig

PATCH, ACROSS, DOWN = 32, 4, 3
PALETTE = [(0, 0, 0), (255, 255, 255), (200, 40, 40), (40, 160, 60), (30, 60, 190), (220, 200, 40), (120, 120, 120), (250, 140, 20)]
PALETTE += [(60, 200, 200), (180, 60, 180), (90, 60, 30), (20, 30, 40)]
COLOURS = np.array(PALETTE, np.float64).reshape(DOWN, ACROSS, 3)
Patches = np.ndarray[Any, np.dtype[np.float64]]  # [DOWN, ACROSS, 3], levels of 255 (or [DOWN, ACROSS] of one channel)
WHITE = np.full_like(COLOURS, 255)
XYZ_OF_SRGB = np.array([[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]])  # at D50, as ICC has it
XYZ_OF_ADOBE_RGB = np.array([[0.6097559, 0.2052401, 0.1492240], [0.3111242, 0.6256560, 0.0632197], [0.0194811, 0.0608902, 0.7448387]])
XYZ_OF_DISPLAY_P3 = np.array([[0.5151187, 0.2919778, 0.1571035], [0.2411892, 0.6922441, 0.0665668], [-0.0010505, 0.0418791, 0.7840713]])


def drawn(patches: Any, dtype: Any = np.uint8) -> Any:
    return np.kron(np.asarray(patches).round().astype(dtype), np.ones((PATCH, PATCH) + (1,) * (np.ndim(patches) - 2), dtype))


def seen(body: bytes, **settings: Any) -> Patches:
    """The mean colours of the patches' inner halves, as they are stored."""
    prepared = Preparer(StoreConfig.model_validate({"encode_quality": 98, "resize_mode": "no", "skip_reencode": False} | settings))(body)
    image = np.asarray(Image.open(io.BytesIO(prepared.jpeg)).convert("RGB")).astype(np.float64)
    assert (prepared.width, prepared.height) == (image.shape[1], image.shape[0])
    side_y, side_x = image.shape[0] // DOWN, image.shape[1] // ACROSS
    cut = image[: DOWN * side_y, : ACROSS * side_x].reshape(DOWN, side_y, ACROSS, side_x, 3)
    inner: Patches = cut[:, side_y // 4 : -side_y // 4, :, side_x // 4 : -side_x // 4].mean((1, 3))
    return inner


def encoded(image: Any, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def png(pixels: Any, bits: int, colour_type: int, *chunks: tuple[bytes, bytes], interlaced: bool = False) -> bytes:
    """Written by hand: PIL writes neither 16-bit RGB nor interlaced PNGs. `pixels` [height, width, channels] or [height, width]."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = pixels.shape[:2]
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)] if interlaced else [(0, 0, 1, 1)]
    rows = b"".join(b"\0" + row.astype(">u2" if bits == 16 else np.uint8).tobytes() for y, x, down, across in passes for row in pixels[y::down, x::across])
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, int(interlaced))
    body = b"".join(chunk(*each) for each in [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])
    return b"\x89PNG\r\n\x1a\n" + body


def icc_profile(space: bytes, tags: dict[bytes, bytes], pcs: bytes = b"XYZ ", kind: bytes = b"mntr") -> bytes:
    """A version 2 profile with these tags."""
    table, data, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += struct.pack(">4sII", name, at + len(data), len(content))
        data += content
    d50 = struct.pack(">iii", 63190, 65536, 54061)
    header = struct.pack(">I4sI4s4s4s12s4s4sIIIIII12s", 0, b"none", 0x02400000, kind, space, pcs, bytes(12), b"acsp", b"\0" * 4, 0, 0, 0, 0, 0, 0, d50)
    header = (header + bytes(128 - len(header)))[:128]
    whole = header + struct.pack(">I", len(tags)) + table + data
    return struct.pack(">I", len(whole)) + whole[4:]


def gamma_tag(gamma: float) -> bytes:
    return b"curv" + struct.pack(">IIH", 0, 1, round(gamma * 256))


def xyz_tag(xyz: Any) -> bytes:
    return b"XYZ " + struct.pack(">Iiii", 0, *(round(float(value) * 65536) for value in xyz))


TEXT = {b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78), b"cprt": b"text" + bytes(4) + b"none\0"}
D50 = xyz_tag((0.9642, 1.0, 0.8249))


def matrix_profile(to_xyz: Any, gamma: float) -> bytes:
    columns = {name: xyz_tag(to_xyz[:, channel]) for channel, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    return icc_profile(b"RGB ", TEXT | {b"wtpt": D50} | columns | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), gamma_tag(gamma)))


def srgb_of(linear: Any) -> Any:
    """sRGB's curve, to levels of 255."""
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def by_matrix(patches: Patches, to_xyz: Any, gamma: float) -> Patches:
    """The definition of a matrix profile: curve, matrix to XYZ, sRGB's matrix and curve back."""
    converted: Patches = srgb_of((patches / 255) ** gamma @ (np.linalg.inv(XYZ_OF_SRGB) @ to_xyz).T)
    return converted


SOFT = np.clip(COLOURS, 60, 190)  # colours that stay inside sRGB when their primaries are wider
BODIES: dict[str, Callable[[], tuple[bytes, Patches, float]]] = {
    "rgb png": lambda: (encoded(drawn(COLOURS), "PNG"), COLOURS, 1.0),
    "interlaced png": lambda: (png(drawn(COLOURS), 8, 2, interlaced=True), COLOURS, 1.0),
    "16-bit rgb png": lambda: (png(drawn(COLOURS * 257, np.uint16), 16, 2), COLOURS, 1.0),
    "16-bit rgb png of odd levels": lambda: (png(drawn(COLOURS * 257 * 0.77, np.uint16), 16, 2), COLOURS * 0.77, 1.5),  # PIL drops the low byte
    "16-bit gray png": lambda: (encoded(drawn(COLOURS[..., 0] * 257, np.uint16), "PNG"), COLOURS[..., :1].repeat(3, -1), 1.0),
    "16-bit gray and alpha png": lambda: (png(drawn(gray_alpha() * 257, np.uint16), 16, 4), on_white_by_hand(gray_alpha()), 1.5),
    "16-bit rgba png": lambda: (png(drawn(rgba() * 257, np.uint16), 16, 6), on_white_by_hand(rgba()), 1.5),
    "16-bit gray png with a transparent level": lambda: (
        png(drawn(COLOURS[..., 0] * 257, np.uint16), 16, 0, (b"tRNS", struct.pack(">H", 200 * 257))),
        np.where(COLOURS[..., :1] == 200, 255, COLOURS[..., :1]).repeat(3, -1),
        1.0,
    ),
    "16-bit gray tiff": lambda: (encoded(drawn(COLOURS[..., 0] * 257, np.uint16), "TIFF"), COLOURS[..., :1].repeat(3, -1), 1.0),
    "16-bit rgb tiff": lambda: (cv2.imencode(".tiff", drawn(COLOURS * 257, np.uint16)[..., ::-1])[1].tobytes(), COLOURS, 1.0),
    "lzw tiff": lambda: (encoded(drawn(COLOURS), "TIFF", compression="tiff_lzw"), COLOURS, 1.0),
    "cmyk tiff": lambda: (encoded(Image.fromarray(drawn(COLOURS)).convert("CMYK"), "TIFF"), COLOURS, 1.0),
    "gray jpeg": lambda: (encoded(drawn(COLOURS[..., 1]), "JPEG", quality=98), COLOURS[..., 1:2].repeat(3, -1), 1.0),
    "progressive jpeg": lambda: (encoded(drawn(COLOURS), "JPEG", quality=98, progressive=True), COLOURS, 2.0),
    "4:4:4 jpeg": lambda: (encoded(drawn(COLOURS), "JPEG", quality=98, subsampling=0), COLOURS, 2.0),
    "rgb jpeg": lambda: (encoded(drawn(COLOURS), "JPEG", quality=98, keep_rgb=True), COLOURS, 2.0),
    "cmyk jpeg": lambda: (encoded(Image.fromarray(drawn(inks(), np.uint8), "CMYK"), "JPEG", quality=98), light_of(inks()), 2.0),
    "ycck jpeg": lambda: (ycck(drawn(inks())), light_of(inks()), 3.0),
    "mpo": lambda: (encoded(drawn(COLOURS), "MPO", save_all=True, append_images=[Image.fromarray(drawn(255 - COLOURS))], quality=98), COLOURS, 2.0),
    "palette png": lambda: (encoded(in_palette(), "PNG"), COLOURS, 1.0),
    "palette png with a transparent colour": lambda: (encoded(in_palette(), "PNG", transparency=2), without(COLOURS, PALETTE[2]), 1.0),
    "palette png with alphas": lambda: (encoded(in_palette(), "PNG", transparency=bytes(range(0, 240, 20))), on_white_by_hand(rgba(by_index=True)), 1.5),
    "1-bit png": lambda: (encoded(Image.fromarray(drawn((COLOURS[..., 0] > 99) * 255)).convert("1"), "PNG"), three(COLOURS[..., 0] > 99), 1.0),
    "rgba png": lambda: (encoded(drawn(rgba()), "PNG"), on_white_by_hand(rgba()), 1.5),
    "gray and alpha png": lambda: (encoded(Image.fromarray(drawn(gray_alpha()), "LA"), "PNG"), on_white_by_hand(gray_alpha()), 1.0),
    "rgb png with a transparent colour": lambda: (encoded(drawn(COLOURS), "PNG", transparency=PALETTE[3]), without(COLOURS, PALETTE[3]), 1.0),
    "lossless webp": lambda: (encoded(drawn(COLOURS), "WEBP", lossless=True), COLOURS, 1.0),
    "lossy webp": lambda: (encoded(drawn(COLOURS), "WEBP", quality=98), COLOURS, 3.0),
    "lossless webp with alpha": lambda: (encoded(drawn(rgba()), "WEBP", lossless=True, exact=True), on_white_by_hand(rgba()), 1.5),
    "lossy webp with alpha": lambda: (encoded(drawn(rgba()), "WEBP", quality=98), on_white_by_hand(rgba()), 3.0),
    "gif": lambda: (encoded(in_palette(), "GIF"), COLOURS, 1.0),
    "gif with a transparent colour": lambda: (encoded(in_palette(), "GIF", transparency=4), without(COLOURS, PALETTE[4]), 1.0),
    "animated gif": lambda: (animation("GIF", in_palette()), COLOURS, 1.0),
    "gif whose first frame covers a part": lambda: (partial_gif(transparency=False), half_covered(), 1.0),
    "gif whose first frame covers a part, with transparency": lambda: (partial_gif(transparency=True), half_covered(), 1.0),
    "animated png": lambda: (animation("PNG", Image.fromarray(drawn(COLOURS))), COLOURS, 1.0),
    "animated webp": lambda: (animation("WEBP", Image.fromarray(drawn(COLOURS)), lossless=True), COLOURS, 1.0),
    "lossy animated webp": lambda: (animation("WEBP", Image.fromarray(drawn(COLOURS)), quality=98), COLOURS, 3.0),
    "animated webp with alpha": lambda: (animation("WEBP", Image.fromarray(drawn(rgba())), lossless=True, exact=True), on_white_by_hand(rgba()), 1.5),
    "lossy animated webp with alpha": lambda: (animation("WEBP", Image.fromarray(drawn(rgba())), quality=98), on_white_by_hand(rgba()), 3.0),
    "animated webp whose first frame covers a part": lambda: (partial_webp(), half_covered(), 1.0),
    "24-bit bmp": lambda: (encoded(drawn(COLOURS), "BMP"), COLOURS, 1.0),
    "palette bmp": lambda: (encoded(in_palette(), "BMP"), COLOURS, 1.0),
    "1-bit bmp": lambda: (encoded(Image.fromarray(drawn((COLOURS[..., 0] > 99) * 255)).convert("1"), "BMP"), three(COLOURS[..., 0] > 99), 1.0),
    "top-down bmp": lambda: (bmp(drawn(COLOURS), top_down=True), COLOURS, 1.0),
    "16-bit bmp (5-5-5)": lambda: (bmp(drawn(COLOURS), bits=16), COLOURS, 5.0),
    "32-bit bmp": lambda: (bmp(drawn(COLOURS), bits=32), COLOURS, 1.0),
    "run-length bmp": lambda: (run_length_bmp(), COLOURS, 1.0),
    "adobe rgb jpeg": lambda: with_profile("JPEG", XYZ_OF_ADOBE_RGB, 563 / 256, quality=98),
    "display p3 png": lambda: with_profile("PNG", XYZ_OF_DISPLAY_P3, 2.2),
    "display p3 webp": lambda: with_profile("WEBP", XYZ_OF_DISPLAY_P3, 2.2, lossless=True),
    "adobe rgb tiff": lambda: with_profile("TIFF", XYZ_OF_ADOBE_RGB, 563 / 256),
    "srgb profile": lambda: (encoded(drawn(COLOURS), "PNG", icc_profile=srgb_bytes()), COLOURS, 1.0),
    "gray jpeg of gamma 1.8": lambda: (
        encoded(drawn(SOFT[..., 1]), "JPEG", quality=98, icc_profile=icc_profile(b"GRAY", TEXT | {b"wtpt": D50, b"kTRC": gamma_tag(1.8)})),
        srgb_of((SOFT[..., 1:2] / 255) ** 1.8).repeat(3, -1),
        2.0,
    ),
    "cmyk jpeg with a profile": lambda: (
        encoded(Image.fromarray(drawn(corner_inks()), "CMYK"), "JPEG", quality=100, icc_profile=cmyk_profile()),
        corner_colours(),
        3.0,
    ),
    "broken profile": lambda: (encoded(drawn(COLOURS), "PNG", icc_profile=b"not a profile" * 20), COLOURS, 1.0),
    "cut profile": lambda: (encoded(drawn(COLOURS), "PNG", icc_profile=matrix_profile(XYZ_OF_ADOBE_RGB, 2.2)[:200]), COLOURS, 1.0),
    "profile of another space": lambda: (encoded(drawn(COLOURS[..., 0]), "JPEG", quality=98, icc_profile=srgb_bytes()), three(COLOURS[..., 0] / 255), 1.0),
}


def three(shares: Any) -> Patches:
    return np.repeat(np.asarray(shares, np.float64)[..., None] * 255, 3, -1)


def rgba(by_index: bool = False) -> Patches:
    alpha = np.arange(0, 240, 20) if by_index else np.linspace(0, 255, DOWN * ACROSS).round()
    return np.concatenate([COLOURS, alpha.reshape(DOWN, ACROSS, 1)], -1)


def gray_alpha() -> Patches:
    return rgba()[..., [0, 3]]


def on_white_by_hand(patches: Patches) -> Patches:
    alpha = patches[..., -1:] / 255
    lying: Patches = patches[..., :-1] * alpha + 255 * (1 - alpha)
    return np.broadcast_to(lying, COLOURS.shape).copy()


def without(patches: Patches, hole: tuple[int, int, int]) -> Patches:
    return np.where((patches == hole).all(-1, keepdims=True), 255.0, patches)


def in_palette() -> Image.Image:
    image = Image.fromarray(drawn(np.arange(DOWN * ACROSS).reshape(DOWN, ACROSS)), "P")
    image.putpalette([level for colour in PALETTE for level in colour])
    return image


def inks() -> Patches:
    return np.concatenate([255 - COLOURS, np.linspace(0, 200, DOWN * ACROSS).round().reshape(DOWN, ACROSS, 1)], -1)


def light_of(cmyk: Patches) -> Patches:
    return (255 - cmyk[..., :3]) * (255 - cmyk[..., 3:]) / 255


def ycck(cmyk: Any) -> bytes:
    """A CMYK JPEG with transform 2, as Photoshop writes it: libjpeg's CMYK turned over, so that CMY lies in it as if it were RGB; the Adobe segment says so."""
    cmy_as_ycc = np.asarray(Image.fromarray(cmyk[..., :3]).convert("YCbCr"))
    body = encoded(Image.fromarray(255 - np.dstack([cmy_as_ycc, 255 - cmyk[..., 3]]), "CMYK"), "JPEG", quality=98)  # PIL inverts what it writes
    at = body.index(b"Adobe") + 11
    assert body[at] == 0
    return body[:at] + b"\2" + body[at + 1 :]


def animation(kind: str, first: Image.Image, **options: Any) -> bytes:
    return encoded(first, kind, save_all=True, append_images=[Image.new(first.mode, first.size)] * 2, duration=50, **options)


def half_covered() -> Patches:
    covered = WHITE.copy()
    covered[1:, 2:] = PALETTE[2]
    return covered


def partial_gif(transparency: bool) -> bytes:
    """A screen of the whole size whose first frame has the lower right part only."""
    part = Image.new("P", (2 * PATCH, 2 * PATCH), 1)
    part.putpalette([0, 0, 0, *PALETTE[2]])
    body = encoded(part, "GIF", **({"transparency": 0} if transparency else {}))
    screen = struct.pack("<HH", ACROSS * PATCH, DOWN * PATCH)
    descriptor = body.index(b"\x2c" + struct.pack("<HHHH", 0, 0, 2 * PATCH, 2 * PATCH))
    return body[:6] + screen + body[10 : descriptor + 1] + struct.pack("<HH", 2 * PATCH, PATCH) + body[descriptor + 5 :]


def partial_webp() -> bytes:
    part = encoded(Image.new("RGB", (2 * PATCH, 2 * PATCH), PALETTE[2]), "WEBP", lossless=True)[12:]

    def whole(number: int) -> bytes:
        return number.to_bytes(3, "little")

    def chunk(name: bytes, data: bytes) -> bytes:
        return name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)

    frame = whole(PATCH) + whole(PATCH // 2) + whole(2 * PATCH - 1) * 2 + whole(100) + b"\0" + part
    canvas = b"\x02\0\0\0" + whole(ACROSS * PATCH - 1) + whole(DOWN * PATCH - 1)
    data = b"WEBP" + chunk(b"VP8X", canvas) + chunk(b"ANIM", bytes(6)) + chunk(b"ANMF", frame) * 2
    return b"RIFF" + struct.pack("<I", len(data)) + data


def bmp(rgb: Any, bits: int = 24, top_down: bool = False) -> bytes:
    height, width = rgb.shape[:2]
    rows: Any = rgb[..., ::-1]
    if bits == 16:
        fives = (rgb.astype(np.uint16) * 31 + 127) // 255
        rows = (fives[..., 0] << 10 | fives[..., 1] << 5 | fives[..., 2]).astype("<u2")
    elif bits == 32:
        rows = np.dstack([rows, np.zeros((height, width), np.uint8)])  # the fourth byte means nothing here
    data = (rows if top_down else rows[::-1]).tobytes()
    header = struct.pack("<IiiHHIIiiII", 40, width, -height if top_down else height, 1, bits, 0, len(data), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(data), 0, 0, 54) + header + data


def run_length_bmp() -> bytes:
    rows = b""
    for row in np.arange(DOWN * ACROSS).reshape(DOWN, ACROSS)[::-1]:
        rows += (b"".join(bytes((PATCH, int(index))) for index in row) + b"\0\0") * PATCH
    rows += b"\0\1"
    colours = b"".join(bytes((b, g, r, 0)) for r, g, b in PALETTE)
    header = struct.pack("<IiiHHIIiiII", 40, ACROSS * PATCH, DOWN * PATCH, 1, 8, 1, len(rows), 0, 0, len(PALETTE), 0)
    start = 54 + len(colours)
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + header + colours + rows


def with_profile(kind: str, to_xyz: Any, gamma: float, **options: Any) -> tuple[bytes, Patches, float]:
    return encoded(drawn(SOFT), kind, icc_profile=matrix_profile(to_xyz, gamma), **options), by_matrix(SOFT, to_xyz, gamma), 3.0


def srgb_bytes() -> bytes:
    profile: bytes = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile


def corner_inks() -> Patches:
    """The first twelve of the sixteen ways to have each ink in full or not at all."""
    corners = [[255 * (number >> bit & 1) for bit in (3, 2, 1, 0)] for number in range(DOWN * ACROSS)]
    return np.array(corners, np.float64).reshape(DOWN, ACROSS, 4)


def corner_lab() -> Any:
    """An L*, a*, b* for each of the sixteen, made up and inside sRGB."""
    lightness = 100 - 100 * np.arange(16) / 15  # all inks give black: LittleCMS moves the darkest colour there
    chroma = np.minimum(lightness, 100 - lightness) / 2
    return np.stack([lightness, chroma * np.sin(np.arange(16)), chroma * np.cos(np.arange(16))], -1)


def corner_colours() -> Patches:
    lab = corner_lab()[: DOWN * ACROSS]
    y = (lab[:, 0] + 16) / 116
    root = np.stack([y + lab[:, 1] / 500, y, y - lab[:, 2] / 200], -1)
    xyz = np.where(root > 6 / 29, root**3, 3 * (6 / 29) ** 2 * (root - 4 / 29)) * (0.9642, 1.0, 0.8249)
    colours: Patches = srgb_of(xyz @ np.linalg.inv(XYZ_OF_SRGB).T).reshape(DOWN, ACROSS, 3)
    return colours


def cmyk_profile() -> bytes:
    """A printer's profile whose table has the sixteen corners only; between them it is linear."""
    lab = corner_lab()
    table = np.stack([lab[:, 0] * 65280 / 100, (lab[:, 1] + 128) * 256, (lab[:, 2] + 128) * 256], -1).round().astype(">u2")  # version 2's Lab
    matrix = struct.pack(">9i", *(65536 if place % 4 == 0 else 0 for place in range(9)))
    straight = struct.pack(">HH", 0, 65535)
    lut = b"mft2" + bytes(4) + bytes((4, 3, 2, 0)) + matrix + struct.pack(">HH", 2, 2) + straight * 4 + table.tobytes() + straight * 3
    return icc_profile(b"CMYK", TEXT | {b"wtpt": D50, b"A2B0": lut}, pcs=b"Lab ", kind=b"prtr")


@pytest.mark.parametrize("name", BODIES)
def test_the_golden_corpus_comes_out_right(name: str) -> None:
    body, expected, tolerance = BODIES[name]()
    assert np.abs(seen(body) - expected).max() <= tolerance


@pytest.mark.parametrize("name", ["4:4:4 jpeg", "adobe rgb jpeg", "cmyk jpeg", "16-bit gray png", "rgba png", "animated webp"])
def test_the_golden_corpus_comes_out_right_when_resized(name: str) -> None:
    body, expected, tolerance = BODIES[name]()
    assert np.abs(seen(body, resize_mode="keep_ratio", image_size=40) - expected).max() <= tolerance + 4  # chroma at half size bleeds into small patches


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_in_every_format_that_has_it(kind: str, orientation: int) -> None:
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition (PIL's number) that a reader of this tag has to undo
    upright = Image.fromarray(drawn(COLOURS))
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 98}, "WEBP": {"lossless": True}}.get(kind, {})
    assert np.abs(seen(encoded(stored, kind, exif=exif, **options)) - COLOURS).max() <= 2


def test_a_profile_of_another_kind_than_srgb_makes_a_fitting_jpeg_be_encoded_again() -> None:
    kept = StoreConfig(encode_quality=98)
    plain, wide = encoded(drawn(SOFT), "JPEG", icc_profile=srgb_bytes()), with_profile("JPEG", XYZ_OF_DISPLAY_P3, 2.2)[0]
    assert Preparer(kept)(plain).jpeg == plain
    again = Preparer(kept)(wide).jpeg
    assert again != wide
    assert b"ICC_PROFILE" not in again


def test_what_cannot_be_shown_as_a_picture_is_refused() -> None:
    floats = encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF")
    with pytest.raises(Ended, match="decode_failed"):
        seen(floats)


def test_simplejpeg_and_this_corpus_agree_on_what_ycck_is() -> None:
    assert simplejpeg.decode_jpeg_header(ycck(drawn(inks())))[2] == "YCCK"

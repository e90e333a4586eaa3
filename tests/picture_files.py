"""Small picture files of every format, made with Pillow or, where it writes none, byte by byte."""

import io
import struct
import zlib

import numpy as np
from PIL import Image
import skimage.data

CAT = Image.fromarray(skimage.data.chelsea()).resize((60, 40))
PALETTE = CAT.convert("P", palette=Image.Palette.ADAPTIVE)
GREY = CAT.convert("L")
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def saved(kind: str, image: Image.Image = CAT, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rows, width, depth, colour, *chunks: bytes, interlaced=0, height=None) -> bytes:
    """A PNG of any kind; ``rows`` are the bytes of each row."""
    header = struct.pack(">IIBBBBB", width, height or len(rows), depth, colour, 0, 0, interlaced)
    content = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            *chunks,
            chunk(b"IDAT", content),
            chunk(b"IEND", b""),
        ]
    )


def interlaced_png() -> bytes:
    """The cat in the seven passes of a PNG that appears bit by bit; Pillow writes none."""
    pixels = np.asarray(CAT)
    steps = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2)]
    rows = [
        row.tobytes()
        for y, x, down, along in [*steps, (1, 0, 2, 1)]
        for row in pixels[y::down, x::along]
    ]
    return png(rows, 60, 8, 2, interlaced=1, height=40)


def tiff(pixels: bytes, width, height, **tags) -> bytes:
    """A TIFF of one strip and whatever tags, given as t258=(type, values)."""
    tags = {
        256: (4, [width]),
        257: (4, [height]),
        259: (3, [1]),
        273: (4, [8]),
        277: (3, [1]),
        278: (4, [height]),
        279: (4, [len(pixels)]),
    } | {int(name[1:]): value for name, value in tags.items()}
    pixels += bytes(len(pixels) % 2)
    entries, more, start = b"", b"", 8 + len(pixels) + 2 + 12 * len(tags) + 4
    for tag, (kind, values) in sorted(tags.items()):
        data = b"".join(struct.pack({1: "<B", 3: "<H", 4: "<I"}[kind], value) for value in values)
        if len(data) > 4:
            data, more = struct.pack("<I", start + len(more)), more + data
        entries += struct.pack("<HHI", tag, kind, len(values)) + data.ljust(4, b"\0")
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory + more


def tiled_tiff() -> bytes:
    """The red of the cat in tiles of 32 × 32."""
    red = np.zeros((64, 64), np.uint8)
    red[:40, :60] = np.asarray(CAT)[..., 0]
    tiles = [red[y : y + 32, x : x + 32].tobytes() for y in (0, 32) for x in (0, 32)]
    return tiff(
        b"".join(tiles),
        60,
        40,
        t258=(3, [8]),
        t262=(3, [1]),
        t322=(4, [32]),
        t323=(4, [32]),
        t324=(4, [8 + 1024 * tile for tile in range(4)]),
        t325=(4, [1024] * 4),
    )


FILES = {
    "JPEG": saved("JPEG"),
    "JPEG progressive": saved("JPEG", progressive=True),
    "JPEG with restart markers": saved("JPEG", restart_marker_rows=1),
    "JPEG grey": saved("JPEG", GREY),
    "JPEG CMYK": saved("JPEG", CAT.convert("CMYK")),
    "MPO": saved("MPO", save_all=True, append_images=[NOISE]),
    "PNG": saved("PNG"),
    "PNG palette": saved("PNG", PALETTE),
    "PNG 1 bit": saved("PNG", CAT.convert("1")),
    "PNG grey": saved("PNG", GREY),
    "PNG interlaced": interlaced_png(),
    "PNG animated": saved("PNG", save_all=True, append_images=[NOISE]),
    "WebP": saved("WEBP"),
    "WebP lossless": saved("WEBP", lossless=True),
    "WebP animated": saved("WEBP", save_all=True, append_images=[NOISE]),
    "GIF": saved("GIF", PALETTE),
    "GIF interlaced": saved("GIF", PALETTE, interlace=1),
    "GIF animated": saved("GIF", PALETTE, save_all=True, append_images=[NOISE]),
    "BMP": saved("BMP"),
    "BMP palette": saved("BMP", PALETTE),
    "BMP 1 bit": saved("BMP", CAT.convert("1")),
    "TIFF": saved("TIFF"),
    "TIFF strips": saved("TIFF", compression="tiff_lzw", strip_size=1000),
    "TIFF tiles": tiled_tiff(),
    "TIFF LZW": saved("TIFF", compression="tiff_lzw"),
    "TIFF deflate": saved("TIFF", compression="tiff_adobe_deflate"),
    "TIFF packbits": saved("TIFF", compression="packbits"),
    "TIFF JPEG": saved("TIFF", compression="jpeg"),
    "TIFF fax": saved("TIFF", CAT.convert("1"), compression="group4"),
    "TIFF CMYK": saved("TIFF", CAT.convert("CMYK")),
    "TIFF YCbCr": saved("TIFF", CAT.convert("YCbCr"), compression="packbits"),
    "TIFF palette": saved("TIFF", PALETTE),
    "TIFF Lab": saved("TIFF", CAT.convert("LAB")),
}

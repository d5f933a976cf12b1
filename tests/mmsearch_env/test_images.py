from __future__ import annotations

import base64
import io
import os
import pickle
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsearch_env import images
from mmsearch_env.errors import ImageError
from mmsearch_env.images import FORMATS, FULL_FRAME, Image, check_header, clean_bbox

Encode = Callable[..., bytes]


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\x00\x00\x00\x00IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


def test_pixels_are_copied_and_read_only() -> None:
    pixels = np.zeros((2, 3, 3), dtype=np.uint8)
    image = Image(pixels)
    pixels[0, 0, 0] = 9
    assert (image.width, image.height, int(image.pixels[0, 0, 0])) == (3, 2, 0)
    with pytest.raises(ValueError, match="read-only"):
        image.pixels[0, 0, 0] = 1


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((2, 3), np.uint8),
        np.zeros((2, 3, 4), np.uint8),
        np.zeros((2, 3, 3), np.float32),
        np.zeros((0, 3, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"expected a non-empty .* got"):
        Image(pixels)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_lossless_files_keep_their_pixels(kind: str, picture: Image, encoded: Encode) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    assert Image.from_bytes(encoded(picture.to_pil(), kind, **options)) == picture


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("CMYK", (0, 0, 0, 255), (0, 0, 0)),
        ("RGBA", (200, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (200, 0, 0, 255), (200, 0, 0)),
        ("LA", (0, 0), (255, 255, 255)),
        ("YCbCr", (255, 128, 128), (255, 255, 255)),
        ("HSV", (0, 0, 255), (255, 255, 255)),
        ("I", 70_000, (128, 128, 128)),
        ("F", 0.25, (128, 128, 128)),
        ("I;16", 40_000, (128, 128, 128)),
    ],
)
def test_every_mode_becomes_rgb(mode: str, colour: object, expected: tuple[int, int, int]) -> None:
    image = Image.from_pil(PIL.Image.new(mode, (2, 2), colour))  # type: ignore[arg-type]
    assert image.pixels[0, 0].tolist() == list(expected)


def test_palette_with_a_transparent_colour_lies_on_white(encoded: Encode) -> None:
    paletted = PIL.Image.new("P", (2, 1), 1)
    paletted.putpalette([0, 0, 0, 200, 0, 0])
    paletted.putpixel((0, 0), 0)
    image = Image.from_bytes(encoded(paletted, "PNG", transparency=0))
    assert image.pixels.tolist() == [[[255, 255, 255], [200, 0, 0]]]


def test_deep_pictures_are_stretched() -> None:
    values = np.array([[100, 300, 1100]], dtype=np.int32)
    assert Image.from_pil(PIL.Image.fromarray(values)).pixels[0, :, 0].tolist() == [0, 51, 255]


def test_missing_and_infinite_values_of_a_float_picture_are_clipped() -> None:
    values = np.array([[np.nan, 0.0, 1.0, np.inf]], dtype=np.float32)
    assert Image.from_pil(PIL.Image.fromarray(values)).pixels[0, :, 0].tolist() == [0, 0, 255, 255]
    nothing = np.full((1, 2), np.nan, dtype=np.float32)
    assert Image.from_pil(PIL.Image.fromarray(nothing)).pixels[0, :, 0].tolist() == [128, 128]


@pytest.mark.parametrize("kind", ["<u2", ">u2", "<i4", "<f4"])
def test_a_deep_picture_is_the_same_in_any_bands(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 60_000, size=(23, 7)).astype(kind)
    picture = PIL.Image.frombuffer("I;16B", (7, 23), values.tobytes()) if kind == ">u2" else PIL.Image.fromarray(values)
    low, high = int(values.min()), int(values.max())
    expected = ((values.astype(np.float64) - low) * (255.0 / (high - low))).astype(np.uint8)
    for pixels in (1, 20, 1_000):
        monkeypatch.setattr(images, "BAND_PIXELS", pixels)
        assert (Image.from_pil(picture).pixels == expected[:, :, None]).all()


def test_a_deep_picture_takes_little_memory(encoded: Encode) -> None:
    """4 million pixels: 200 MB as numbers of 64 bits, several times over."""
    picture = PIL.Image.fromarray(np.arange(4_000_000, dtype=np.uint16).reshape(2_000, 2_000))
    tracemalloc.start()
    try:
        Image.from_pil(picture)
        assert tracemalloc.get_traced_memory()[1] < 60_000_000
    finally:
        tracemalloc.stop()


def test_what_could_start_a_programme_is_not_opened(picture: Image, encoded: Encode) -> None:
    assert not {"EPS", "WMF", "PDF"} & set(FORMATS)
    for kind in ("EPS", "PCX"):
        with pytest.raises(ImageError, match="expected a readable picture, got bytes of no known kind"):
            check_header(io.BytesIO(encoded(picture.to_pil(), kind)), name="a")


def test_an_older_pillow_without_some_kind_reads_the_others(
    picture: Image, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    images._known_formats.cache_clear()
    request.addfinalizer(images._known_formats.cache_clear)
    monkeypatch.delitem(PIL.Image.OPEN, "AVIF", raising=False)
    assert Image.from_bytes(picture.to_png()) == picture
    assert "AVIF" not in images._known_formats()


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a\.png: expected a file, got a pipe, a socket or a device; check the path"):
        Image.from_file(tmp_path / "a.png")


def test_exif_rotation_is_applied(picture: Image, encoded: Encode) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter clockwise
    image = Image.from_bytes(encoded(picture.to_pil(), "PNG", exif=exif))
    assert (image.width, image.height) == (4, 8)
    assert image.pixels[0, 0].tolist() == [255, 0, 0]
    assert image.pixels[7, 0].tolist() == [0, 0, 255]


def test_damaged_exif_does_not_cost_the_picture(picture: Image, encoded: Encode) -> None:
    image = Image.from_bytes(encoded(picture.to_pil(), "PNG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f"))
    assert image == picture


@pytest.mark.parametrize("data", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0\x00\x10JFIF"])
def test_what_is_no_picture_is_named(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"row 7: expected a readable picture, got .*; replace it"):
        Image.from_bytes(data, name="row 7")


def test_a_truncated_picture_is_refused(encoded: Encode) -> None:
    noise = PIL.Image.effect_noise((64, 64), 90.0)
    data = encoded(noise, "JPEG")
    with pytest.raises(ImageError, match="expected a readable picture"):
        Image.from_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("side", "reason"),
    [
        (6_400, "expected at most 40000000 pixels, got 6400 x 6400; shrink the picture"),
        (12_000, "DecompressionBombWarning"),
        (20_000, "DecompressionBombError"),
    ],
)
def test_a_decompression_bomb_is_refused_before_decoding(side: int, reason: str) -> None:
    """41, 144 and 400 million pixels: beyond our limit, beyond Pillow's warning, beyond Pillow's error."""
    with pytest.raises(ImageError, match=reason):
        Image.from_bytes(png_header(side, side))


def test_too_many_bytes_are_refused(monkeypatch: pytest.MonkeyPatch, picture: Image, tmp_path: Path) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 10)
    (tmp_path / "a.png").write_bytes(picture.to_png())
    for read in (lambda: Image.from_bytes(picture.to_png()), lambda: Image.from_file(tmp_path / "a.png")):
        with pytest.raises(ImageError, match="expected at most 10 bytes, got"):
            read()


def test_a_file_is_read_and_a_missing_one_named(picture: Image, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture.to_png())
    assert Image.from_file(tmp_path / "a.png") == picture
    with pytest.raises(ImageError, match=r"b\.png: expected a picture file, got none"):
        Image.from_file(tmp_path / "b.png")
    with pytest.raises(ImageError, match="IsADirectoryError"):
        Image.from_file(tmp_path)


def test_the_header_check_decodes_nothing(picture: Image, tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(png_header(10, 10))
    with (tmp_path / "cut.png").open("rb") as file:
        check_header(file, name="cut")
    with pytest.raises(ImageError):
        Image.from_file(tmp_path / "cut.png")


def test_crop_takes_fractions(picture: Image) -> None:
    right = picture.crop((0.5, 0.0, 1.0, 0.5))
    assert (right.width, right.height) == (4, 2)
    assert right.pixels[0, 0].tolist() == [0, 0, 255]


@given(st.tuples(*[st.floats(allow_nan=True, allow_infinity=True) for _ in range(4)]))
def test_any_box_can_be_cropped(box: tuple[float, float, float, float]) -> None:
    left, top, right, bottom = clean_bbox(box)
    assert 0.0 <= left < right <= 1.0
    assert 0.0 <= top < bottom <= 1.0
    part = Image(np.zeros((3, 5, 3), np.uint8)).crop((left, top, right, bottom))
    assert 1 <= part.width <= 5
    assert 1 <= part.height <= 3


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0.1, 0.2, 0.8, 0.9), (0.1, 0.2, 0.8, 0.9)),
        ((0.8, 0.9, 0.1, 0.2), (0.1, 0.2, 0.8, 0.9)),
        ((-1.0, 0.0, 2.0, 1.0), FULL_FRAME),
        ((0.5, 0.0, 0.5, 1.0), FULL_FRAME),
        ((float("nan"), 0.0, 1.0, 1.0), FULL_FRAME),
        ((0.0, 1.0), FULL_FRAME),
    ],
)
def test_boxes_are_cleaned(box: tuple[float, ...], expected: tuple[float, ...]) -> None:
    assert clean_bbox(box) == pytest.approx(expected)


def test_resized_keeps_what_is_where(picture: Image) -> None:
    large = picture.resized(80, 40)
    assert (large.width, large.height) == (80, 40)
    assert large.pixels[20, 4].tolist() == [255, 0, 0]


def test_equality_is_by_pixels_and_survives_a_pickle(picture: Image) -> None:
    again = pickle.loads(pickle.dumps(picture))
    assert again == picture
    assert len({again, picture}) == 1
    assert not again.pixels.flags.writeable
    assert picture != picture.crop((0.0, 0.0, 0.5, 1.0))


def test_the_digest_knows_the_shape() -> None:
    assert Image(np.zeros((2, 8, 3), np.uint8)).digest != Image(np.zeros((4, 4, 3), np.uint8)).digest


def test_a_data_url_holds_the_picture(picture: Image) -> None:
    head, _, body = picture.to_data_url().partition(",")
    assert head == "data:image/png;base64"
    assert Image.from_bytes(base64.b64decode(body)) == picture

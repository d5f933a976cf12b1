"""From FVQA's published image-search results, a pickle, to a record.

``fvqa_{train,test}_image_search_results_cache.pkl`` (``lmms-lab/FVQA``) maps a row's ``data_id`` to
``{"tool_returned_web_title_list": [...], "tool_returned_images_urls": [...]}``, where a picture is a URL or a pickled
PIL image. A pickle can run any code when it is loaded. Here it can not: the reader knows numbers, texts, bytes, lists,
dictionaries, and a stand-in that keeps what a PIL image was made of; every other class or function is refused.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import PIL.Image

from mmsearch_env.actions import ActionKind
from mmsearch_env.errors import DataError, ImageError
from mmsearch_env.images import Image
from mmsearch_env.tools.replay.record import RecordedCall, RecordedHit, Recorder

MAX_PICKLE_BYTES = 500_000_000
MAX_PIXELS = 20_000_000
_TITLES, _PICTURES = "tool_returned_web_title_list", "tool_returned_images_urls"
_PUBLISHED_TOP_K = 5
"""Hits that were asked for when the results were collected."""
_MODES = {"1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr"}
_BANDS = {"1": 1, "L": 1, "P": 1, "LA": 2, "RGB": 3, "YCbCr": 3, "RGBA": 4, "CMYK": 4}


@dataclass(frozen=True, slots=True)
class Imported:
    """What came of an import.

    Attributes:
        questions: rows taken over.
        pictures: thumbnails stored.
        urls: thumbnails of which there is only an address.
        skipped: rows or pictures that could not be used, and why.
    """

    questions: int
    pictures: int
    urls: int
    skipped: tuple[str, ...]


def import_fvqa_cache(path: Path, folder: Path, on_question: Callable[[], None] = lambda: None) -> Imported:
    """Write a record of what ``path`` holds.

    Raises:
        DataError: the file is too large, is no pickle, or holds what it should not.
        ConfigError: the folder cannot be written.
    """
    entries, recorder = read_cache(path), Recorder(folder)
    questions, pictures, urls, skipped = 0, 0, 0, []
    for question_id, entry in entries.items():
        hits: list[RecordedHit] = []
        titles, found = entry.get(_TITLES), entry.get(_PICTURES)
        if not isinstance(titles, list) or not isinstance(found, list):
            skipped.append(f"{question_id}: expected lists of titles and pictures")
            continue
        for title, picture in zip(titles, found, strict=False):
            name, url = "", ""
            if isinstance(picture, str):
                url, urls = picture, urls + 1
            else:
                try:
                    name, pictures = recorder.store_picture(_image(picture)), pictures + 1
                except ImageError as error:
                    skipped.append(f"{question_id}: {error}")
            hits.append(RecordedHit(str(title), url or f"https://fvqa.invalid/{question_id}", "", 0.0, name))
        about = {"kind": ActionKind.IMAGE_SEARCH.value, "query": {}, "question_id": question_id}
        recorder.write_line(about, RecordedCall(max(_PUBLISHED_TOP_K, len(hits)), tuple(hits)))
        questions += 1
        on_question()
    return Imported(questions, pictures, urls, tuple(skipped))


def read_cache(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """The dictionary in a pickle, read without running anything.

    Raises:
        DataError: the file is too large, is no pickle, or holds what it should not.
    """
    try:
        if path.stat().st_size > MAX_PICKLE_BYTES:
            raise DataError(f"{path}: expected at most {MAX_PICKLE_BYTES} bytes, got more")
        with path.open("rb") as file:
            found = _Reader(file).load()
    except OSError as error:
        raise DataError(f"{path}: expected a readable file, got {error.strerror}; check the path") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:  # whatever a malformed pickle makes of itself
        raise DataError(f"{path}: expected a pickle of plain data, got {type(error).__name__}") from error
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(entry, dict) for name, entry in found.items()
    ):
        raise DataError(f"{path}: expected a dictionary of results by data_id, got {type(found).__name__}")
    return found


class _PickledImage:
    """Stands in for a PIL image: keeps what the image was made of, and does nothing with it."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Reader(pickle.Unpickler):
    """Reads plain data and stand-ins; everything else that a pickle names is refused."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)

    def find_class(self, module: str, name: str) -> Any:
        is_image = module.startswith("PIL.") and (name == "Image" or name.endswith("ImageFile"))
        if is_image and module.count(".") == 1:
            return _PickledImage
        raise DataError(
            f"expected numbers, texts, lists, dictionaries and images, got {module}.{name}; do not trust it"
        )

    def persistent_load(self, pid: Any) -> Any:
        raise DataError("expected plain data, got a reference to something outside; do not trust it")


def _image(found: object) -> Image:
    """The picture that a stand-in was made of. Raises ImageError."""
    state = found.state if isinstance(found, _PickledImage) else None
    if not isinstance(state, (list, tuple)) or len(state) < 5:
        raise ImageError("expected a URL or a picture, got something else; it goes without")
    _, mode, size, palette, data = state[:5]
    is_size = (
        isinstance(size, (list, tuple)) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)
    )
    if mode not in _MODES or not is_size or size[0] * size[1] > MAX_PIXELS or not isinstance(data, bytes):
        raise ImageError("expected a picture of a usual mode and size, got another; it goes without")
    expected = (size[0] + 7) // 8 * size[1] if mode == "1" else size[0] * size[1] * _BANDS[mode]
    if len(data) != expected:
        raise ImageError(f"expected {expected} bytes of pixels, got {len(data)}; it goes without")
    picture = PIL.Image.frombytes(mode, tuple(size), data)
    if mode == "P":
        if (
            not isinstance(palette, list)
            or len(palette) > 768
            or not all(type(v) is int and 0 <= v < 256 for v in palette)
        ):
            raise ImageError("expected a palette of colours, got something else; it goes without")
        picture.putpalette(palette)
    return Image.from_pil(picture)

"""A conversation for human eyes: in a terminal, as a web page, as one video frame.

Everything here may have come from a web page, so nothing of it reaches the reader's terminal or browser as a command:
control characters are shown, not sent, and markup is escaped.
"""

from __future__ import annotations

import html
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, TextIO

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from mmsearch_env.images import Image
from mmsearch_env.messages import Message, Part, Role, TextPart

Colour = Literal["auto", "true", "none"]

SPEAKER: dict[Role, str] = {"system": "Rules", "user": "Environment", "assistant": "Player"}
"""How a role is called in front of people."""
PICTURE_CELLS = (48, 16)
"""Largest size of a message's only picture in a terminal: columns and rows of characters."""
THUMBNAIL_CELLS = (24, 6)
"""Largest size of a picture that is one of several."""

_ANSI_COLOUR: dict[Role, str] = {"system": "90", "user": "36", "assistant": "33"}
_RAMP = " .:-=+*#%@"
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")


def plain(text: str) -> str:
    """``text`` with every control character made visible, so that a terminal obeys none of it.

    Newlines stay, tabs become spaces, C0 controls become their symbol (escape: U+241B); C1 controls, bidirectional
    overrides and lone surrogates become U+FFFD.
    """
    return "".join(_plain_character(character) for character in text.replace("\r\n", "\n").expandtabs(4))


def rendered(conversation: Sequence[Message], mode: str | None) -> Any:
    """A conversation in a render mode; None in those that give nothing back."""
    if mode == "ansi":
        return to_ansi(conversation)
    if mode == "html":
        return to_html(conversation)
    return to_frame(conversation) if mode == "rgb_array" else None


def to_ansi(messages: Sequence[Message], *, width: int = 80, colour: Colour = "auto") -> str:
    """The conversation for a terminal of ``width`` columns.

    Args:
        messages: what to show.
        width: columns of the terminal.
        colour: ``"true"`` draws pictures as half blocks in 24-bit colour, ``"none"`` as shades of plain text;
            ``"auto"`` is ``"none"`` where the environment variable ``NO_COLOR`` is set (no-color.org).
    """
    return "\n".join(_message_lines(messages, width, coloured=_is_coloured(colour)))


def parts_to_ansi(parts: Sequence[Part], *, width: int = 80, colour: Colour = "auto") -> str:
    """Text and pictures that nobody says, with pictures as small as several of one message; else as :func:`to_ansi`."""
    return "\n".join(_part_lines(parts, width, THUMBNAIL_CELLS, coloured=_is_coloured(colour)))


def write_ansi(messages: Sequence[Message], stream: TextIO) -> None:
    """Write the conversation to a terminal; a question mark stands for what its encoding does not have."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write((to_ansi(messages) + "\n").encode(encoding, errors="replace").decode(encoding))


def to_html(messages: Sequence[Message], *, title: str = "Episode") -> str:
    """The conversation as one page that needs nothing else: styles and pictures inside, no scripts."""
    return _PAGE.format(title=_escaped(title), body="\n".join(_message_html(message) for message in messages))


def to_frame(messages: Sequence[Message], *, width: int = 640, height: int = 480) -> np.ndarray:
    """The end of the conversation as one (height, width, 3) uint8 frame: the latest pictures left, text right."""
    frame = PIL.Image.new("RGB", (width, height), "#fdfcf9")
    left = width * 2 // 5
    _draw_pictures(frame, [image for message in messages for image in message.images], left)
    _draw_text(frame, messages, left)
    return np.asarray(frame, dtype=np.uint8)


def _plain_character(character: str) -> str:
    if character == "\n" or character.isprintable():
        return character
    if character < " ":
        return chr(0x2400 + ord(character))
    if character == "\x7f":
        return "\u2421"
    if unicodedata.category(character) in ("Cc", "Cs") or character in _BIDI:
        return "\ufffd"
    return "\n" if character in "\u2028\u2029" else character


def _message_lines(messages: Sequence[Message], width: int, *, coloured: bool) -> Iterator[str]:
    for message in messages:
        yield _heading(message.role, width, coloured=coloured)
        cells = PICTURE_CELLS if len(message.images) == 1 else THUMBNAIL_CELLS
        yield from _part_lines(message.parts, width, cells, coloured=coloured)
        yield ""


def _part_lines(parts: Sequence[Part], width: int, cells: tuple[int, int], *, coloured: bool) -> Iterator[str]:
    for part in _joined(parts):
        if isinstance(part, TextPart):
            yield from _wrapped(plain(part.text).strip("\n"), width)
        else:
            yield from _picture_lines(part.image, min(width, cells[0]), cells[1], coloured=coloured)


def _is_coloured(colour: Colour) -> bool:
    return colour == "true" or (colour == "auto" and not os.environ.get("NO_COLOR"))


def _heading(role: Role, width: int, *, coloured: bool) -> str:
    heading = f"── {SPEAKER[role]} ".ljust(width, "─")
    return f"\x1b[1;{_ANSI_COLOUR[role]}m{heading}\x1b[0m" if coloured else heading


def _joined(parts: Iterable[Part]) -> Iterator[Part]:
    """Neighbouring texts as one, so that a sentence cut into parts is wrapped as one."""
    text = ""
    for part in parts:
        if isinstance(part, TextPart):
            text += part.text
            continue
        if text.strip():
            yield TextPart(text)
        text = ""
        yield part
    if text.strip():
        yield TextPart(text)


def _wrapped(text: str, width: int) -> Iterator[str]:
    """Lines of at most ``width`` cells, broken at spaces where there are any."""
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split(" "):
            longer = f"{line} {word}" if line else word
            if _cells(longer) <= width:
                line = longer
                continue
            if line:
                yield line
            *full, line = _chopped(word, width)
            yield from full
        yield line


def _chopped(word: str, width: int) -> list[str]:
    pieces, piece = [], ""
    for character in word:
        if piece and _cells(piece + character) > width:
            pieces.append(piece)
            piece = ""
        piece += character
    return [*pieces, piece]


def _cells(text: str) -> int:
    """Columns a terminal uses: two for wide characters, none for combining ones."""
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )


def _picture_lines(image: Image, columns: int, rows: int, *, coloured: bool) -> Iterator[str]:
    """A cell is twice as high as wide and shows two pixels, one above the other."""
    scale = min(columns / image.width, 2 * rows / image.height)
    across = max(1, round(image.width * scale))
    down = max(1, round(image.height * scale / 2))
    pixels = image.resized(across, 2 * down).pixels
    yield from _colour_lines(pixels) if coloured else _shade_lines(pixels)


def _colour_lines(pixels: np.ndarray) -> Iterator[str]:
    for upper, lower in zip(pixels[::2].tolist(), pixels[1::2].tolist(), strict=True):
        cells = (
            f"\x1b[38;2;{above[0]};{above[1]};{above[2]};48;2;{below[0]};{below[1]};{below[2]}m▀"
            for above, below in zip(upper, lower, strict=True)
        )
        yield "".join(cells) + "\x1b[0m"


def _shade_lines(pixels: np.ndarray) -> Iterator[str]:
    """Brightness as characters, stretched so that the darkest pixel is blank and the brightest full."""
    luma = pixels.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    luma = (luma[::2] + luma[1::2]) / 2
    span = max(float(np.ptp(luma)), 1.0)
    levels = np.rint((luma - luma.min()) / span * (len(_RAMP) - 1)).astype(int)
    for row in levels.tolist():
        yield "".join(_RAMP[level] for level in row)


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ground: #f6f4ef; --paper: #fff; --ink: #22252b; --faint: #6d7480; --line: #e2ded4;
  --user: #0f6e84; --assistant: #a4570a; --system: #6d7480; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ground: #16181c; --paper: #1f2228; --ink: #e6e4de; --faint: #98a0ab;
  --line: #31353d; --user: #5cc3d8; --assistant: #f0a45a; --system: #98a0ab; }} }}
body {{ margin: 0 auto; max-width: 46rem; padding: 2rem 1rem 4rem; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; }}
h1 {{ font-size: 1.15rem; font-weight: 600; margin: 0 0 1.5rem; }}
article {{ margin: 0 0 1rem; padding: .8rem 1.1rem 1rem; background: var(--paper); border: 1px solid var(--line);
  border-left: .25rem solid var(--faint); border-radius: .4rem; }}
article.user {{ border-left-color: var(--user); }}
article.assistant {{ border-left-color: var(--assistant); margin-left: 2.5rem; }}
h2 {{ margin: 0 0 .4rem; font-size: .72rem; letter-spacing: .08em; text-transform: uppercase; color: var(--faint); }}
article.user h2 {{ color: var(--user); }}
article.assistant h2 {{ color: var(--assistant); }}
p {{ margin: .4rem 0; white-space: pre-wrap; overflow-wrap: anywhere; }}
img {{ display: block; max-width: 100%; height: 5rem; margin: .6rem 0; border: 1px solid var(--line);
  border-radius: .2rem; }}
article:first-of-type img {{ height: auto; min-width: 14rem; max-height: 22rem; }}
</style>
<h1>{title}</h1>
{body}
</html>
"""


def _message_html(message: Message) -> str:
    parts = "\n".join(_part_html(part) for part in _joined(message.parts))
    return f'<article class="{message.role}">\n<h2>{SPEAKER[message.role]}</h2>\n{parts}\n</article>'


def _part_html(part: Part) -> str:
    if isinstance(part, TextPart):
        return f"<p>{_escaped(part.text.strip())}</p>"
    size = f"{part.image.width} x {part.image.height} pixels"
    return f'<img src="{part.image.to_data_url()}" alt="picture, {size}">'


def _escaped(text: str) -> str:
    return html.escape(plain(text), quote=True)


_MARGIN = 12
_TEXT_SIZE = 13
_LINE_HEIGHT = 17
_TEXT_COLOUR: dict[Role, str] = {"system": "#6d7480", "user": "#22252b", "assistant": "#a4570a"}


def _draw_pictures(frame: PIL.Image.Image, images: Sequence[Image], right: int) -> None:
    """The question's picture large on top, the latest other ones small below."""
    if not images:
        return
    question = _fitted(images[0], right - 2 * _MARGIN, frame.height // 2)
    frame.paste(question, (_MARGIN, _MARGIN))
    top, side = question.height + 2 * _MARGIN, (right - 4 * _MARGIN) // 3
    for position, image in enumerate(images[1:][-3:]):
        frame.paste(_fitted(image, side, frame.height - top - _MARGIN), (_MARGIN + position * (side + _MARGIN), top))


def _fitted(image: Image, width: int, height: int) -> PIL.Image.Image:
    scale = min(width / image.width, height / image.height)
    return image.resized(max(1, int(image.width * scale)), max(1, int(image.height * scale))).to_pil()


def _draw_text(frame: PIL.Image.Image, messages: Sequence[Message], left: int) -> None:
    """The last lines that fit, the newest at the bottom."""
    draw, font = PIL.ImageDraw.Draw(frame), PIL.ImageFont.load_default(size=_TEXT_SIZE)
    columns = max(8, int((frame.width - left - 2 * _MARGIN) / (_TEXT_SIZE * 0.55)))
    lines = [
        (line, _TEXT_COLOUR[message.role])
        for message in messages
        for line in (*_wrapped(plain(_spoken(message)).strip("\n"), columns), "")
    ]
    fitting = max(1, (frame.height - 2 * _MARGIN) // _LINE_HEIGHT)
    for position, (line, colour) in enumerate(lines[-fitting:]):
        draw.text((left + _MARGIN, _MARGIN + position * _LINE_HEIGHT), line, fill=colour, font=font)


def _spoken(message: Message) -> str:
    return "\n".join(part.text.strip("\n") for part in _joined(message.parts) if isinstance(part, TextPart))

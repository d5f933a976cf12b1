from __future__ import annotations

import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsearch_env.images import Image
from mmsearch_env.messages import ImagePart, Message, TextPart
from mmsearch_env.rendering import plain, to_ansi, to_frame, to_html, write_ansi

ATTACK = "\x1b[2J\x1b]0;owned\x07 \x9b31m \u202edetrever <script>alert(1)</script>\r\x00\udc80"


def said(text: str, role: str = "user") -> Message:
    return Message(role, (TextPart(text),))  # type: ignore[arg-type]


@pytest.fixture
def no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_control_characters_are_shown_not_sent() -> None:
    assert plain(ATTACK) == "␛[2J␛]0;owned␇ \ufffd31m \ufffddetrever <script>alert(1)</script>␍␀\ufffd"


def test_plain_leaves_ordinary_text_alone() -> None:
    text = "Côte d'Ivoire\n東京 👨\u200d👩\u200d👧 שלום"
    assert plain(text) == text
    assert plain("a\tb\r\nc\u2028d") == "a   b\nc\nd"


@pytest.mark.usefixtures("colour")
def test_a_picture_is_half_blocks_in_true_colour(picture: Image) -> None:
    """8 x 4 pixels on 48 columns: 12 rows of 48 cells, red on the left and blue on the right."""
    lines = to_ansi([Message("user", (ImagePart(picture),))]).split("\n")[1:-1]
    assert len(lines) == 12
    cells = re.findall(r"\x1b\[38;2;(\d+;\d+;\d+);48;2;(\d+;\d+;\d+)m▀", lines[0])
    assert len(cells) == 48
    assert cells[0] == ("255;0;0", "255;0;0")
    assert cells[-1] == ("0;0;255", "0;0;255")
    assert lines[0].endswith("\x1b[0m")


@pytest.mark.usefixtures("no_colour")
def test_without_colour_a_picture_is_shades() -> None:
    pixels = np.zeros((2, 4, 3), dtype=np.uint8)
    pixels[:, 2:] = 255
    line = to_ansi([Message("user", (ImagePart(Image(pixels)),))]).split("\n")[1]
    assert line.startswith("    ")
    assert line.endswith("@@@@")


@pytest.mark.usefixtures("colour")
def test_one_picture_among_several_is_small(picture: Image) -> None:
    lines = to_ansi([Message("user", (ImagePart(picture), ImagePart(picture)))]).split("\n")
    assert [line.count("▀") for line in lines[1:-1]] == [24] * 12


@pytest.mark.usefixtures("no_colour")
def test_a_conversation_in_text() -> None:
    messages = [said("What is it? A flag?"), said("<answer>Chad</answer>", "assistant")]
    assert to_ansi(messages, width=18) == (
        "── Environment ───\nWhat is it? A\nflag?\n\n── Player ────────\n<answer>Chad</answ\ner>\n"
    )


@pytest.mark.usefixtures("no_colour")
def test_lines_fit_the_width_in_cells() -> None:
    text = "one two three " + "東京" * 30 + " e\u0301" * 40
    for line in to_ansi([said(text)], width=20).split("\n"):
        wide = sum(2 if character in "東京" else 0 if character == "\u0301" else 1 for character in line)
        assert wide <= 20


@pytest.mark.usefixtures("colour")
@given(st.text())
def test_no_text_commands_the_terminal(text: str) -> None:
    shown = to_ansi([said(text)])
    assert re.fullmatch(r"\x1b\[1;36m[^\x00-\x1f]*\x1b\[0m\n[^\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]*", shown)


@pytest.mark.usefixtures("no_colour")
@pytest.mark.parametrize(("encoding", "heading"), [("ascii", b"?? Player ?"), ("utf-8", "── Player ─".encode())])
def test_a_terminal_without_a_character_shows_a_question_mark(encoding: str, heading: bytes) -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding=encoding)
    write_ansi([said("東京\ud800", "assistant")], stream)
    stream.flush()
    assert written.getvalue().startswith(heading)


def test_a_stream_without_an_encoding_takes_everything() -> None:
    stream = io.StringIO()
    write_ansi([said("東京")], stream)
    assert "東京" in stream.getvalue()


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def parsed(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    return tags


def test_a_page_holds_text_and_pictures_and_asks_for_nothing(picture: Image) -> None:
    page = to_html([Message("user", (ImagePart(picture), TextPart("What is it?"))), said("A flag.", "assistant")])
    tags = parsed(page)
    assert [attributes["class"] for tag, attributes in tags.seen if tag == "article"] == ["user", "assistant"]
    assert [attributes["src"] for tag, attributes in tags.seen if tag == "img"] == [picture.to_data_url()]
    assert {"What is it?", "A flag."} <= set(tags.words)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in tags.seen}
    assert "http" not in page.replace("http-equiv", "")


@pytest.mark.parametrize(
    "text", [ATTACK, "</p></article><img src=x onerror=alert(1)>", '" onload="x', "{body}", "&lt;"]
)
def test_a_page_cannot_be_injected(text: str) -> None:
    page = to_html([said(text)], title=text)
    ordinary = parsed(to_html([said("x")], title="x"))
    assert [tag for tag, _ in parsed(page).seen] == [tag for tag, _ in ordinary.seen]
    assert plain(text).strip() in parsed(page).words
    page.encode("utf-8")


@pytest.mark.parametrize("size", [(640, 480), (320, 200), (40, 30)])
def test_a_frame_has_a_constant_size(size: tuple[int, int], picture: Image) -> None:
    conversation = [Message("user", (ImagePart(picture), TextPart("What? " * 400), *[ImagePart(picture)] * 5))]
    for messages in ([], [said("short")], [said(ATTACK)], conversation):
        frame = to_frame(messages, width=size[0], height=size[1])
        assert (frame.shape, frame.dtype) == ((size[1], size[0], 3), np.uint8)


def test_a_frame_shows_the_picture_and_the_newest_text(picture: Image) -> None:
    empty, old = to_frame([]), to_frame([said("old\n" * 100)])
    assert (old != empty).any()
    assert (to_frame([said("old\n" * 100), said("new")]) != old).any()
    assert to_frame([Message("user", (ImagePart(picture),))])[20, 20].tolist() == [255, 0, 0]

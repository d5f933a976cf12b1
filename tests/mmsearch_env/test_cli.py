from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mmsearch_env.__main__ import main
from mmsearch_env.images import Image
from mmsearch_env.rendering import plain

WORLD = "synthetic:seed=0,entities=20"
Type = Callable[..., str]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Type:
    """Call the programme with what a person types, and give what it prints."""

    def call(*arguments: str, lines: str = "", status: int = 0) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        monkeypatch.setenv("COLUMNS", "100")
        assert main(arguments) == status
        printed = capsys.readouterr()
        return printed.err if status else printed.out

    return call


@pytest.fixture
def question_file(tmp_path: Path, picture: Image) -> Path:
    (tmp_path / "flag.png").write_bytes(picture.to_png())
    row = {"id": "td", "question": "Which country?", "answers": ["Chad", "Tchad"], "image": "flag.png"}
    path = tmp_path / "flags.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | {"id": "x", "answers": []}) + "\n")
    return path


def test_a_person_answers_at_once(typed: Type, question_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    shown = typed("play", "--world", WORLD, "--questions", str(question_file), "--episodes", "1", lines="tchad\n")
    assert "Which country?" in shown
    assert "round 1 of 3 · searches left: 1 image, 2 text ›" in shown
    assert "Right · accepted: Chad, Tchad" in shown
    assert re.search(r"total +1\.000", shown)
    assert shown.endswith("1 played, mean reward 1.000\n")
    assert f"1 of 2 rows skipped:\n  {question_file}, row 2: question 'x': expected an answer" in caplog.text


def test_a_person_searches_first_and_pays_for_it(typed: Type, question_file: Path) -> None:
    lines = "/image\n/text flag of Chad\nChad\n"
    shown = typed("play", "--world", WORLD, "--questions", str(question_file), "--episodes", "1", lines=lines)
    assert "searches left: 0 image, 2 text" in shown
    assert "Only an answer is left." in shown
    assert re.search(r"search_penalty +-0\.090", shown)
    assert re.search(r"total +0\.910", shown)
    assert "<information>" not in shown
    assert "<reason>" not in shown


@pytest.mark.parametrize("line", ["/help", "", "image", "Text", "/text", "/image 1 2", "/image a b c d", "/unknown"])
def test_a_slip_costs_nothing(line: str, typed: Type, question_file: Path) -> None:
    lines = f"{line}\nno idea\n"
    shown = typed("play", "--world", WORLD, "--questions", str(question_file), "--episodes", "1", lines=lines)
    assert shown.count("Type an answer, or search first") == 2
    assert shown.count("round 1 of 3") == 2
    assert "Wrong · accepted: Chad, Tchad" in shown


@pytest.mark.parametrize("lines", ["", "/quit\n", "/image\n/q\n"])
def test_a_person_may_leave(lines: str, typed: Type, question_file: Path) -> None:
    shown = typed("play", "--world", WORLD, "--questions", str(question_file), lines=lines)
    assert "played" not in shown
    assert "accepted" not in shown


def test_the_same_seed_asks_the_same_questions(typed: Type) -> None:
    arguments = ("play", "--world", WORLD, "--seed", "3", "--episodes", "2")
    first = typed(*arguments, lines="a\nb\n")
    assert typed(*arguments, lines="a\nb\n") == first
    assert first.count("accepted") == 2
    assert typed("play", "--world", WORLD, "--seed", "4", "--episodes", "2", lines="a\nb\n") != first


def test_pictures_may_be_shown_as_files(typed: Type, question_file: Path) -> None:
    arguments = ("play", "--world", WORLD, "--questions", str(question_file), "--picture")
    assert re.search(r"\[picture, 8 x 4 pixels: \S+\.png\]\nWhich country\?", typed(*arguments, "path"))
    assert "[picture, 8 x 4 pixels]\nWhich country?" in typed(*arguments, "none")


def test_play_writes_a_page(typed: Type, question_file: Path, tmp_path: Path, picture: Image) -> None:
    page = tmp_path / "page.html"
    typed(
        "play", "--world", WORLD, "--questions", str(question_file), "--episodes", "1", "--html", str(page), lines="x\n"
    )
    assert picture.to_data_url() in page.read_text()


def test_published_questions_can_be_played(typed: Type, real_rows: Path) -> None:
    shown = typed("play", "--world", WORLD, "--questions", str(real_rows), lines="Spain\n" * 5)
    assert shown.count("accepted") == 5
    assert shown.endswith("5 played, mean reward 0.280\n")
    assert "Right · accepted: Spain, Kingdom of Spain, ESP, 🇪🇸, ES" in shown


@pytest.mark.parametrize("wanted", ["td", "again"])
def test_play_can_begin_with_one_question(wanted: str, typed: Type, question_file: Path) -> None:
    row = {"id": "again", "question": "And this?", "answers": ["Mali"], "image": "flag.png"}
    question_file.write_text(question_file.read_text() + json.dumps(row) + "\n")
    arguments = ("play", "--world", WORLD, "--questions", str(question_file), "--question-id")
    shown = typed(*arguments, wanted, lines="Mali\nMali\n")
    first, second = ("And this?", "Which country?") if wanted == "again" else ("Which country?", "And this?")
    assert 0 < shown.index(first) < shown.index(second)
    assert "expected a known question id, got 'nowhere'" in typed(*arguments, "nowhere", status=2)


def test_a_broken_picture_is_passed_over(typed: Type, question_file: Path, picture: Image) -> None:
    cut = picture.resized(64, 64).to_png()
    (question_file.parent / "cut.png").write_bytes(cut[: len(cut) // 2])
    row = {"id": "cut", "question": "Which?", "answers": ["Chad"], "image": "cut.png"}
    question_file.write_text(question_file.read_text() + json.dumps(row) + "\n")
    shown = typed("play", "--world", WORLD, "--questions", str(question_file), lines="Chad\n")
    assert "skipped cut: " in shown
    assert "cut.png: expected a readable picture" in shown
    assert shown.endswith("1 played, mean reward 1.000\n")


def test_the_demo_shows_messages_results_and_reward(typed: Type, tmp_path: Path) -> None:
    shown = typed("demo", "--world", WORLD, "--html", str(tmp_path / "demo.html"))
    for tag in ("<search><img></search>", "<information>", "<text_search>", "<answer>"):
        assert tag in shown
    assert "understood: image_search · reward of this turn: 0.000" in shown
    assert "understood: answer · reward of this turn: 0.910" in shown
    assert re.search(r"total +0\.910", shown)
    assert "&lt;answer&gt;" in (tmp_path / "demo.html").read_text()


def test_mistakes_are_explained(typed: Type, tmp_path: Path, question_file: Path) -> None:
    missing = tmp_path / "missing.parquet"
    assert typed("play", "--questions", str(missing), status=2) == (
        f"DataError: {missing}: expected a readable question file, got No such file or directory; check the path\n"
    )
    assert "ConfigError: world: expected 'atlas'" in typed("play", "--world", "mars", status=2)
    assert "ConfigError: --html: expected a file that can be written" in typed(
        "play", "--world", WORLD, "--questions", str(question_file), "--html", "/dev/full", status=2
    )


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--html", "no/such/folder/page.html", "expected a file in an existing folder, got no/such/folder/page.html"),
        ("--html", ".", "expected a file, got the folder .; name a file in it"),
        ("--html", "n" * 300, "File name too long; name another"),
        ("--episodes", "-1", "expected a number of at least 1, got -1"),
        ("--episodes", "0", "expected a number of at least 1, got 0"),
        ("--episodes", "many", "expected a number of at least 1, got many"),
    ],
)
def test_a_bad_option_is_refused_before_playing(
    option: str, value: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["play", f"{option}={value}"])
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("id", ["\x1b[2J\x07", "\ud800"])
def test_no_id_commands_the_terminal_or_stops_the_game(
    id: str, typed: Type, question_file: Path, picture: Image
) -> None:
    (question_file.parent / "cut.png").write_bytes(picture.resized(64, 64).to_png()[:100])
    row = {"id": id, "question": "Which?", "answers": ["Chad"], "image": "cut.png"}
    question_file.write_text(question_file.read_text() + json.dumps(row) + "\n")
    shown = typed("play", "--world", WORLD, "--questions", str(question_file), lines="Chad\n")
    assert f"skipped {plain(id)}: " in shown
    assert "\x1b" not in shown
    assert shown.endswith("1 played, mean reward 1.000\n")


def test_no_error_commands_the_terminal(typed: Type, tmp_path: Path) -> None:
    shown = typed("play", "--questions", f"{tmp_path}/\x1b[2J.jsonl", status=2)
    assert shown.startswith(f"DataError: {tmp_path}/␛[2J.jsonl: expected a readable question file")


class Keyboard(io.StringIO):
    """Lines, and then Ctrl-C."""

    def readline(self, size: int | None = -1, /) -> str:
        line = super().readline()
        if not line:
            raise KeyboardInterrupt
        return line


def test_an_interrupted_game_is_kept(
    question_file: Path, picture: Image, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"id": "again", "question": "And this?", "answers": ["Chad"], "image": "flag.png"}
    question_file.write_text(question_file.read_text() + json.dumps(row) + "\n")
    page = question_file.parent / "page.html"
    monkeypatch.setattr(sys, "stdin", Keyboard("Chad\n"))
    assert main(["play", "--world", WORLD, "--questions", str(question_file), "--html", str(page)]) == 130
    assert capsys.readouterr().out.endswith("1 played, mean reward 1.000\n")
    assert picture.to_data_url() in page.read_text()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("command", ["play", "demo"])
def test_any_terminal_will_do(
    command: str, encoding: str, question_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is typed in Latin-1: in UTF-8 its last byte means nothing."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Tchad\nM\xe9\n"), encoding=encoding))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    questions = ["--questions", str(question_file)] if command == "play" else []
    row = {"id": "again", "question": "Où? 東京", "answers": ["Mali"], "image": "flag.png"}
    question_file.write_text(question_file.read_text() + json.dumps(row) + "\n")
    assert main([command, "--world", WORLD, *questions]) == 0
    sys.stdout.flush()
    assert "accepted: " in written.getvalue().decode(encoding)


def test_the_module_can_be_run(root: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-m", "mmsearch_env", "--help"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "play" in ran.stdout
    assert "demo" in ran.stdout
    assert ran.stderr == ""

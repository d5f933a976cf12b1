"""What every test may use: small pictures, a few questions, and no network."""

from __future__ import annotations

import io
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before anything is imported that reads them. What somebody set on purpose (DS_ACCELERATOR=cuda) stays.
os.environ.update(HF_HUB_OFFLINE="1", MPLBACKEND="Agg", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import PIL.Image
import pytest

from mmsearch_env.images import Image
from mmsearch_env.questions import Question, QuestionSet

ROOT = Path(__file__).resolve().parent.parent
LOOPBACK = ("127.0.0.1", "::1", "localhost", "0.0.0.0")


_cache = tempfile.TemporaryDirectory(prefix="mmsearch-tests-")


def pytest_configure() -> None:
    """Indices are built in a folder of this run: no test sees, or changes, what the user has cached."""
    os.environ["MMSEARCH_CACHE_DIR"] = _cache.name


def pytest_unconfigure() -> None:
    _cache.cleanup()


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def real_rows(root: Path) -> Path:
    """Five published rows with photographs; tests that want them are skipped where the file is not at hand."""
    path = root.parent / "shared" / "data" / "mmsearch_r1_mini.parquet"
    if not path.exists():
        pytest.skip("the sample of published rows is not at hand")
    return path


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """A test that leaves this machine fails; servers and process groups on this machine are allowed."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in LOOPBACK and address[0] != socket.gethostname():
            raise RuntimeError(f"tests stay on this machine, but something connects to {address!r}")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", local_only)
        yield


@pytest.fixture
def picture() -> Image:
    """8 x 4 pixels: left half red, right half blue."""
    pixels = np.zeros((4, 8, 3), dtype=np.uint8)
    pixels[:, :4, 0] = 255
    pixels[:, 4:, 2] = 255
    return Image(pixels)


@pytest.fixture
def encoded() -> Callable[..., bytes]:
    """Encode a PIL picture: ``encoded(picture, "JPEG", quality=50)``."""

    def encode(picture: PIL.Image.Image, kind: str = "PNG", **options: Any) -> bytes:
        buffer = io.BytesIO()
        picture.save(buffer, format=kind, **options)
        return buffer.getvalue()

    return encode


@pytest.fixture
def question(picture: Image) -> Question:
    """Which country is it? Chad."""
    return Question("q1", "Which country has this flag?", picture, ("Chad", "Tchad"), "search_required", "flags")


@pytest.fixture
def questions(picture: Image, question: Question) -> QuestionSet:
    """Three questions about one picture."""
    capital = Question("q2", "What is its capital?", picture, ("N'Djamena",), "search_required", "flags")
    colour = Question("q3", "Which colour is on the left?", picture, ("red",), "search_free", "flags")
    return QuestionSet("three", [question, capital, colour])

"""What a reader must know of a corpus: one small file, replaced as a whole when a build ends."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mmsearch_env.errors import DataError
from mmsearch_env.tools.corpus.catalogue import FILE as CATALOGUE

FILE = "manifest.json"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a corpus holds and how it was made.

    Attributes:
        documents: in it.
        pictures: among them.
        encoder: spec of the image encoder; see :mod:`~mmsearch_env.tools.corpus.encoders`.
        encoder_identity: of the vectors; "" without pictures.
        stemmer: language by whose rules words lose their endings; "" for none.
        vectors: name of the folder of the vectors; "" without pictures.
        milvus: where the documents are kept, if not in this folder: ``uri`` and ``collection``.
        version: of this file.
    """

    documents: int
    pictures: int
    encoder: str
    encoder_identity: str
    stemmer: str
    vectors: str = ""
    milvus: Mapping[str, str] | None = None
    version: int = VERSION

    def write(self, folder: Path) -> None:
        """Replace the manifest of a corpus, whole or not at all."""
        half = folder / f".{FILE}"
        with half.open("w", encoding="utf-8") as file:
            json.dump(asdict(self), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        half.replace(folder / FILE)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a corpus. Raises DataError when there is none or it makes no sense."""
    path = folder / FILE
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if (folder / CATALOGUE).is_file():
            wanted = f"{folder}: expected a whole corpus, got one whose build was stopped"
            raise DataError(f"{wanted}; run the same index command again") from error
        wanted = f"{folder}: expected a corpus, got a folder without {FILE}"
        raise DataError(f"{wanted}; build one: python -m mmsearch_env index FILES --into {folder}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected a manifest, got {error}; run the index command again") from error
    names = {field.name for field in fields(Manifest)}
    if not isinstance(found, dict) or found.get("version") != VERSION or set(found) != names:
        raise DataError(f"{path}: expected a manifest of version {VERSION}, got another file; build the corpus anew")
    if Path(str(found["vectors"])).name != found["vectors"]:
        raise DataError(f"{path}: expected the name of a folder beside it, got {found['vectors']!r}; build it anew")
    return Manifest(**found)

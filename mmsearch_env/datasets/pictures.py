"""Pictures that stay on disk until somebody looks at them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmsearch_env.errors import ImageError
from mmsearch_env.images import Image, check_header, open_file


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A picture file, decoded each time it is loaded."""

    path: Path

    def load(self) -> Image:
        """The picture. Raises ImageError with the path."""
        return Image.from_file(self.path)

    def check(self) -> None:
        """Look at the header only. Raises ImageError when the file is missing, no picture, or too large."""
        try:
            with open_file(self.path) as file:
                check_header(file, name=str(self.path))
        except OSError as error:
            raise ImageError(
                f"{self.path}: expected a readable picture, got {error.strerror}; check the path"
            ) from error
        except ValueError as error:  # a zero byte or half a surrogate pair cannot stand in a path
            raise ImageError(f"{self.path}: expected the path of a picture, got {error}; check the path") from error

"""The only file that knows how transformers is bent where a piece of it is missing.

The video processors of the Qwen, InternVL and LLaVA families need torchvision; the picture side does not. Without
torchvision those families' processors would refuse to load although no video is ever used here, so a stand-in takes
the video processor's place. With torchvision nothing is changed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import transformers.processing_utils as processing
from transformers import AutoProcessor
from transformers.utils import is_torchvision_available
from transformers.video_processing_utils import BaseVideoProcessor, VideoProcessorMixin

from mmsearch_env.errors import PolicyError


class NoVideoProcessor(BaseVideoProcessor):  # type: ignore[misc]  # transformers is not annotated
    """Takes the place of a family's video processor; pictures only."""

    merge_size = 2
    model_input_names: ClassVar[list[str]] = ["pixel_values_videos"]

    def __init__(self) -> None:
        """No settings: nothing is ever processed by it."""

    @classmethod
    def from_pretrained(cls, *_: Any, **__: Any) -> NoVideoProcessor:
        """The stand-in has nothing to load."""
        return cls()

    def save_pretrained(self, *_: Any, **__: Any) -> list[str]:
        """The stand-in has nothing to save."""
        return []

    def to_dict(self) -> dict[str, Any]:
        """Nothing to record either."""
        return {}


def allow_missing_torchvision() -> None:
    """Let processors that own a video processor load without torchvision. Idempotent."""
    if is_torchvision_available():
        return
    processing.transformers_module.VideoProcessorMixin = VideoProcessorMixin
    processing._LazyAutoProcessorMapping._MAPPING_NAMES["video_processor"] = (__name__, "NoVideoProcessor")


def load_processor(path: str | Path) -> Any:
    """The processor of a checkpoint: a folder, or a hub id whose files are at hand.

    Raises:
        PolicyError: the files are missing or not a processor's.
    """
    allow_missing_torchvision()
    try:
        return AutoProcessor.from_pretrained(str(path), padding_side="left")
    except (OSError, ValueError, ImportError) as error:
        raise PolicyError(
            f"expected a processor in {os.fspath(path)!r}, got {type(error).__name__}: {error}; "
            "give a checkpoint folder or download the model first"
        ) from error

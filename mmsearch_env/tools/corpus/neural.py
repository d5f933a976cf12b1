"""Vectors by a vision model of the user's: SigLIP 2, CLIP, DINOv2, whatever transformers can load.

The only file of the environment that imports torch and transformers, and only when such an encoder is asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import huggingface_hub
import numpy as np
import torch
import transformers

from mmsearch_env.errors import ConfigError
from mmsearch_env.images import Image

Vectors = np.ndarray
_BATCH = 16
_HUB_TIMEOUT_S = 10.0


class NeuralEncoder:
    """An :class:`~mmsearch_env.tools.corpus.encoders.ImageEncoder` by a pretrained vision model."""

    def __init__(self, model: str) -> None:
        """Load a model.

        Args:
            model: a name on the Hugging Face hub or a folder.

        Raises:
            ConfigError: there is no such model, it cannot be fetched, or it does not take pictures.
        """
        _expect_reachable(model)
        try:
            self._processor = transformers.AutoImageProcessor.from_pretrained(model, backend="pil")
            self._model = transformers.AutoModel.from_pretrained(model, dtype=torch.float32).eval()
        except (OSError, ValueError, ImportError) as error:
            reason = " ".join(str(error).split())[:500]
            raise ConfigError(f"encoder 'neural:{model}': expected a vision model, got {reason}; check it") from error
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model.to(self._device)
        probe = self.encode([Image(np.full((32, 32, 3), 128, dtype=np.uint8))])
        self.size = int(probe.shape[1])
        state = hashlib.sha256(self._model.config.to_json_string().encode())
        for name, weights in sorted(self._model.state_dict().items()):
            state.update(f"{name}{weights.flatten()[:64].float().tolist()}".encode())
        self.identity = f"neural:{state.hexdigest()[:16]}"

    def encode(self, images: Sequence[Image]) -> Vectors:
        """(pictures, size) float32, each row of length 1."""
        rows = [self._batch(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
        return np.concatenate(rows) if rows else np.zeros((0, self.size), np.float32)

    @torch.inference_mode()
    def _batch(self, images: Sequence[Image]) -> Vectors:
        inputs = self._processor(images=[image.to_pil() for image in images], return_tensors="pt").to(self._device)
        given: Any = self._features(inputs["pixel_values"])
        vectors: Vectors = torch.nn.functional.normalize(given.float(), dim=-1).cpu().numpy()
        return vectors

    def _features(self, pixels: torch.Tensor) -> Any:
        """(pictures, size): the picture's place beside texts where the model has one, else pooled or first token."""
        if hasattr(self._model, "get_image_features"):
            found = self._model.get_image_features(pixel_values=pixels)
            return found if isinstance(found, torch.Tensor) else found.pooler_output
        found = self._model(pixel_values=pixels)
        pooled = getattr(found, "pooler_output", None)
        return found.last_hidden_state[:, 0] if pooled is None else pooled


def _expect_reachable(model: str) -> None:
    """Raises ConfigError for a model that is neither on this machine nor on the hub, without minutes of retries."""
    try:
        transformers.AutoConfig.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError):
        try:
            huggingface_hub.model_info(model, timeout=_HUB_TIMEOUT_S)
        except Exception as error:  # of which library its errors are changes with versions of the hub
            reason = " ".join(str(error).split())[:200]
            wanted = "expected a folder, or a model of the Hugging Face hub"
            raise ConfigError(f"encoder 'neural:{model}': {wanted}, got {reason}; check name and network") from error

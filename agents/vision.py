"""Vision features: each distinct picture goes through the frozen tower once per run.

What the tower returns for a picture is kept under the picture's digest, least recently used first out, and joined
again for any batch. The joined outputs are handed to the model's own ``mm_encoder_outputs``, so families whose tower
feeds several layers (deepstack) stay exact.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mmsearch_env.images import Image

_TOWER_BATCH = 64


@dataclass(frozen=True, slots=True)
class PixelInputs:
    """One picture as its image processor made it: forward keywords to tensors, first axis = the picture's pieces."""

    tensors: dict[str, torch.Tensor]


class ImagePreparer:
    """Runs the image processor; keeps its output per picture."""

    def __init__(self, processor: Any, *, capacity: int = 4096) -> None:
        """Args: capacity: how many pictures are kept."""
        self._processor = processor.image_processor
        self._kept: OrderedDict[str, PixelInputs] = OrderedDict()
        self._capacity = capacity

    def one(self, image: Image) -> PixelInputs:
        """The processor's tensors for one picture."""
        if image.digest not in self._kept:
            out = self._processor(images=[image.to_pil()], return_tensors="pt")
            self._kept[image.digest] = PixelInputs({k: v for k, v in out.items() if torch.is_tensor(v)})
            if len(self._kept) > self._capacity:
                self._kept.popitem(last=False)
        return self._kept[image.digest]

    def many(self, images: Sequence[Image]) -> dict[str, torch.Tensor]:
        """The forward keywords for several pictures in order."""
        prepared = [self.one(image).tensors for image in images]
        return {key: torch.cat([tensors[key] for tensors in prepared]) for key in prepared[0]} if prepared else {}


class VisionCache:
    """Features of pictures under a frozen tower."""

    def __init__(self, model: Any, preparer: ImagePreparer, *, capacity: int = 20_000) -> None:
        """Args: model: a transformers image-text-to-text model; capacity: how many pictures are kept."""
        self._model = model
        self._preparer = preparer
        self._kept: OrderedDict[str, Any] = OrderedDict()
        self._capacity = capacity
        self.tower_calls = 0
        """Pictures that went through the tower."""

    def features(self, images: Sequence[Image]) -> dict[str, Any]:
        """Forward keywords that carry the features of ``images`` in order; empty without pictures."""
        if not images:
            return {}
        missing = list({i.digest: i for i in images if i.digest not in self._kept}.values())
        for start in range(0, len(missing), _TOWER_BATCH):
            self._encode(missing[start : start + _TOWER_BATCH])
        for image in images:
            self._kept.move_to_end(image.digest)
        joined = _join([self._kept[image.digest] for image in images])
        while len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
        return {"mm_encoder_outputs": {"image": joined}}

    @torch.no_grad()
    def _encode(self, images: Sequence[Image]) -> None:
        device = next(self._model.parameters()).device
        inputs = {key: value.to(device) for key, value in self._preparer.many(images).items()}
        output = self._model.get_image_features(**inputs, return_dict=True)
        self.tower_calls += len(images)
        for position, image in enumerate(images):
            self._kept[image.digest] = _pick(output, position)


def _pick(output: Any, position: int) -> Any:
    """The part of a tower output that belongs to one picture."""
    one = type(output)()
    pooled = output.pooler_output  # a list of tensors, or one tensor where every picture has as many tokens
    one["pooler_output"] = pooled[position : position + 1] if torch.is_tensor(pooled) else [pooled[position]]
    deep = getattr(output, "deepstack_features", None)
    if deep is not None:
        one["deepstack_features"] = [[layer[position]] for layer in deep]
    return one


def _join(outputs: Sequence[Any]) -> Any:
    """Several pictures' outputs as one, in the tower's own form."""
    joined = type(outputs[0])()
    pooled = [output.pooler_output for output in outputs]
    joined["pooler_output"] = torch.cat(pooled) if torch.is_tensor(pooled[0]) else [f for one in pooled for f in one]
    deep = getattr(outputs[0], "deepstack_features", None)
    if deep is not None:
        joined["deepstack_features"] = [
            [feature for output in outputs for feature in output.deepstack_features[layer]]
            for layer in range(len(deep))
        ]
    return joined

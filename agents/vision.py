"""Vision features: each distinct picture goes through the frozen tower once per run.

What the tower returns for a picture is kept under the picture's digest, least recently used first out, and joined
again for any batch. The joined outputs are handed to the model's own ``mm_encoder_outputs``, so families whose tower
feeds several layers (deepstack) stay exact. Two threads may ask at once, one that samples and one that trains.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from agents.renderer import ChatRenderer
from mmsearch_env.errors import PolicyError
from mmsearch_env.images import Image

_TOWER_BATCH = 64
_GIB = 1 << 30

T = TypeVar("T")


class ByteCache(Generic[T]):
    """Keeps what was used last, up to a number of bytes; the newest entry is kept whatever its size."""

    def __init__(self, cache_bytes: int) -> None:
        self._room = cache_bytes
        self._used = 0
        self._kept: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def get(self, key: Hashable) -> T:
        """The entry, now the most recently used. Raises KeyError."""
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def put(self, key: Hashable, value: T, size: int) -> list[tuple[Hashable, T, int]]:
        """Keep ``value`` of ``size`` bytes and let the least recently used go; those that went, with their sizes."""
        self._used += size - (self._kept.pop(key)[1] if key in self._kept else 0)
        self._kept[key] = (value, size)
        gone = []
        while self._used > self._room and len(self._kept) > 1:
            old, (let_go, freed) = self._kept.popitem(last=False)
            self._used -= freed
            gone.append((old, let_go, freed))
        return gone

    def drop(self, key: Hashable) -> None:
        """Let an entry go, if it is there."""
        if key in self._kept:
            self._used -= self._kept.pop(key)[1]


class ImagePreparer:
    """Has pictures processed as they are in a prompt; keeps what comes of each."""

    def __init__(self, renderer: ChatRenderer, *, cache_bytes: int = _GIB // 2) -> None:
        """Args: renderer: of the model's processor; cache_bytes: how much of what it makes is kept."""
        self._renderer = renderer
        self._names = frozenset(renderer.processor.image_processor.model_input_names)
        self._kept: ByteCache[dict[str, Tensor]] = ByteCache(cache_bytes)
        self._grids: dict[tuple[int, int], Tensor] = {}
        self._lock = threading.RLock()

    def one(self, image: Image) -> dict[str, Tensor]:
        """The processor's tensors for one picture: forward keywords, first axis = the picture's pieces."""
        with self._lock:
            if image.digest not in self._kept:
                out = self._renderer.in_slot(image)
                tensors = {name: out[name] for name in self._names & out.keys()}
                self._kept.put(image.digest, tensors, sum(value.nbytes for value in tensors.values()))
                if "image_grid_thw" in tensors:
                    self._grids[image.width, image.height] = tensors["image_grid_thw"]
            return self._kept.get(image.digest)

    def many(self, images: Sequence[Image]) -> dict[str, Tensor]:
        """The forward keywords for several pictures in order."""
        prepared = [self.one(image) for image in images]
        return {name: torch.cat([tensors[name] for tensors in prepared]) for name in prepared[0]} if prepared else {}

    def grids(self, images: Sequence[Image]) -> Tensor:
        """(pictures, 3) how many patches each picture has in time, height and width; its size alone decides."""
        for image in images:
            if (image.width, image.height) not in self._grids:
                self.one(image)
        return torch.cat([self._grids[image.width, image.height] for image in images])


class VisionCache:
    """Features of pictures under a frozen tower, kept where the model is; what no longer fits there, in host memory."""

    def __init__(
        self, model: Any, preparer: ImagePreparer, *, cache_bytes: int = 2 * _GIB, host_bytes: int = 8 * _GIB
    ) -> None:
        """
        Args:
            model: a transformers image-text-to-text model.
            preparer: of its processor.
            cache_bytes: how much is kept on the model's device.
            host_bytes: how much of what had to go from there is kept in host memory; for a model that is there itself
                it is room all the same.
        """
        self._model = model
        self._preparer = preparer
        self._kept: ByteCache[Any] = ByteCache(cache_bytes)
        self._host: ByteCache[Any] = ByteCache(host_bytes)
        self._lock = threading.Lock()
        self.tower_calls = 0
        """Pictures that went through the tower."""

    def features(self, images: Sequence[Image]) -> dict[str, Any]:
        """Forward keywords that carry the features of ``images`` in order; empty without pictures."""
        if not images:
            return {}
        with self._lock:
            found = {
                i.digest: self._known(i.digest) for i in images if i.digest in self._kept or i.digest in self._host
            }
            missing = list({i.digest: i for i in images if i.digest not in found}.values())
            for start in range(0, len(missing), _TOWER_BATCH):
                part = missing[start : start + _TOWER_BATCH]
                found |= dict(zip((image.digest for image in part), self._encode(part), strict=True))
        return {"mm_encoder_outputs": {"image": _join([found[image.digest] for image in images])}}

    @torch.no_grad()
    def _encode(self, images: Sequence[Image]) -> Iterator[Any]:
        device = self._device
        trained = next(
            (name for name, one in self._model.named_parameters() if one.requires_grad and is_vision(name)), ""
        )
        if trained:
            raise PolicyError(
                f"expected a frozen vision tower to keep features of, got one whose {trained} is trained; give the "
                "model pixels, or freeze it"
            )
        inputs = {name: value.to(device) for name, value in self._preparer.many(images).items()}
        output = self._model.get_image_features(**inputs, return_dict=True)
        self.tower_calls += len(images)
        pieces = [len(self._preparer.one(image)["pixel_values"]) for image in images]
        for image, one in zip(images, _parted(output, pieces), strict=True):
            self._keep(image.digest, one, sum(feature.nbytes for feature in _tensors(one)))
            yield one

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self._model.parameters()).device
        return device

    def _known(self, digest: str) -> Any:
        """A picture's features, where the model is."""
        if digest in self._kept:
            return self._kept.get(digest)
        one = _moved(self._host.get(digest), self._device)
        self._host.drop(digest)
        self._keep(digest, one, sum(feature.nbytes for feature in _tensors(one)))
        return one

    def _keep(self, digest: str, one: Any, size: int) -> None:
        for old, let_go, freed in self._kept.put(digest, one, size):
            self._host.put(old, _moved(let_go, torch.device("cpu")), freed)


def _parted(output: Any, pieces: Sequence[int]) -> Iterator[Any]:
    """The parts of a tower output that belong to each picture, in memory of their own.

    Args: pieces: into how many each was cut; that decides where the tower says nothing of pictures.
    """
    pooled = output.pooler_output  # a list of tensors, or one tensor where every piece has as many tokens
    whole = torch.is_tensor(pooled)
    if whole and len(pooled) != sum(pieces):
        raise PolicyError(
            f"expected a tower that gives features of the {sum(pieces)} pieces of {len(pieces)} pictures, got "
            f"{len(pooled)}; take a family that does, such as Qwen2.5-VL"
        )
    parts = pooled.split(list(pieces)) if whole else pooled
    deep = getattr(output, "deepstack_features", None)
    for position, part in enumerate(parts):
        one = type(output)()
        one["pooler_output"] = part.clone() if whole else [part.clone()]
        if deep is not None:
            one["deepstack_features"] = [[layer[position].clone()] for layer in deep]
        yield one


def _moved(one: Any, device: torch.device) -> Any:
    """One picture's features on a device."""
    moved = type(one)()
    pooled = one.pooler_output
    moved["pooler_output"] = pooled.to(device) if torch.is_tensor(pooled) else [part.to(device) for part in pooled]
    deep = getattr(one, "deepstack_features", None)
    if deep is not None:
        moved["deepstack_features"] = [[part.to(device) for part in layer] for layer in deep]
    return moved


def is_vision(parameter_name: str) -> bool:
    """Whether a parameter belongs to the vision tower or to what joins it to the language model."""
    return any(word in parameter_name for word in ("visual", "vision", "multi_modal_projector", "connector"))


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


def _tensors(output: Any) -> Iterator[Tensor]:
    """The tensors of one picture's output."""
    yield from [output.pooler_output] if torch.is_tensor(output.pooler_output) else output.pooler_output
    for layer in getattr(output, "deepstack_features", None) or []:
        yield from layer

"""What is kept of pictures: bounded in bytes, and the same as what is computed afresh."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, noise, pixels

from agents.renderer import ChatRenderer
from agents.vision import ByteCache, ImagePreparer, VisionCache
from mmsearch_env.errors import PolicyError


def test_the_least_recently_used_goes_first() -> None:
    cache: ByteCache[str] = ByteCache(10)
    cache.put("a", "first", 4)
    cache.put("b", "second", 4)
    assert cache.get("a") == "first"
    cache.put("c", "third", 4)
    assert "b" not in cache
    assert "a" in cache and "c" in cache


def test_a_replaced_entry_counts_once() -> None:
    cache: ByteCache[str] = ByteCache(10)
    for _ in range(5):
        cache.put("a", "x", 6)
    cache.put("b", "y", 4)
    assert "a" in cache and "b" in cache


def test_one_entry_larger_than_the_room_is_kept_alone() -> None:
    cache: ByteCache[str] = ByteCache(1)
    cache.put("a", "x", 100)
    assert cache.get("a") == "x"
    cache.put("b", "y", 100)
    assert "a" not in cache


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_kept_features_are_the_towers_own(family: str) -> None:
    """However the pictures are batched, and however little is kept."""
    model, processor = FAMILIES[family]()
    model.requires_grad_(False)
    renderer = ChatRenderer(processor)
    pictures = [noise(1, 84, 56), noise(2, 168, 112), noise(1, 84, 56), noise(3, 112, 112)]
    for cache_bytes, host_bytes in ((1 << 30, 1), (1, 1 << 30), (1, 1)):
        preparer = ImagePreparer(renderer, cache_bytes=cache_bytes)
        cache = VisionCache(model, preparer, cache_bytes=cache_bytes, host_bytes=host_bytes)
        for _ in range(2):
            kept = cache.features(pictures)["mm_encoder_outputs"]["image"]
            alone = [
                feature
                for picture in pictures
                for feature in model.get_image_features(**pixels(processor, [picture]), return_dict=True).pooler_output
            ]
            for feature, wanted in zip(kept.pooler_output, alone, strict=True):
                torch.testing.assert_close(feature, wanted, atol=1e-5, rtol=1e-5)
        # with no room anywhere the last two are kept alone, one here and one there
        assert cache.tower_calls == (3 if cache_bytes * host_bytes > 1 else 4)


def test_features_of_a_tower_that_is_trained_are_refused() -> None:
    model, processor = FAMILIES["qwen2_5_vl"]()
    model.requires_grad_(False)
    trained = next(name for name, _ in model.named_parameters() if "visual" in name)
    dict(model.named_parameters())[trained].requires_grad_(True)
    with pytest.raises(
        PolicyError, match=f"expected a frozen vision tower to keep features of, got one whose {trained}"
    ):
        VisionCache(model, ImagePreparer(ChatRenderer(processor))).features([noise(1, 84, 56)])


def test_grids_need_no_pixels_twice() -> None:
    _, processor = FAMILIES["qwen2_5_vl"]()
    preparer = ImagePreparer(ChatRenderer(processor), cache_bytes=1)
    pictures = [noise(1, 84, 56), noise(2, 84, 56), noise(3, 168, 112)]
    wanted = processor.image_processor([p.to_pil() for p in pictures], return_tensors="pt")["image_grid_thw"]
    assert torch.equal(preparer.grids(pictures), wanted)

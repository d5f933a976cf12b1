"""Stage one: the vision tower learns to tell flags apart.

A linear head on the tower's mean output names the flag of a disturbed picture; the head is thrown away afterwards. Most
classes are invented flags, so that the tower learns to see flags rather than to know some. Then the tower is frozen.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agents.renderer import ChatRenderer
from agents.vision import ImagePreparer
from mmsearch_env.images import Image
from mmsearch_env.worlds import Entity
from training.engine import AdamSettings, Engine, Place
from training.sft import SupervisedPlan
from training.stages import Stage
from training.tiny_lmm.lessons import PictureAlbum


class FlagClassifier(nn.Module):
    """The model's vision tower with a linear head over its mean output."""

    def __init__(self, model: Any, classes: int) -> None:
        """Args: model: a transformers model whose tower is ``model.model.visual``; classes: flags to tell apart."""
        super().__init__()
        self.tower: nn.Module = model.model.visual
        self.norm = nn.LayerNorm(model.config.text_config.hidden_size)
        self.head = nn.Linear(model.config.text_config.hidden_size, classes)

    def forward(self, pixels: Tensor, grids: Tensor, tokens: Sequence[int]) -> Tensor:
        """Logits (pictures, classes); ``tokens`` says how many tokens the tower makes of each picture."""
        seen = self.tower(pixels, grid_thw=grids).pooler_output
        means = torch.stack([part.mean(dim=0) for part in seen.split(list(tokens))])
        logits: Tensor = self.head(self.norm(means))
        return logits


@dataclass(frozen=True, slots=True)
class SeeingPlan:
    """How long the tower is trained.

    Attributes:
        schedule: updates and learning rate.
        pictures: pictures of one update and process.
        invented: how many invented flags are among the classes.
    """

    schedule: SupervisedPlan
    pictures: int = 48
    invented: int = 320


def learn_to_see(
    model: Any,
    processor: Any,
    entities: Sequence[Entity],
    plan: SeeingPlan,
    place: Place,
    *,
    seed: int,
    pictures_each: int,
    stage: Stage,
    on_update: Callable[[int, float, float], None],
) -> PictureAlbum:
    """Train the tower to tell ``entities`` apart, and return the pictures used.

    Args:
        model: whose tower is trained, in place.
        processor: its processor.
        entities: one class each.
        plan: how long.
        place: where this process stands.
        seed: of pictures and order.
        pictures_each: disturbed pictures of each entity.
        stage: where it is kept, so that a killed run goes on.
        on_update: told the update's number, its loss and its share of right names.
    """
    torch.manual_seed(seed)
    classifier = FlagClassifier(model, len(entities))
    done = stage.weights_into(classifier)
    album = PictureAlbum(entities, seed=seed + place.rank, each=pictures_each)
    if done >= plan.schedule.updates:
        return album
    preparer = ImagePreparer(ChatRenderer(processor))
    with closing(Engine(classifier, place=place, adam=AdamSettings(beta2=0.98, weight_decay=0.05))) as engine:
        stage.optimiser_into(engine)
        for update in range(done, plan.schedule.updates):
            rng = random.Random(f"seeing/{seed}/{place.rank}/{update}")
            labels = [rng.randrange(len(entities)) for _ in range(plan.pictures)]
            inputs = _inputs(preparer, processor, [album.draw(entities[label], rng) for label in labels], place)
            loss, right = _update(engine, inputs, labels, plan.schedule.rate(update))
            stage.keep(classifier, engine, done=update + 1, of=plan.schedule.updates)
            on_update(update, loss, right)
    return album


def _update(
    engine: Engine, inputs: tuple[Tensor, Tensor, list[int]], labels: Sequence[int], rate: float
) -> tuple[float, float]:
    """One optimiser step; this rank's loss and share of right names."""
    logits = engine.forward(*inputs)
    wanted = torch.tensor(labels, device=logits.device)
    loss = nn.functional.cross_entropy(logits, wanted, label_smoothing=0.05)
    engine.backward(loss / engine.place.world_size)
    engine.step(rate)
    return float(loss.detach()), float((logits.argmax(-1) == wanted).float().mean())


def _inputs(
    preparer: ImagePreparer, processor: Any, images: Sequence[Image], place: Place
) -> tuple[Tensor, Tensor, list[int]]:
    inputs = {name: value.to(place.device) for name, value in preparer.many(images).items()}
    grids = inputs["image_grid_thw"]
    merged = processor.image_processor.merge_size**2
    return inputs["pixel_values"], grids, [int(grid.prod()) // merged for grid in grids]

"""The recipe of the tiny LMM, from an empty model to a stored checkpoint.

1. A tokeniser is trained on invented pages and on the known side of the atlas.
2. *Seeing*: the vision tower learns to tell flags apart, most of them strange ones; then it is frozen, so that each
   picture is encoded once.
3. *Exercises*: copying, and reading single sentences about invented countries.
4. *Learning*: the protocol, searching, reading and copying by demonstrations in an invented world; some names and
   facts by plain questions.
5. *Knowing*: the same with many more plain questions, since a name or a fact takes a hundred lessons.
6. *Settling*: everything in balance, with names that cannot be guessed and a falling learning rate.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import random
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from agents.lmm import LMMPolicy
from agents.trajectory import Trajectory
from mmsearch_env.worlds import Entity, World, load_world
from training.checkpoint import write_folder
from training.engine import AdamSettings, Place
from training.sft import SupervisedPlan, fit
from training.stages import Stage
from training.tiny_lmm.architecture import TinySize, tiny_model, tiny_processor
from training.tiny_lmm.demonstrations import Teacher
from training.tiny_lmm.knowledge import deal_knowledge
from training.tiny_lmm.lessons import Lesson, PictureAlbum, Pupil, mixed, pupil
from training.tiny_lmm.mixtures import Mixtures, probes
from training.tiny_lmm.recording import record
from training.tiny_lmm.seeing import SeeingPlan, learn_to_see
from training.tiny_lmm.strange_flags import FIRST, recoloured
from training.tiny_lmm.strange_names import StrangeNames
from training.tiny_lmm.vocabulary import tokeniser_of

Report = Callable[[str, dict[str, float]], None]
_REPORT_EVERY = 100


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything the checkpoint depends on.

    Attributes:
        seed: of weights, lessons and the deal of knowledge.
        size: of the model.
        invented: the world in which searching is taught.
        familiar: how many invented countries are taught like known ones.
        pictures_each: disturbed pictures of each known flag, for each process.
        strangers_each: the same of each strange one.
        recoloured_each: strange flags made of each known one by painting it in other colours.
        demonstrations: episodes recorded by each process.
        exercise_rows: trajectories of one update and process in the exercises.
        rows: the same in the stages after them.
        seeing: the first stage.
        exercises: the second.
        learning: the third.
        knowing: the fourth.
        settling: the fifth.
    """

    seed: int = 1
    size: TinySize = TinySize()
    invented: str = "synthetic:seed=7,entities=3000,per_pair=1"
    familiar: int = 48
    pictures_each: int = 24
    strangers_each: int = 3
    recoloured_each: int = 6
    demonstrations: int = 7000
    exercise_rows: int = 60
    rows: int = 70
    seeing: SeeingPlan = SeeingPlan(SupervisedPlan(updates=450, learning_rate=2e-3, warmup=50, decay_share=0.5))
    exercises: SupervisedPlan = SupervisedPlan(
        updates=700, learning_rate=3e-3, warmup=50, decay_share=0.0, token_budget=2048, observed_weight=0.4
    )
    learning: SupervisedPlan = SupervisedPlan(
        updates=600, learning_rate=3e-3, warmup=50, decay_share=0.0, token_budget=2048, observed_weight=0.4
    )
    knowing: SupervisedPlan = SupervisedPlan(
        updates=400, learning_rate=3e-3, warmup=50, decay_share=0.0, token_budget=2048, observed_weight=0.4
    )
    settling: SupervisedPlan = SupervisedPlan(
        updates=850, learning_rate=3e-3, warmup=50, decay_share=0.7, token_budget=2048, observed_weight=0.4
    )

    def scaled(self, factor: float) -> Recipe:
        """With that many times the updates, for trials."""

        def shorter(plan: SupervisedPlan) -> SupervisedPlan:
            return replace(plan, updates=max(1, round(plan.updates * factor)))

        return replace(
            self,
            seeing=replace(self.seeing, schedule=shorter(self.seeing.schedule)),
            exercises=shorter(self.exercises),
            learning=shorter(self.learning),
            knowing=shorter(self.knowing),
            settling=shorter(self.settling),
        )

    def made_of(self, stage: str, processes: int, lessons: str) -> str:
        """What a stage depends on, as JSON: everything but the stages after it, and a digest of its lessons."""
        later = _STAGES[_STAGES.index(stage) + 1 :]
        kept = {name: value for name, value in asdict(self).items() if name not in later}
        return json.dumps(kept | {"processes": processes, "lessons": lessons}, sort_keys=True)


_STAGES = ("seeing", "exercises", "learning", "knowing", "settling")


def make_tiny_lmm(out: Path, place: Place, recipe: Recipe, *, report: Report) -> None:
    """Run the recipe on every rank; rank 0 writes the checkpoint to ``out``.

    Each stage is kept in a folder beside ``out`` until the checkpoint is written, so a killed run goes on.
    """
    stages = _Stages(out.with_name(f"{out.name}.stages"), recipe, place.world_size)
    atlas, invented = load_world("atlas"), load_world(recipe.invented)
    pictured = [entity for entity in invented.entities if entity.drawing is not None and entity.asked_about]
    friends, strangers = pictured[: recipe.familiar], pictured[recipe.familiar :]
    taught = pupil(atlas, deal_knowledge(atlas, seed=recipe.seed), friends)
    strange = recoloured(taught.flags, random.Random(recipe.seed), each=recipe.recoloured_each)
    policy = _blank_policy(recipe, taught, invented)
    stream = recipe.seed * 1000 + place.rank
    recorded = record(
        recipe.invented,
        policy.renderer,
        Teacher(invented, frozenset(entity.id for entity in friends)),
        count=recipe.demonstrations,
        seed=recipe.seed,
        stream=stream,
        on_recorded=lambda lessons: report("recording", {"lessons": lessons}),
    )
    first = [entity for entity in strange if entity.id.endswith(FIRST)]
    classes = [*taught.flags, *strangers[: recipe.seeing.invented], *first]
    album = _see(policy, recipe, classes, place, stages, report)
    for name, parameter in policy.model.named_parameters():
        parameter.requires_grad_("visual" not in name)
    names = StrangeNames(
        map(policy.renderer.tokenizer.decode, range(len(policy.renderer.tokenizer))),
        avoided=(word for entity in atlas.entities for word in (entity.name, *entity.name.split())),
    )
    unknown = PictureAlbum([*strangers, *strange], seed=stream, each=recipe.strangers_each)
    lessons = Mixtures(policy.renderer, taught, album, unknown, invented, recorded.lessons, names)
    run = _Run(policy, place, probes(lessons, recorded.reserved), stages, stream, report)
    run.train(recipe.exercises, lessons.exercises(), "exercises", rows=recipe.exercise_rows)
    run.train(recipe.learning, lessons.mostly_reading(), "learning", rows=recipe.rows)
    run.train(recipe.knowing, lessons.mostly_knowledge(), "knowing", rows=recipe.rows)
    run.train(recipe.settling, lessons.balanced(), "settling", rows=recipe.rows)
    _save(policy, recipe, out, place)
    if place.rank == 0:
        shutil.rmtree(stages.folder)


@dataclass(frozen=True, slots=True)
class _Stages:
    """Where the stages of a recipe are kept."""

    folder: Path
    recipe: Recipe
    processes: int

    def named(self, name: str, lessons: str) -> Stage:
        """One of them; ``lessons`` is a digest of what it learns from."""
        return Stage(self.folder / name, made_of=self.recipe.made_of(name, self.processes, lessons))


def _see(
    policy: LMMPolicy, recipe: Recipe, classes: Sequence[Entity], place: Place, stages: _Stages, report: Report
) -> PictureAlbum:
    """Train the tower to tell the flags apart; the album holds their pictures."""
    seen: list[tuple[float, float]] = []

    def on_update(update: int, loss: float, right: float) -> None:
        seen.append((loss, right))
        if len(seen) == _REPORT_EVERY:
            loss, right = (round(sum(values) / len(seen), 4) for values in zip(*seen, strict=True))
            report("seeing", {"update": update + 1, "loss": loss, "right": right})
            seen.clear()

    return learn_to_see(
        policy.model,
        policy.renderer.processor,
        classes,
        recipe.seeing,
        place,
        seed=recipe.seed,
        pictures_each=recipe.pictures_each,
        stage=stages.named("seeing", _digest(entity.drawing.key for entity in classes if entity.drawing)),
        on_update=on_update,
    )


def _blank_policy(recipe: Recipe, taught: Pupil, invented: World) -> LMMPolicy:
    """Random weights and a tokeniser of the texts that may be seen."""
    tokenizer = tokeniser_of(taught, invented, recipe.size)
    model = tiny_model(tokenizer, recipe.size, seed=recipe.seed)
    return LMMPolicy(model, tiny_processor(tokenizer, recipe.size))


@dataclass(frozen=True, slots=True)
class _Run:
    """The stages of language with their reports."""

    policy: LMMPolicy
    place: Place
    probes: Mapping[str, Sequence[Trajectory]]
    stages: _Stages
    stream: int
    report: Report

    def train(self, plan: SupervisedPlan, lessons: Sequence[tuple[Lesson, float]], stage: str, *, rows: int) -> None:
        """One stage; every ``_REPORT_EVERY`` updates the loss and what the probes say."""
        losses: list[float] = []

        def on_update(update: int, loss: float) -> None:
            losses.append(loss)
            if len(losses) < _REPORT_EVERY:
                return
            values = {"update": update + 1, "of": plan.updates, "loss": round(sum(losses) / len(losses), 4)}
            losses.clear()
            if self.place.rank == 0:
                values |= {name: likely_share(self.policy, held) for name, held in self.probes.items()}
            self.report(stage, values)

        # The probes are worded as the lessons are, and every process has the same.
        worded = (played.token_ids for held in self.probes.values() for played in held)
        digest = _digest((*(weight for _, weight in lessons), rows, *worded))
        draw = mixed(lessons, seed=f"{stage}/{self.stream}", rows=rows)
        adam = AdamSettings(beta2=0.98, weight_decay=0.05)
        fit(self.policy, self.place, draw, plan, adam=adam, stage=self.stages.named(stage, digest), on_update=on_update)


def _digest(parts: Iterable[object]) -> str:
    return hashlib.sha256("/".join(map(repr, parts)).encode()).hexdigest()[:16]


@torch.no_grad()
def likely_share(policy: LMMPolicy, held_out: Sequence[Trajectory]) -> float:
    """Share of trajectories whose last completion is the likely one, each of its tokens having a probability > 1/2."""
    good = 0
    for start in range(0, len(held_out), 16):
        part = held_out[start : start + 16]
        inputs = policy.whole_inputs(part)
        mask = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
        for row, trajectory in enumerate(part):
            size, said = len(trajectory.token_ids), len(trajectory.turns[-1].completion.token_ids)
            mask[row, size - said : size] = True
        logprobs = policy.scorer(inputs, mask).logprobs
        good += int((logprobs.masked_fill(~mask, 0.0).amin(dim=1) > math.log(0.5)).sum())
    return round(good / len(held_out), 3)


def _save(policy: LMMPolicy, recipe: Recipe, folder: Path, place: Place) -> None:
    """Weights in bfloat16, processor, tokeniser and recipe; what transformers stores lies as transformers stores it."""

    def save(part: Path) -> None:
        copy.deepcopy(policy.model).to(torch.bfloat16).save_pretrained(part, safe_serialization=True)
        policy.renderer.processor.save_pretrained(part)
        text = json.dumps(asdict(recipe) | {"processes": place.world_size}, indent=1)
        (part / "recipe.json").write_text(text + "\n", encoding="utf-8")

    if place.rank == 0:
        write_folder(folder, save)

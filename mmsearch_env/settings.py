"""Every setting of the environment, with its meaning, unit and default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from mmsearch_env.episode import Rules
from mmsearch_env.errors import ConfigError
from mmsearch_env.rewards import PenaltyMode, RewardForm, RewardRules

HISTORIES = ("turn", "episode")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvSettings:
    """The JSON-able keyword arguments of :class:`~mmsearch_env.env.MMSearchEnv`.

    Attributes:
        world: which embedded world: ``"atlas"``, ``"synthetic:seed=0,entities=200"``, ...
        split: which of the world's questions: ``"train"``, ``"validation"`` or ``"test"``.
        protocol: how text means an action: ``"mmsearch_r1"`` (the paper's tags) or ``"tool_call"`` (JSON calls).
        prompts: the wording: ``"standard"``, ``"brief"`` (of the paper's tags) or a folder of text files.
        max_rounds: completions the player has, the answer included.
        max_image_searches: successful image searches allowed.
        max_text_searches: successful text searches allowed.
        crop: whether an image search may look for a part of the picture.
        max_page_visits: pages found by a search that may be read; 0, as in the paper, for none.
        max_images: pictures that a question may have; those with more are passed over.
        reward: ``"multiplicative"`` or ``"subtractive"``; the equations stand in :mod:`mmsearch_env.rewards`.
        metric: ``"exact_match"``, ``"sub_match"`` or ``"f1"``.
        format_weight: share of the reward that is for the form, in [0, 1].
        search_penalty: price of searching, in [-1, 1]; below 0 it is a bonus.
        penalty_mode: ``"once"``, ``"per_call"`` or ``"none"``.
        visit_penalty: price of reading a page, in [0, 1].
        image_penalty: price of an image search; None for ``search_penalty``.
        crop_penalty: price of an image search with a part of the picture; None for that of any image search.
        image_top_k: hits asked for per image search.
        text_top_k: hits asked for per text search.
        tool_timeout_s: seconds after which a search counts as failed.
        history: whether an observation holds the new parts of the ``"turn"`` or the whole ``"episode"``.
    """

    world: str = "atlas"
    split: str = "train"
    protocol: str = "mmsearch_r1"
    prompts: str = "standard"
    max_rounds: int = 3
    max_image_searches: int = 1
    max_text_searches: int = 2
    crop: bool = False
    max_page_visits: int = 0
    max_images: int = 1
    reward: str = RewardForm.MULTIPLICATIVE.value
    metric: str = "exact_match"
    format_weight: float = 0.1
    search_penalty: float = 0.1
    penalty_mode: str = PenaltyMode.ONCE.value
    visit_penalty: float = 0.0
    image_penalty: float | None = None
    crop_penalty: float | None = None
    image_top_k: int = 5
    text_top_k: int = 5
    tool_timeout_s: float = 30.0
    history: str = "turn"

    def __post_init__(self) -> None:
        for name in ("world", "split", "protocol", "prompts"):
            if not isinstance(value := getattr(self, name), str):
                raise ConfigError(f"{name}: expected a text, got {value!r}; mend the setting")
        for name in ("image_top_k", "text_top_k"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}: expected a whole number of at least 1, got {value!r}; mend the setting")
        seconds = self.tool_timeout_s
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
            raise ConfigError(f"tool_timeout_s: expected a number above 0, got {seconds!r}; mend the setting")
        if self.history not in HISTORIES:
            raise ConfigError(f"history: expected one of {', '.join(HISTORIES)}, got {self.history!r}")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> EnvSettings:
        """Settings by name. Raises ConfigError for a name that is not known."""
        known = [field.name for field in fields(cls)]
        for name in settings:
            if name not in known:
                names = ", ".join(("questions", "tools", "render_mode", *known))
                raise ConfigError(f"{name}: expected one of {names}; mend the setting's name")
        return cls(**settings)

    @property
    def rules(self) -> Rules:
        """The limits of an episode. Raises ConfigError."""
        return Rules(
            self.max_rounds,
            self.max_image_searches,
            self.max_text_searches,
            self.crop,
            self.max_page_visits,
            self.max_images,
        )

    @property
    def reward_rules(self) -> RewardRules:
        """How an episode is rewarded. Raises ConfigError."""
        return RewardRules(
            self.reward,
            self.metric,
            self.format_weight,
            self.search_penalty,
            self.penalty_mode,
            self.visit_penalty,
            self.image_penalty,
            self.crop_penalty,
        )

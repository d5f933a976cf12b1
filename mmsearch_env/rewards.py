"""The reward of an episode: how right the answer was, whether the form was kept, what searching cost.

With a = answer metric in [0, 1], o = 1 if every completion was well-formed and an answer was given, n = successful
searches charged, f = ``format_weight`` and p = ``search_penalty``:

    multiplicative   R = (1 - f) * a * (1 - p)^n + f * o      MMSearch-R1 (arXiv 2506.20670, section 2.3), the default
    subtractive      R = (1 - f) * a + f * o - p * n          the price is due right or wrong, on the step that searched

n is min(searches, 1) in penalty mode ``once`` (the paper), the number of searches in ``per_call``, 0 in ``none``. Image
searches, and those with a part of a picture, may have prices of their own, p_i (``image_penalty``, p unless given) and
p_c (``crop_penalty``, p_i unless given). With t, i and c searches made with words, whole pictures and parts of them,

    per_call         (1 - p)^n becomes (1 - p)^t (1 - p_i)^i (1 - p_c)^c, and p * n becomes p * t + p_i * i + p_c * c
    once             n stays; p is the dearest price of those made, so that a dearer one later costs the difference

Pages visited are charged in the same way at a price of their own, p_v: another factor (1 - p_v)^m, or another term
p_v * m.
A tool that failed is free. Both forms are written as a sum of three terms, so that nothing is hidden:
``total = metric_points + format_points - search_penalty``.
"""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from mmsearch_env.episode import EpisodeState, StopReason
from mmsearch_env.errors import ConfigError

Metric = Callable[[str, str], float]
"""(answer, accepted answer) -> agreement in [0, 1]."""


class RewardForm(StrEnum):
    """How the answer and the price of searching are combined."""

    MULTIPLICATIVE = "multiplicative"
    SUBTRACTIVE = "subtractive"


class PenaltyMode(StrEnum):
    """Which successful searches are charged."""

    ONCE = "once"
    PER_CALL = "per_call"
    NONE = "none"


def normalised(text: str) -> str:
    """SQuAD normalisation: lower case, no punctuation, no articles, single spaces.

    A text of which nothing would be left (``"A"``, ``"?!"``) keeps its letters and signs, so that two such texts
    agree only when they are the same.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    bare = "".join(sign for sign in folded if not _is_punctuation(sign))
    words = re.sub(r"\b(?:a|an|the)\b", " ", bare).split()
    return " ".join(words) or " ".join(folded.split())


def _is_punctuation(sign: str) -> bool:
    return sign in string.punctuation or unicodedata.category(sign).startswith("P")


def exact_match(answer: str, accepted: str) -> float:
    """1 if both are the same after normalisation. An empty answer never matches."""
    given = normalised(answer)
    return float(bool(given) and given == normalised(accepted))


def sub_match(answer: str, accepted: str) -> float:
    """1 if the accepted answer stands in the answer as whole words."""
    wanted = normalised(accepted)
    return float(bool(wanted) and f" {wanted} " in f" {normalised(answer)} ")


def token_f1(answer: str, accepted: str) -> float:
    """Harmonic mean of word precision and recall (SQuAD F1)."""
    given, wanted = normalised(answer).split(), normalised(accepted).split()
    shared = sum((Counter(given) & Counter(wanted)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(given), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


METRICS: dict[str, Metric] = {"exact_match": exact_match, "sub_match": sub_match, "f1": token_f1}
"""Answer metrics by the name a configuration uses."""


def best_match(metric: Metric, answer: str, accepted: Sequence[str]) -> float:
    """The best agreement with any accepted answer."""
    return max((metric(answer, one) for one in accepted), default=0.0)


@dataclass(frozen=True, slots=True)
class RewardTerms:
    """The reward earned in an episode so far, item by item.

    Attributes:
        metric: agreement of the final answer with the best accepted one, or a judge's word if that is higher, in
            [0, 1]; 0 while there is none.
        format: 1 once an episode was answered with every completion well-formed, else 0.
        metric_points: what the answer earned before any price.
        format_points: what the form earned.
        search_penalty: what searching took away; below 0 where it was rewarded.
    """

    metric: float = 0.0
    format: float = 0.0
    metric_points: float = 0.0
    format_points: float = 0.0
    search_penalty: float = 0.0

    @property
    def total(self) -> float:
        """The sum of the rewards so far."""
        return self.metric_points + self.format_points - self.search_penalty

    def as_dict(self) -> dict[str, float]:
        """Every term and the total, for ``info["reward_terms"]``."""
        return {
            "metric": self.metric,
            "format": self.format,
            "metric_points": self.metric_points,
            "format_points": self.format_points,
            "search_penalty": self.search_penalty,
            "total": self.total,
        }


@dataclass(frozen=True, slots=True)
class RewardRules:
    """How an episode is rewarded; see the module's equations.

    Attributes:
        form: ``multiplicative`` or ``subtractive``.
        metric: a name in ``METRICS``.
        format_weight: f, in [0, 1].
        search_penalty: p, in [-1, 1]; below 0 searching is rewarded.
        penalty_mode: ``once``, ``per_call`` or ``none``.
        visit_penalty: p_v, in [0, 1].
        image_penalty: p of an image search; None for that of any search.
        crop_penalty: p of an image search with a part of a picture; None for that of any image search.
    """

    form: str = RewardForm.MULTIPLICATIVE
    metric: str = "exact_match"
    format_weight: float = 0.1
    search_penalty: float = 0.1
    penalty_mode: str = PenaltyMode.ONCE
    visit_penalty: float = 0.0
    image_penalty: float | None = None
    crop_penalty: float | None = None

    def __post_init__(self) -> None:
        _one_of("reward", self.form, tuple(RewardForm))
        _one_of("metric", self.metric, tuple(METRICS))
        _one_of("penalty_mode", self.penalty_mode, tuple(PenaltyMode))
        for name in ("format_weight", "search_penalty", "visit_penalty", "image_penalty", "crop_penalty"):
            value = getattr(self, name)
            if value is None and name in ("image_penalty", "crop_penalty"):
                continue
            low = -1.0 if name == "search_penalty" else 0.0
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= 1.0:
                raise ConfigError(f"{name}: expected a number in [{low:g}, 1], got {value!r}; mend the setting")

    def terms(self, state: EpisodeState, accepted: Sequence[str]) -> RewardTerms:
        """What the episode has earned in ``state``. The reward of a step is the difference of two totals."""
        answered = state.stop_reason is StopReason.ANSWERED
        metric = max(self.match(state.answer, accepted), state.verdict) if answered else 0.0
        form_kept = float(answered and state.well_formed)
        metric_points = (1.0 - self.format_weight) * metric
        return RewardTerms(
            metric=metric,
            format=form_kept,
            metric_points=metric_points,
            format_points=self.format_weight * form_kept,
            search_penalty=self._price(metric_points, self._charged(state)),
        )

    def match(self, answer: str, accepted: Sequence[str]) -> float:
        """How well an answer agrees with the best accepted one, in [0, 1]."""
        return best_match(METRICS[self.metric], answer, accepted)

    def _charged(self, state: EpisodeState) -> list[tuple[float, int]]:
        """Prices, and how often each is charged."""
        image = self.search_penalty if self.image_penalty is None else self.image_penalty
        crop = image if self.crop_penalty is None else self.crop_penalty
        whole = state.n_image_search - state.n_crop_search
        made = [(self.search_penalty, state.n_text_search), (image, whole), (crop, state.n_crop_search)]
        searches = _by_price(made)
        visits = [(self.visit_penalty, state.n_page_visit)]
        if self.penalty_mode == PenaltyMode.PER_CALL:
            return searches + visits
        if self.penalty_mode == PenaltyMode.NONE:
            return []
        dearest = (max((price for price, calls in kind if calls), default=0.0) for kind in (searches, visits))
        return [(price, 1) for price in dearest]

    def _price(self, metric_points: float, charged: Sequence[tuple[float, int]]) -> float:
        if self.form == RewardForm.SUBTRACTIVE:
            return math.fsum(price * calls for price, calls in charged)
        return metric_points * (1.0 - math.prod((1.0 - price) ** calls for price, calls in charged))


def _by_price(made: Sequence[tuple[float, int]]) -> list[tuple[float, int]]:
    """Each price once, with all its calls: kinds at one price are charged as if they were one, to the last bit."""
    calls: Counter[float] = Counter()
    for price, count in made:
        calls[price] += count
    return list(calls.items())


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigError(f"{name}: expected one of {', '.join(known)}, got {value!r}; mend the setting")

"""Other forms of the same task: model text, a fixed choice of actions, arrays only.

    TextActions          action: UnicodeText, the raw text of a model
    CandidateActions     action: Discrete(K), with a mask
    ArrayObservations    observation: one-level Dict of arrays (Stable-Baselines3 MultiInputPolicy, tianshou)
    FlatObservations     observation: one Box (CleanRL, Stable-Baselines3 MlpPolicy)

The ids ``MMSearchText-v0``, ``MMSearchDiscrete-v0`` and ``MMSearchBox-v0`` put them together.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from mmsearch_env.actions import Action, Answer, ImageSearch, Malformed, MalformedCode, TextSearch
from mmsearch_env.candidates import CandidateLayout
from mmsearch_env.env import MMSearchEnv, StepReturn
from mmsearch_env.errors import ConfigError, EpisodeError
from mmsearch_env.images import Image
from mmsearch_env.moves import checked
from mmsearch_env.protocols import Protocol
from mmsearch_env.spaces import UnicodeText

MAX_COMPLETION_CHARS = 100_000
"""Longest model text that is a member of the text id's action space, in characters."""


class ResponseText(UnicodeText):
    """Any text; what it samples is well-formed, so that a random player searches and answers."""

    def __init__(self, protocol: Protocol, max_length: int = MAX_COMPLETION_CHARS, *, seed: int | None = None) -> None:
        super().__init__(max_length, seed=seed)
        self.protocol = protocol

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """A random action in the protocol's canonical form."""
        words = super().sample(mask, probability).strip() or "word"
        actions: tuple[Action, ...] = (Answer(words), ImageSearch(), TextSearch(words))
        return self.protocol.format(actions[int(self.np_random.integers(len(actions)))], reason="")


class TextActions(gymnasium.ActionWrapper[Any, Any, Any], RecordConstructorArgs):
    """The action is the raw text of a model, parsed by the environment's protocol."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self.action_space = ResponseText(_inner(env).protocol)

    def action(self, action: Any) -> str:
        """The text itself. Raises EpisodeError for anything else."""
        if not isinstance(action, str):
            raise EpisodeError(
                f"expected a model's text, got {type(action).__name__}; use MMSearch-v0 for other actions"
            )
        return action


class CandidateActions(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """The action is the number of one of K candidates; see :mod:`mmsearch_env.candidates`.

    The mask of what means something is given as ``info["action_mask"]`` (int8, Gymnasium's custom) and by
    ``action_masks()`` (sb3-contrib's). A number that means nothing yet counts as malformed and costs the round.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        *,
        n_titles: int = 4,
        n_snippets: int = 4,
        vocabulary: Sequence[str] = (),
    ) -> None:
        """Args: see :class:`~mmsearch_env.candidates.CandidateLayout`. Raises ConfigError."""
        RecordConstructorArgs.__init__(self, n_titles=n_titles, n_snippets=n_snippets, vocabulary=list(vocabulary))
        super().__init__(env)
        if min(n_titles, n_snippets) < 0:
            raise ConfigError(f"n_titles and n_snippets: expected at least 0, got {n_titles} and {n_snippets}")
        if isinstance(vocabulary, str) or not all(isinstance(checked(Answer(word)), Answer) for word in vocabulary):
            raise ConfigError(f"vocabulary: expected a list of answers, got {vocabulary!r}; leave out empty, long ones")
        self.layout = CandidateLayout(n_titles, n_snippets, tuple(vocabulary), _inner(env).rules.max_images)
        self.action_space = spaces.Discrete(self.layout.size)

    @property
    def candidates(self) -> tuple[Action | None, ...]:
        """The K actions of this round; None where there is nothing to do."""
        inner = _inner(self.env)
        return self.layout.actions(inner.view, inner.episode.results)

    def action_masks(self) -> np.ndarray:
        """(K,) bool: which candidates mean something. All False after the end."""
        return np.array([candidate is not None for candidate in self.candidates], dtype=np.bool_)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As the environment's, with the mask in ``info``."""
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, {**info, "action_mask": self.action_masks().astype(np.int8)}

    def step(self, action: Any) -> StepReturn:
        """Take the candidate with this number. Raises EpisodeError for a number outside the action space."""
        if not 0 <= int(action) < self.layout.size:
            raise EpisodeError(f"expected a candidate of 0 to {self.layout.size - 1}, got {action}; see action_space")
        chosen = self.candidates[int(action)]
        if chosen is None:
            chosen = Malformed(MalformedCode.NO_ACTION, f"candidate {int(action)} means nothing in this round")
        observation, reward, terminated, truncated, info = self.env.step(chosen)
        info = {**info, "action_mask": self.action_masks().astype(np.int8)}
        return observation, float(reward), terminated, truncated, info


class ArrayObservations(gymnasium.ObservationWrapper[Any, Any, Any], RecordConstructorArgs):
    """The observation is a one-level Dict of arrays that holds the whole episode so far.

    * ``picture`` and ``thumbnail`` (side, side, 3) uint8: the question's picture; the best image hit, black until then
    * ``picture_2`` and on, where a question may have several: its further pictures, black where it has none
    * ``question`` and ``found`` (n_features,) float32 in [-1, 1]: hashed words of the question and of all hits
    * ``counters`` (3,) float32 in [0, 1]: rounds, image searches and text searches left, as shares
    * ``action_mask`` (K,) float32, when the actions are candidates
    """

    def __init__(self, env: gymnasium.Env[Any, Any], *, side_pixels: int = 64, n_features: int = 256) -> None:
        """Args: side_pixels: height and width of a picture. n_features: length of a hashed text. Raises ConfigError."""
        RecordConstructorArgs.__init__(self, side_pixels=side_pixels, n_features=n_features)
        super().__init__(env)
        if min(side_pixels, n_features) < 1:
            raise ConfigError(f"side_pixels and n_features: expected at least 1, got {side_pixels} and {n_features}")
        self.side_pixels, self.n_features = side_pixels, n_features
        picture = spaces.Box(0, 255, (side_pixels, side_pixels, 3), np.uint8)
        text = spaces.Box(-1.0, 1.0, (n_features,), np.float32)
        arrays: dict[str, spaces.Space[Any]] = {
            "picture": picture,
            "thumbnail": picture,
            "question": text,
            "found": text,
            "counters": spaces.Box(0.0, 1.0, (3,), np.float32),
            **dict.fromkeys(_further(_inner(env).rules.max_images), picture),
        }
        actions = env.action_space
        self._masked = False
        if isinstance(actions, spaces.Discrete) and env.has_wrapper_attr("action_masks"):
            self._masked = True
            arrays["action_mask"] = spaces.Box(0.0, 1.0, (int(actions.n),), np.float32)
        self.observation_space = spaces.Dict(arrays)

    def observation(self, observation: Any) -> dict[str, np.ndarray]:
        """The arrays; the environment's own observation is not looked at, since it holds one turn only."""
        env = _inner(self.env)
        hits = [hit for result in env.episode.results for hit in result.hits]
        thumbnail = next((hit.thumbnail for hit in hits if hit.thumbnail is not None), None)
        view, rules = env.view, env.rules
        counters = (
            view.rounds_left / rules.max_rounds,
            view.image_searches_left / max(1, rules.max_image_searches),
            view.text_searches_left / max(1, rules.max_text_searches),
        )
        arrays = {
            "picture": self._scaled(env.episode.image),
            "thumbnail": self._scaled(thumbnail),
            "question": hashed_words((env.question.text,), self.n_features),
            "found": hashed_words([f"{hit.title} {hit.snippet}" for hit in hits], self.n_features),
            "counters": np.array(counters, dtype=np.float32),
            **self._further_pictures(env.episode.images[1:]),
        }
        if self._masked:
            arrays["action_mask"] = self.env.get_wrapper_attr("action_masks")().astype(np.float32)
        return arrays

    def _further_pictures(self, images: Sequence[Image]) -> dict[str, np.ndarray]:
        names = _further(_inner(self.env).rules.max_images)
        return {name: self._scaled(image) for name, image in zip_longest(names, images)}

    def _scaled(self, image: Image | None) -> np.ndarray:
        side = self.side_pixels
        return np.zeros((side, side, 3), np.uint8) if image is None else image.resized(side, side).pixels.copy()


class FlatObservations(gymnasium.ObservationWrapper[Any, Any, Any], RecordConstructorArgs):
    """The observation is one float32 Box in [-1, 1]: the arrays of a Dict one after the other, pictures as [0, 1]."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        """Raises ConfigError when the observation is not a Dict of arrays."""
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        arrays = env.observation_space
        if not isinstance(arrays, spaces.Dict) or not all(isinstance(box, spaces.Box) for box in arrays.values()):
            raise ConfigError(f"expected a Dict of Box observations, got {arrays}; wrap with ArrayObservations first")
        low = np.concatenate([_unit(box.low) for box in arrays.values()])  # type: ignore[attr-defined]
        high = np.concatenate([_unit(box.high) for box in arrays.values()])  # type: ignore[attr-defined]
        self.observation_space = spaces.Box(low, high, dtype=np.float32)
        self._names = tuple(arrays)

    def observation(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """(D,) float32."""
        return np.concatenate([_unit(observation[name]) for name in self._names])


def hashed_words(texts: Sequence[str], n_features: int) -> np.ndarray:
    """Words and pairs of words, hashed with a sign into ``n_features`` places (feature hashing, arXiv 0902.2206).

    Returns:
        (n_features,) float32 of length 1, or zeros for no words.
    """
    counts = np.zeros(n_features, dtype=np.float32)
    for text in texts:
        words = re.findall(r"\w+", text.casefold())
        for token in (*words, *(f"{one} {two}" for one, two in zip(words, words[1:], strict=False))):
            code = zlib.crc32(token.encode("utf-8", "replace"))
            counts[code % n_features] += 1.0 if code >> 31 else -1.0
    length = float(np.linalg.norm(counts))
    return counts / np.float32(length) if length else counts


def _further(max_images: int) -> list[str]:
    """Names of the arrays that hold a question's pictures after the first."""
    return [f"picture_{number}" for number in range(2, max_images + 1)]


def _unit(array: np.ndarray) -> np.ndarray:
    flat = np.asarray(array).ravel()
    return flat.astype(np.float32) / np.float32(255.0) if flat.dtype == np.uint8 else flat.astype(np.float32)


def _inner(env: gymnasium.Env[Any, Any]) -> MMSearchEnv:
    inner = env.unwrapped
    if not isinstance(inner, MMSearchEnv):
        raise ConfigError(f"expected an MMSearchEnv inside, got {type(inner).__name__}; wrap one of this package's ids")
    return inner

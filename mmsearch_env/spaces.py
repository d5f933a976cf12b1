"""Gymnasium spaces of the environment, and what their members mean.

    action        Dict(kind=Discrete(3) [answer, image_search, text_search], text=UnicodeText, bbox=Box(4) in [0, 1])
                  kind=Discrete(4) with visit_page, whose text is the address, where pages may be visited
    observation   Dict(content=Sequence(OneOf(UnicodeText, ImageSpace)), speaker=Sequence(Discrete(2)), counters ...)

Every member of the action space can be executed: a bad box becomes the full frame, an empty text is malformed.
"""

from __future__ import annotations

import base64
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.error import CustomSpaceError
from gymnasium.vector.utils import create_shared_memory

from mmsearch_env.actions import MAX_ACTION_CHARS, Action, ActionKind, Answer, ImageSearch, TextSearch, VisitPage
from mmsearch_env.episode import EpisodeState, Rules
from mmsearch_env.errors import EpisodeError
from mmsearch_env.images import FULL_FRAME, MAX_PIXELS, Image, clean_bbox
from mmsearch_env.messages import ImagePart, Message, Part, TextPart

ACTION_KINDS = tuple(ActionKind)
"""The kinds in the order of ``Discrete``; the last is there only where pages may be visited."""
MAX_PART_CHARS = 1_000_000
"""Longest text part of an observation, in characters; a longer one is cut."""
MAX_SIDE_PIXELS = MAX_PIXELS
"""Longest side of a picture in an observation: a picture of one row may be as long."""
TEXT_PART, IMAGE_PART = 0, 1
"""Indices of ``OneOf(UnicodeText, ImageSpace)``."""
FROM_ENVIRONMENT, FROM_PLAYER = 0, 1
"""Values of ``speaker``."""

_SAMPLE_CHARSET = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789äéñßøışλЖ中日한あ,.?-'"
_LONGEST_SAMPLE = 40


class UnicodeText(spaces.Text):
    """Any string of at most ``max_length`` characters. The character set is used for sampling only."""

    def __init__(self, max_length: int, *, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(max_length, min_length=0, charset=_SAMPLE_CHARSET, seed=seed)

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """A short random string; with a mask or probability as in ``gymnasium.spaces.Text``."""
        if mask is None and probability is None:
            mask = (int(self.np_random.integers(1, min(_LONGEST_SAMPLE, self.max_length) + 1)), None)
        return str(super().sample(mask) if probability is None else super().sample(mask, probability))

    def contains(self, x: Any) -> bool:
        """Whether ``x`` is a string that is not too long."""
        return isinstance(x, str) and len(x) <= self.max_length

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnicodeText) and self.max_length == other.max_length

    def __repr__(self) -> str:
        return f"UnicodeText({self.max_length})"

    @property
    def is_np_flattenable(self) -> bool:
        """False: there is no fixed set of characters to flatten to."""
        return False


class ImageSpace(spaces.Space[np.ndarray]):
    """Any (height, width, 3) uint8 picture with sides of 1 to ``max_side_pixels``."""

    def __init__(
        self, max_side_pixels: int = MAX_SIDE_PIXELS, *, seed: int | np.random.Generator | None = None
    ) -> None:
        self.max_side_pixels = max_side_pixels
        super().__init__(None, np.uint8, seed)

    @property
    def is_np_flattenable(self) -> bool:
        """False: pictures have no fixed size."""
        return False

    def sample(self, mask: Any = None, probability: Any = None) -> np.ndarray:
        """A small picture of random size. There is nothing to mask."""
        if mask is not None or probability is not None:
            raise ValueError(f"expected no mask and no probability for {self}, got one; leave it out")
        height, width = self.np_random.integers(1, min(32, self.max_side_pixels) + 1, size=2)
        return self.np_random.integers(0, 256, size=(int(height), int(width), 3), dtype=np.uint8)

    def contains(self, x: Any) -> bool:
        """Whether ``x`` is an 8-bit RGB array of an allowed size."""
        return (
            isinstance(x, np.ndarray)
            and x.dtype == np.uint8
            and x.ndim == 3
            and x.shape[2] == 3
            and min(x.shape[:2]) >= 1
            and max(x.shape[:2]) <= self.max_side_pixels
        )

    def to_jsonable(self, sample_n: Iterable[np.ndarray]) -> list[Any]:
        """Shape and base64 bytes of each picture."""
        return [
            {"shape": list(picture.shape), "data": base64.b64encode(picture.tobytes()).decode("ascii")}
            for picture in sample_n
        ]

    def from_jsonable(self, sample_n: list[Any]) -> list[np.ndarray]:
        """The pictures again."""
        return [
            np.frombuffer(base64.b64decode(row["data"]), dtype=np.uint8).reshape(row["shape"]).copy()
            for row in sample_n
        ]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageSpace) and self.max_side_pixels == other.max_side_pixels

    def __repr__(self) -> str:
        return f"ImageSpace({self.max_side_pixels})"


def _refuse_shared_memory(space: spaces.Space[Any], n: int = 1, ctx: Any = None) -> Any:
    """``AsyncVectorEnv`` would return frozen text from shared memory; this turns it into an error that says so."""
    raise CustomSpaceError(f"{space} has no fixed size; use shared_memory=False, or MMSearchVectorEnv")


create_shared_memory.register(UnicodeText, _refuse_shared_memory)
create_shared_memory.register(ImageSpace, _refuse_shared_memory)


def action_space(rules: Rules) -> spaces.Dict:
    """What a player can do, as data."""
    members: dict[str, spaces.Space[Any]] = {
        "kind": spaces.Discrete(len(ACTION_KINDS) if rules.max_page_visits else len(ACTION_KINDS) - 1),
        "text": UnicodeText(MAX_ACTION_CHARS),
        "bbox": spaces.Box(0.0, 1.0, (4,), np.float32),
    }
    if rules.max_images > 1:
        members["index"] = spaces.Discrete(rules.max_images)
    return spaces.Dict(members)


def observation_space(rules: Rules) -> spaces.Dict:
    """What a player sees: the parts of this turn (or of the whole conversation) and the limits that remain."""
    members: dict[str, spaces.Space[Any]] = {
        "content": spaces.Sequence(spaces.OneOf((UnicodeText(MAX_PART_CHARS), ImageSpace()))),
        "speaker": spaces.Sequence(spaces.Discrete(2)),
        "round": spaces.Discrete(rules.max_rounds + 1),
        "image_searches_left": spaces.Discrete(rules.max_image_searches + 1),
        "text_searches_left": spaces.Discrete(rules.max_text_searches + 1),
    }
    if rules.max_page_visits:
        members["page_visits_left"] = spaces.Discrete(rules.max_page_visits + 1)
    return spaces.Dict(members)


def observation(messages: Sequence[Message], rules: Rules, state: EpisodeState) -> dict[str, Any]:
    """Messages and counters as a member of :func:`observation_space`. Every array is a fresh copy."""
    visits = {"page_visits_left": np.int64(rules.max_page_visits - state.n_page_visit)} if rules.max_page_visits else {}
    spoken = [(part, message.role) for message in messages for part in message.parts]
    return {
        "content": tuple(_member(part) for part, _ in spoken),
        "speaker": tuple(np.int64(role == "assistant") for _, role in spoken),
        "round": np.int64(state.round),
        "image_searches_left": np.int64(rules.max_image_searches - state.n_image_search),
        "text_searches_left": np.int64(rules.max_text_searches - state.n_text_search),
        **visits,
    }


def to_messages(seen: Mapping[str, Any]) -> tuple[Message, ...]:
    """An observation as messages: neighbouring parts of one speaker are one message."""
    messages: list[Message] = []
    for (index, value), speaker in zip(seen["content"], seen["speaker"], strict=True):
        part: Part = TextPart(value) if index == TEXT_PART else ImagePart(Image(value))
        role = "assistant" if speaker == FROM_PLAYER else "user"
        if messages and messages[-1].role == role:
            messages[-1] = Message(role, (*messages[-1].parts, part))
        else:
            messages.append(Message("assistant" if speaker == FROM_PLAYER else "user", (part,)))
    return tuple(messages)


def to_action(member: Mapping[str, Any]) -> Action:
    """The action a member of :func:`action_space` means.

    ``kind`` may also be the kind's name; ``text``, ``bbox`` and ``index`` may be left out where they mean nothing.

    Raises:
        EpisodeError: not a mapping of that form (a mistake of the calling program, not of a player).
    """
    kind = _kind(member)
    if kind is ActionKind.IMAGE_SEARCH:
        try:
            return ImageSearch(clean_bbox(member.get("bbox", FULL_FRAME)), operator.index(member.get("index", 0)))
        except (TypeError, ValueError) as error:
            wanted = "expected numbers under 'bbox' and a whole one under 'index'"
            raise EpisodeError(f"{wanted}, got {error}; see env.action_space") from error
    text = member.get("text", "")
    if not isinstance(text, str):
        raise EpisodeError(f"expected a string under 'text', got {type(text).__name__}; see env.action_space")
    if kind is ActionKind.VISIT_PAGE:
        return VisitPage(text)
    return Answer(text) if kind is ActionKind.ANSWER else TextSearch(text)


def _kind(member: Mapping[str, Any]) -> ActionKind:
    if not isinstance(member, Mapping) or "kind" not in member:
        raise EpisodeError(f"expected a mapping with 'kind', got {type(member).__name__}; see env.action_space")
    kind = member["kind"]
    if isinstance(kind, str) and kind in ACTION_KINDS:
        return ActionKind(kind)
    if not isinstance(kind, str) and np.ndim(kind) == 0 and kind in range(len(ACTION_KINDS)):
        return ACTION_KINDS[int(kind)]
    raise EpisodeError(
        f"expected a kind of 0, 1, 2, 3 or {', '.join(ACTION_KINDS)}, got {kind!r}; see env.action_space"
    )


def _member(part: Part) -> tuple[int, Any]:
    if isinstance(part, TextPart):
        return (TEXT_PART, part.text[:MAX_PART_CHARS])
    return (IMAGE_PART, part.image.pixels.copy())

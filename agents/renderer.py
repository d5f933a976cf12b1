"""Messages to tokens, without ever tokenising a completion again.

A :class:`ChatRenderer` asks the model's own chat template for the scaffolding around messages, by rendering sentinels
in their place, and tokenises three kinds of text differently:

* scaffolding, with control tokens active;
* the text of messages, with control tokens inert: nothing in a page, a title or a question can become one;
* a picture's slot, through the model's own processor, which knows how many placeholder tokens the picture needs.

No token id and no model family is named here; all is learnt from the processor when the renderer is made.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.trajectory import Completion
from mmsearch_env.errors import ImageError, PolicyError
from mmsearch_env.images import Image
from mmsearch_env.messages import ImagePart, Message, TextPart

_OPEN, _CLOSE = "\ue000", "\ue001"
_SENTINEL = re.compile(f"{_OPEN}(\\d+){_CLOSE}")
_CONTROL_SHAPE = re.compile(r"<\|.+\|>|<｜.+｜>|\[/?[A-Z_]+\]")
"""How families write control tokens, whether or not their tokeniser calls them special."""
_SLOT_CACHE_SIZE = 4096


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens that an observation adds, and the pictures whose slots stand in them, in order."""

    token_ids: tuple[int, ...]
    images: tuple[Image, ...]


class ChatRenderer:
    """Renders conversations for one processor (tokeniser, image processor, chat template)."""

    def __init__(self, processor: Any, *, system: str = "") -> None:
        """Args: processor: a transformers processor; system: a system message for every conversation, "" for none.

        Raises:
            PolicyError: the chat template cannot be used turn by turn.
        """
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.system = system
        self._slots: OrderedDict[tuple[int, int], tuple[int, ...]] = OrderedDict()
        self.image_slot = self._find_image_slot()
        self._closing, self.end_ids = self._find_turn_end()
        probe = self._image_ids(Image(np.zeros((64, 64, 3), dtype=np.uint8)))
        self.image_ids = frozenset({Counter(probe).most_common(1)[0][0]})
        """Tokens that stand for the pieces of a picture."""
        self.slot_ids = frozenset(probe)
        self.uses_token_types = "token_type_ids" in getattr(processor, "model_input_names", ())
        hidden = self._hidden_control_tokens()
        self.control_ids = frozenset((*self.tokenizer.all_special_ids, *self.slot_ids, *hidden.values()))
        """Tokens that may neither be sampled nor appear in a message's text."""
        longest_first = sorted(hidden, key=len, reverse=True)
        self._loud = re.compile("|".join(map(re.escape, longest_first))) if hidden else None

    def prompt(self, messages: Sequence[Message]) -> Prompt:
        """The tokens of a conversation's opening, up to where the assistant begins to speak."""
        opening = [Message("system", (TextPart(self.system),))] if self.system else []
        every = [*opening, *messages]
        return self._tokenise(*self._template(every), _pictures(every))

    def extension(self, messages: Sequence[Message], previous: Completion) -> Prompt:
        """The tokens that ``messages`` add after ``previous``, the end of the assistant's turn included.

        If the end-of-turn token was sampled it is not written a second time.
        """
        said = Message("assistant", (TextPart("a"),))
        asked = Message("user", (TextPart("q"),))
        text, texts = self._template([asked, said, *messages])
        _, _, after = text.partition(f"{_OPEN}1{_CLOSE}")
        if previous.token_ids and previous.token_ids[-1] in self.end_ids:
            after = after.removeprefix(self._closing)
        return self._tokenise(after, texts, _pictures(messages))

    def text_ids(self, text: str) -> list[int]:
        """Tokens of a message's text; no control token can come out of it."""
        quiet = self._loud.sub(lambda found: found[0][0] + "\u200b" + found[0][1:], text) if self._loud else text
        return list(self.tokenizer.encode(quiet, add_special_tokens=False, split_special_tokens=True))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of sampled tokens, end-of-turn tokens left out, spacing untouched."""
        kept = [token for token in token_ids if token not in self.end_ids]
        return str(self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def folded(self, token_ids: Sequence[int], images: Sequence[Image]) -> list[int]:
        """The tokens with the slot of each picture as the template writes it, before the processor expands it.

        Args:
            token_ids: of a row.
            images: the pictures whose slots stand in it, in order.

        Raises:
            ValueError: the slot of a picture is not there.
        """
        slot = self.tokenizer.encode(self.image_slot, add_special_tokens=False)
        ids, folded, start = tuple(token_ids), [], 0
        for image in images:
            wide = self._image_ids(image)
            place = ids.index(wide[0], start)
            while ids[place : place + len(wide)] != wide:
                place = ids.index(wide[0], place + 1)
            folded += [*ids[start:place], *slot]
            start = place + len(wide)
        return [*folded, *ids[start:]]

    def in_slot(self, image: Image) -> Any:
        """What the processor makes of a picture in its slot: the slot's tokens, and what the tower is given.

        Both from one call, because a family may cut a picture into as many pieces as it has room for.

        Raises:
            ImageError: the model cannot take the picture.
        """
        try:
            return self.processor(
                text=[self.image_slot], images=[[image.to_pil()]], add_special_tokens=False, return_tensors="pt"
            )
        except ValueError as error:
            raise ImageError(f"expected a picture that the model can take, got {image!r}: {error}") from error

    # -- learnt from the processor ------------------------------------------------------------------------------

    def _find_image_slot(self) -> str:
        """What the template writes for a picture, before the processor expands it."""
        with_image = self._apply([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "x"}]}])
        without = self._apply([{"role": "user", "content": [{"type": "text", "text": "x"}]}])
        length = len(with_image) - len(without)
        start = next((i for i, (a, b) in enumerate(zip(with_image, without, strict=False)) if a != b), len(without))
        # The slot may share its first characters with what follows; slide left until removing it restores the text.
        for begin in range(start, -1, -1):
            if length > 0 and with_image[:begin] + with_image[begin + length :] == without:
                slot = with_image[begin : begin + length]
                if slot.strip():
                    return slot
        raise PolicyError("expected a chat template that writes a placeholder for a picture, got none; use a VLM's")

    def _find_turn_end(self) -> tuple[str, frozenset[int]]:
        """The text that closes an assistant turn, and the tokens by which the model may close it itself."""
        text, _ = self._template(
            [
                Message("user", (TextPart("q"),)),
                Message("assistant", (TextPart("a"),)),
                Message("user", (TextPart("r"),)),
            ]
        )
        alone, _ = self._template([Message("user", (TextPart("q"),))])
        if not text.startswith(alone):
            raise PolicyError(
                "expected a chat template that only appends turns, got one that rewrites them; replace it"
            )
        after = text.split(f"{_OPEN}1{_CLOSE}", 1)[1]
        ids = self.tokenizer.encode(after, add_special_tokens=False)
        ends = {i for i in ids[:1] if i in self.tokenizer.all_special_ids} | {self.tokenizer.eos_token_id}
        closing = str(self.tokenizer.decode(ids[:1], clean_up_tokenization_spaces=False))
        return closing, frozenset(end for end in ends if end is not None)

    def _hidden_control_tokens(self) -> dict[str, int]:
        """Text and id of every added token that is a control token although the tokeniser does not call it special.

        Those written as plain tags (``<tool_call>``) are left alone: the environment's own words use them, and its
        protocols take them out of what was retrieved.
        """
        slot_texts = {self.tokenizer.convert_ids_to_tokens(i) for i in self.slot_ids}
        added = self.tokenizer.get_added_vocab()
        return {t: i for t, i in added.items() if len(t) > 1 and (t in slot_texts or _CONTROL_SHAPE.fullmatch(t))}

    # -- rendering ----------------------------------------------------------------------------------------------

    def _template(self, messages: Sequence[Message]) -> tuple[str, list[str]]:
        """The scaffolding of ``messages`` with a sentinel for each text, and those texts."""
        texts: list[str] = []
        chat = []
        for message in messages:
            content: list[dict[str, str]] = []
            for part in message.parts:
                if isinstance(part, ImagePart):
                    content.append({"type": "image"})
                elif part.text:
                    content.append({"type": "text", "text": f"{_OPEN}{len(texts)}{_CLOSE}"})
                    texts.append(part.text)
            chat.append({"role": message.role, "content": content})
        return self._apply(chat), texts

    def _apply(self, chat: list[dict[str, Any]]) -> str:
        template = getattr(self.processor, "chat_template", None) or self.tokenizer.chat_template
        return str(
            self.tokenizer.apply_chat_template(
                chat, chat_template=template, tokenize=False, add_generation_prompt=chat[-1]["role"] != "assistant"
            )
        )

    def _tokenise(self, scaffold: str, texts: Sequence[str], pictures: Sequence[Image]) -> Prompt:
        images = iter(pictures)
        used: list[Image] = []
        ids: list[int] = []
        for position, piece in enumerate(_SENTINEL.split(scaffold)):
            if position % 2:
                ids += self.text_ids(texts[int(piece)])
                continue
            for number, frame in enumerate(piece.split(self.image_slot)):
                if number:
                    used.append(next(images))
                    ids += self._image_ids(used[-1])
                if frame:
                    ids += self.tokenizer.encode(frame, add_special_tokens=False)
        return Prompt(tuple(ids), tuple(used))

    def _image_ids(self, image: Image) -> tuple[int, ...]:
        """The slot of a picture; it depends on the picture's size only."""
        key = (image.width, image.height)
        if key not in self._slots:
            self._slots[key] = tuple(self.in_slot(image)["input_ids"][0].tolist())
            if len(self._slots) > _SLOT_CACHE_SIZE:
                self._slots.popitem(last=False)
        return self._slots[key]


def _pictures(messages: Sequence[Message]) -> tuple[Image, ...]:
    return tuple(image for message in messages for image in message.images)

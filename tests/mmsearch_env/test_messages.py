from __future__ import annotations

from mmsearch_env.images import Image
from mmsearch_env.messages import ImagePart, Message, TextPart, to_openai


def test_a_message_gives_its_text_and_its_pictures(picture: Image) -> None:
    message = Message("user", (TextPart("What "), ImagePart(picture), TextPart("is it?")))
    assert message.text == "What is it?"
    assert message.images == (picture,)


def test_openai_blocks_keep_the_order(picture: Image) -> None:
    messages = [
        Message("user", (ImagePart(picture), TextPart("What is it?"))),
        Message("assistant", (TextPart("A flag."),)),
    ]
    assert to_openai(messages) == [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": picture.to_data_url()}},
                {"type": "text", "text": "What is it?"},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "A flag."}]},
    ]

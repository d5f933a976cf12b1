"""TRL's GRPOTrainer doing the trainer benchmark's work (extra ``peers``). Prints JSON; see ``trainer.py``.

Every prompt is filled up to the setup's length; control tokens are suppressed and every turn has the setup's number of
tokens. In setups of several turns all turns but the last end in a forced tool call, which is answered with a picture
and a short text.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset
from peft import LoraConfig
from trainer_models import LORA_ALPHA, LORA_RANK, LORA_TARGETS, SETUPS, Setup, built, picture, words
from trl import GRPOConfig, GRPOTrainer

_PARTS = ("rollout", "score", "learn", "all")


def main() -> None:
    """``trainer_peer.py SETUP ITERATIONS THREADS``; the first iteration is a warm-up."""
    setup, iterations, threads = SETUPS[sys.argv[1]], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    model, processor = built(setup)
    templates = Path(trl.__file__).parent / "chat_templates"
    if setup.turns > 1:
        processor.chat_template = processor.tokenizer.chat_template = (templates / f"{setup.family}.jinja").read_text()
    rows = [question(setup, processor, number) for number in range(iterations + 1)]
    trainer = made(setup, model, processor, Dataset.from_list(rows), iterations)
    trainer.train()
    measured = trainer.seen[1:]
    print(
        json.dumps(
            {
                "peer": f"trl {trl.__version__}",
                "tokens": trainer.tokens,
                "cpu_s": {part: [round(values[part][1], 4) for values in measured] for part in _PARTS},
                "wall_s": {part: [round(values[part][0], 4) for values in measured] for part in _PARTS},
                "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            }
        )
    )


def question(setup: Setup, processor: Any, number: int) -> dict[str, Any]:
    """A prompt of exactly so many tokens, with pictures of its own."""
    rng, known = random.Random(number), words(processor.tokenizer)
    pictures = [picture(1000 * number + place, setup.picture_px) for place in range(setup.pictures)]

    def length(text: str) -> int:
        parts = [*({"type": "image", "image": one} for one in pictures), {"type": "text", "text": text}]
        told = [{"role": "user", "content": parts}]
        tools = {"tools": [Search().search]} if setup.turns > 1 else {}
        made = processor.apply_chat_template(told, tokenize=True, add_generation_prompt=True, return_dict=True, **tools)
        return len(made["input_ids"][0])

    text = "Question:"
    while (missing := setup.prompt_tokens - length(text)) > 0:
        text += "".join(rng.choice(known) for _ in range(max(1, missing // 3)))
    return {"prompt": [{"role": "user", "content": text}], "images": pictures}


def reward(completions: list[Any], **_: Any) -> list[float]:
    """Some number, so that advantages differ."""
    return [float(sum(map(ord, str(one))) % 7) for one in completions]


class Search:
    """TRL's environment: one tool that returns a picture and a text."""

    side = 112
    calls = 0

    def reset(self, **_: Any) -> None:
        """Begin."""
        self.searched = 0

    def search(self, query: str) -> list[dict[str, Any]]:
        """Search images.

        Args:
            query: What to look for.

        Returns:
            Result blocks.
        """
        self.searched += 1
        Search.calls += 1
        text = "results for the query, page one of the three pages that were found for it, with pictures"
        return [
            {"type": "image", "image": picture(10**6 + Search.calls, self.side)}, {"type": "text", "text": text}
        ]  # fmt: skip

    def get_reward(self) -> float:
        """Some number, so that advantages differ."""
        Search.calls += 1
        return float(self.searched) + Search.calls % 3


class ForcedTail(transformers.LogitsProcessor):
    """Writes fixed tokens at the end of a turn of fixed length."""

    def __init__(self, start: int, length: int, tail: list[int]) -> None:
        self.start, self.length, self.tail = start, length, tail

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        place = ids.shape[1] - self.start - (self.length - len(self.tail))
        if 0 <= place < len(self.tail):
            scores = torch.full_like(scores, float("-inf"))
            scores[:, self.tail[place]] = 0
        return scores


class Timed(GRPOTrainer):  # type: ignore[misc]
    """Knows what each part of an iteration takes: (wall, CPU) seconds."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.seen: list[dict[str, tuple[float, float]]] = []
        self.now = dict.fromkeys(_PARTS, (0.0, 0.0))
        self.turn, self.tokens = 0, [0, 0]

    def add(self, part: str, begin: tuple[float, float], *without: str, before: dict[str, tuple[float, float]]) -> None:
        """What went by since ``begin``, without what other parts took of it."""
        wall, cpu = time.perf_counter() - begin[0], time.process_time() - begin[1]
        for other in without:
            wall -= self.now[other][0] - before[other][0]
            cpu -= self.now[other][1] - before[other][1]
        self.now[part] = (self.now[part][0] + wall, self.now[part][1] + cpu)

    def _generate_single_turn(self, *arguments: Any, **settings: Any) -> Any:
        begin, before = clock(), dict(self.now)
        found = super()._generate_single_turn(*arguments, **settings)
        self.add("rollout", begin, before=before)
        self.turn += 1
        return found

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self.turn = 0
        begin, before = clock(), dict(self.now)
        found = super()._generate_and_score_completions(inputs)
        self.add("score", begin, "rollout", before=before)
        self.tokens = [int(found[name].shape[1]) for name in ("prompt_ids", "completion_ids")]
        return found

    def training_step(self, *arguments: Any, **settings: Any) -> Any:
        begin, before = clock(), dict(self.now)
        found = super().training_step(*arguments, **settings)
        self.add("learn", begin, "rollout", "score", before=before)
        return found


class Iterations(transformers.TrainerCallback):
    """Ends the account of each iteration."""

    trainer: Timed

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """All accounts at 0."""
        self.trainer.now = dict.fromkeys(_PARTS, (0.0, 0.0))
        self.begin = clock()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """The whole, optimiser included."""
        self.trainer.add("all", self.begin, before=self.trainer.now)
        self.trainer.seen.append(self.trainer.now)


def made(setup: Setup, model: Any, processor: Any, rows: Dataset, iterations: int) -> Timed:
    """The trainer, as fast as its settings let it be: no reference pass, one pass over each batch, one micro-batch."""
    tokenizer = processor.tokenizer
    special = sorted({*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()})
    is_long = setup.turns > 1
    length = setup.completion_tokens
    sampling = {"max_new_tokens": length}
    sampling |= {} if is_long else {"suppress_tokens": special, "min_new_tokens": length}
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=setup.group_size,
        gradient_accumulation_steps=1,
        num_generations=setup.group_size,
        max_completion_length=4096 if is_long else length,
        max_steps=iterations + 1,
        learning_rate=1e-5,
        beta=0.0,
        num_iterations=1,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        gradient_checkpointing=False,
        loss_type="grpo",
        temperature=1.0,
        max_tool_calling_iterations=setup.turns - 1 if is_long else None,
        generation_kwargs=sampling,
    )
    Search.side = setup.tool_px
    callback = Iterations()
    trainer = Timed(
        model=model,
        args=config,
        train_dataset=rows,
        processing_class=processor,
        callbacks=[callback],
        peft_config=LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules=LORA_TARGETS),
        **({"environment_factory": Search} if is_long else {"reward_funcs": [reward]}),
    )
    callback.trainer = trainer
    trainer.log = lambda *_, **__: None  # its lines would stand between us and the JSON
    if is_long:
        force_calls(setup, model, tokenizer, trainer, special)
    return trainer


def force_calls(setup: Setup, model: Any, tokenizer: Any, trainer: Timed, special: list[int]) -> None:
    """A model with random weights never calls a tool by itself."""
    call = '<tool_call>\n{"name": "search", "arguments": {"query": "cat"}}\n</tool_call>'
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    calling = [*tokenizer.encode(call, add_special_tokens=False), end]
    generate = model.generate

    def forced(*arguments: Any, **settings: Any) -> Any:
        tail = [end] if trainer.turn >= setup.turns - 1 else calling
        processors = transformers.LogitsProcessorList(
            [
                transformers.SuppressTokensLogitsProcessor(special, device="cpu"),
                ForcedTail(settings["input_ids"].shape[1], setup.completion_tokens, tail),
            ]
        )
        return generate(*arguments, logits_processor=processors, **settings)

    model.generate = forced


def clock() -> tuple[float, float]:
    """Wall and CPU time."""
    return time.perf_counter(), time.process_time()


if __name__ == "__main__":
    main()

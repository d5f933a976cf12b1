"""One iteration of GRPO on a LoRA-adapted LMM, from rollout to optimiser step, beside TRL's GRPOTrainer.

    python tests/benchmarks/trainer.py --peer-python PYTHON      # S1, S2 and S3 beside TRL, which PYTHON has
    python tests/benchmarks/trainer.py --setup S2 --threads 2    # ours alone

Both sides have the same architecture with random weights, the same numbers of pictures, prompt tokens, tokens of every
completion and observation, turns, episodes of a group, LoRA rank and optimiser, one micro-batch and one update an
iteration; that the token counts are equal is checked. Every iteration has a question and pictures that no earlier one
had. Ours is the real loop over the real environment, whose search tool answers at once from memory; each side runs in
a process of its own, and they take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from measuring import note, report
from trainer_bound import least_seconds, measured_machine
from trainer_models import LORA_ALPHA, LORA_RANK, SETUPS, Setup, built, picture, words

from agents.engines.contract import SamplingLimits
from agents.lmm import LMMPolicy
from agents.lora import LoRASettings, with_adapter
from agents.rollout import RolloutLimits
from agents.trajectory import Completion, FinishReason, Group
from mmsearch_env.actions import Answer, ImageSearch
from mmsearch_env.env import MMSearchEnv, StepReturn
from mmsearch_env.images import Image
from mmsearch_env.questions import Question, QuestionSet
from mmsearch_env.tools.search_tool import Hit, Query, SearchResult
from training.acting import Actor
from training.algorithms.presets import grpo
from training.config import RunConfig
from training.config.file import config_from_mapping
from training.engine import Engine, join, leave
from training.learn import Learner, TokenBudget
from training.records import MetricsFile, TensorBoard
from training.search_task import SearchTask
from training.train import Run, train

_PARTS = ("rollout", "learn", "all")
_WARM_UP = 1


class Pictures:
    """A search tool that answers at once, with a picture that no search had before."""

    name = "pictures"

    def __init__(self, side: int, title: str) -> None:
        self._side, self._title, self._calls = side, title, 0

    async def search(self, query: Query, *, top_k: int) -> SearchResult:
        """One hit."""
        self._calls += 1
        shown = Image.from_pil(picture(10**6 + self._calls, self._side))
        return SearchResult((Hit(self._title, "", "", 1.0, shown),))

    async def aclose(self) -> None:
        """Nothing to free."""


class Fixed(MMSearchEnv):
    """Whatever is said, it searches until the last turn and then answers, rightly in every second episode."""

    turns = 1
    episodes = 0

    async def astep(self, action: Any) -> StepReturn:
        """The turn, by fixed actions."""
        if self.state.round + 1 < self.turns:
            return await super().astep(ImageSearch())
        Fixed.episodes += 1
        return await super().astep(Answer("right" if Fixed.episodes % 2 else "wrong"))


class FixedTask(SearchTask):
    """The real task over that environment."""

    def _make_env(self, **changed: Any) -> MMSearchEnv:
        return Fixed(**{**self.env, **changed})


def ours(setup: Setup, iterations: int) -> dict[str, Any]:
    """Medians come later: (wall, CPU) seconds of each iteration."""
    model, processor = built(setup)
    adapted = with_adapter(model, LoRASettings(LORA_RANK, LORA_ALPHA))
    limits = SamplingLimits(max_new_tokens=setup.completion_tokens, stop_tags=())
    policy = LMMPolicy(adapted, processor, limits=limits, max_context_tokens=100_000)
    policy.scorer.banned = torch.tensor(sorted({*policy.scorer.banned.tolist(), *policy.renderer.end_ids}))
    Fixed.turns = setup.turns
    questions = QuestionSet("pictures", [question(setup, policy, n) for n in range(iterations + _WARM_UP)])
    env = environment(setup, questions, Pictures(setup.tool_px, title(setup, policy, questions[0])))
    task = FixedTask(policy, policy, questions, env, RolloutLimits(), 1.0)
    config = config_from_mapping(
        {
            "iterations": iterations + _WARM_UP,
            "rollout": {"questions_per_iteration": 1, "group_size": setup.group_size},
            "engine": {"micro_batch_tokens": 10**9},
        }
    )
    return measured(setup, config, policy, task)


def measured(setup: Setup, config: RunConfig, policy: LMMPolicy, task: FixedTask) -> dict[str, Any]:
    """Run the real loop with its records and look at the clocks."""
    spent: list[dict[str, tuple[float, float]]] = [{}]
    tokens: list[list[int]] = []
    begin = [clock()]

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        start = clock()
        yield
        spent[-1][name] = since(start)

    class Clock:
        def iteration(self, number: int, values: Mapping[str, float], groups: Sequence[Group]) -> None:
            (group,) = groups
            first = group.trajectories[0]
            tokens.append([len(first.turns[0].prompt_ids), len(first.token_ids) - len(first.turns[0].prompt_ids)])
            assert all(len(one.token_ids) == sum(tokens[-1]) for one in group.trajectories)
            assert values["optimiser/updates"] == 1.0 and values["policy/logprob_gap"] < 1e-3, values
            spent[-1]["all"] = since(begin[0])
            begin[0] = clock()
            spent.append({})

    engine = Engine(policy.scorer, place=join())
    with tempfile.TemporaryDirectory() as folder:
        run = Run(
            config=config,
            actor=Actor(task, config, engine),
            learner=Learner(policy, engine, grpo(), 1.0, TokenBudget(config.engine.micro_batch_tokens)),
            watchers=[MetricsFile(Path(folder) / "metrics", after=0), TensorBoard(Path(folder), after=0), Clock()],
            save=lambda counters: None,
            evaluate=lambda counters: {},
            phase=phase,
        )
        begin[0] = clock()
        train(run)
    leave()
    rows = spent[_WARM_UP:-1]
    machine = measured_machine(sum(weight.numel() for weight in policy.model.parameters()))
    return {
        "tokens": tokens[-1],
        "machine": {"gflops": round(machine.flops / 1e9, 1), "read_gb_s": round(machine.bytes_read / 1e9, 1)},
        "least_s": least_seconds(setup, policy.model, tokens[-1], machine),
        "cpu_s": {part: [round(row[part][1], 4) for row in rows] for part in _PARTS},
        "wall_s": {part: [round(row[part][0], 4) for row in rows] for part in _PARTS},
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def question(setup: Setup, policy: LMMPolicy, number: int) -> Question:
    """A question whose prompt has exactly so many tokens, with pictures of its own."""
    rng, known = random.Random(number), words(policy.renderer.tokenizer)
    shown = [Image.from_pil(picture(1000 * number + place, setup.picture_px)) for place in range(setup.pictures)]
    text = "Question:"
    while (missing := setup.prompt_tokens - prompt_tokens(setup, policy, made := asked(number, text, shown))) > 0:
        text += "".join(rng.choice(known) for _ in range(max(1, missing // 3)))
    return made


def asked(number: int, text: str, shown: Sequence[Image]) -> Question:
    return Question(str(number), text, shown[0], ("right",), more_images=tuple(shown[1:]))


def prompt_tokens(setup: Setup, policy: LMMPolicy, made: Question) -> int:
    env = MMSearchEnv(**environment(setup, QuestionSet("one", [made]), "none"))
    env.reset(seed=0)
    return len(policy.renderer.prompt(env.new_messages).token_ids)


def environment(setup: Setup, questions: QuestionSet, tool: Any) -> dict[str, Any]:
    return {
        "questions": questions,
        "prompts": "brief",
        "tools": {"image_search": tool},
        "max_images": setup.pictures,
        # One more than are played, so that what is said with the results does not change towards the end.
        "max_rounds": setup.turns + (1 if setup.turns > 1 else 0),
        "max_image_searches": setup.turns,
    }


def title(setup: Setup, policy: LMMPolicy, made: Question) -> str:
    """A title of a hit that makes an observation exactly so many tokens long."""
    if setup.turns == 1:
        return ""
    said = Completion("", (0,), (0.0,), FinishReason.STOP)
    text = "x"
    for _ in range(setup.observation_tokens):
        env = Fixed(**environment(setup, QuestionSet("one", [made]), Pictures(setup.tool_px, text)))
        env.reset(seed=0)
        env.step(ImageSearch())
        length = len(policy.renderer.extension(env.new_messages, said).token_ids)
        if length == setup.observation_tokens:
            return text
        text += words(policy.renderer.tokenizer)[0]
    raise SystemExit(f"no title makes an observation of {setup.observation_tokens} tokens: the shortest has more")


def clock() -> tuple[float, float]:
    """Wall and CPU time."""
    return time.perf_counter(), time.process_time()


def since(begin: tuple[float, float]) -> tuple[float, float]:
    """What went by."""
    now = clock()
    return now[0] - begin[0], now[1] - begin[1]


def in_process(script: str, *arguments: object, python: str = sys.executable) -> dict[str, Any]:
    """The last line that a script prints, as JSON."""
    here = Path(__file__).parent
    environ = {**os.environ, "PYTHONPATH": str(here.parents[1]), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [python, str(here / script), *map(str, arguments)], capture_output=True, text=True, env=environ, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def compared(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Both sides of one setup, in turns; ours alone where there is no peer."""
    sides: dict[str, list[dict[str, Any]]] = {"ours": []}
    if given.peer_python:
        sides["peer"] = []
    for number in range(given.rounds):
        for side, runs in sides.items():
            note(f"{name}, round {number + 1}: {side}")
            work = (name, given.iterations, given.threads)
            if side == "peer":
                runs.append(in_process("trainer_peer.py", *work, python=given.peer_python))
            else:
                runs.append(in_process("trainer.py", "--one", *work))
    tokens = [run["tokens"] for runs in sides.values() for run in runs]
    assert all(found == tokens[0] for found in tokens), tokens
    return summary(sides)


def summary(sides: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Medians over all iterations of all rounds, and how many times as much the peer takes."""
    found: dict[str, Any] = {"tokens": sides["ours"][0]["tokens"]}
    for measure in ("cpu_s", "wall_s"):
        medians = {
            side: {
                part: round(statistics.median(value for run in runs for value in run[measure][part]), 3)
                for part in runs[0][measure]
            }
            for side, runs in sides.items()
        }
        found[measure] = medians
        if "peer" in sides:
            found[measure]["times"] = {part: round(medians["peer"][part] / medians["ours"][part], 2) for part in _PARTS}
    found |= utilisation(sides["ours"], found["cpu_s"]["ours"])
    found["peak_rss_mb"] = {side: max(run["peak_rss_mb"] for run in runs) for side, runs in sides.items()}
    if "peer" in sides:
        found["peer"] = sides["peer"][0]["peer"]
        found["peak_rss_mb"]["share"] = round(found["peak_rss_mb"]["ours"] / found["peak_rss_mb"]["peer"], 2)
    return found


def utilisation(runs: Sequence[Mapping[str, Any]], spent: Mapping[str, float]) -> dict[str, Any]:
    """What the machine could do, the least time that the work needs at that rate, and its share of what it took."""
    least = {part: statistics.median(run["least_s"][part] for run in runs) for part in ("rollout", "learn")}
    least["all"] = sum(least.values())
    return {
        "machine": runs[0]["machine"],
        "least_s": {part: round(value, 3) for part, value in least.items()},
        "useful_share": {part: round(value / spent[part], 2) for part, value in least.items()},
    }


def main() -> None:
    """Compare, or run one side."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--setup", nargs="+", choices=list(SETUPS), default=["S1", "S2", "S3"])
    parser.add_argument("--iterations", type=int, default=4, help="measured in each round, after a warm-up")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peer-python", help="an interpreter with the extra peers; without it ours runs alone")
    parser.add_argument("--quick", action="store_true", help="a tiny setup, 1 iteration")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--given", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.given:
        torch.set_num_threads(given.threads)
        print(json.dumps(ours(Setup(**json.loads(given.given[0])), int(given.given[1]))))
        return
    if given.one:
        name, iterations, threads = given.one
        torch.set_num_threads(int(threads))
        print(json.dumps(ours(SETUPS[name], int(iterations))))
        return
    if given.quick:
        given.setup, given.iterations, given.rounds, given.peer_python = ["quick"], 1, 1, None
    table = {name: compared(name, given) for name in given.setup}
    settings = {name: value for name, value in vars(given).items() if name not in ("one", "given", "peer_python")}
    report("trainer", settings, ("torch", "transformers", "peft", "deepspeed"), table=table)


if __name__ == "__main__":
    main()

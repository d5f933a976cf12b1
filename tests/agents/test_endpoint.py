"""A policy behind an OpenAI-compatible end point, against a server that checks what it is asked."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from aiohttp import web
from families import noise

from agents.__main__ import main
from agents.engines.contract import SamplingLimits
from agents.engines.endpoint import NO_REPLY, EndpointPolicy
from agents.evaluate import evaluate
from agents.policy import CONTEXT_FULL, CannotReply, Reply, Request
from agents.rollout import RolloutLimits, rollout
from agents.trajectory import FinishReason
from agents.workflows import FIXED_RAG, Script
from mmsearch_env import aio
from mmsearch_env.env import MMSearchEnv
from mmsearch_env.errors import ConfigError, PolicyError
from mmsearch_env.images import Image
from mmsearch_env.messages import ImagePart, Message, TextPart
from mmsearch_env.net.secret import Secret
from mmsearch_env.worlds import load_world

ANSWER = "<reason>r</reason><answer>Peru</answer>"
LIMITS = SamplingLimits(max_new_tokens=50, temperature=0.7)


class Server:
    """Answers each request as ``say`` decides; remembers what it was asked."""

    def __init__(self) -> None:
        self.say: Callable[[dict[str, Any]], Any] = lambda body: ANSWER
        self.seen: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.url = ""

    async def start(self) -> None:
        app = web.Application(client_max_size=10**8)
        app.router.add_post("/v1/chat/completions", self._answer)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.seen.append(body)
        self.headers.append(request.headers)
        said = self.say(body)
        if asyncio.iscoroutine(said):
            said = await said
        if isinstance(said, web.StreamResponse):
            return said
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
        return web.json_response({"id": "1", "object": "chat.completion", "model": body["model"], "choices": [choice]})


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    aio.run(made.start())
    yield made
    aio.run(made.stop())


@pytest.fixture
def policy(server: Server) -> Iterator[EndpointPolicy]:
    made = EndpointPolicy(server.url, "big-model", limits=LIMITS, secret=Secret("s3cret-key", name="key"), system="Hi.")
    yield made
    made.close()


def asked(text: str = "which?", **more: Any) -> Request:
    message = Message("user", (ImagePart(noise(1)), TextPart(text)))
    return Request((message,), (message,), (), 7, **more)


def test_a_request_holds_the_whole_conversation(server: Server, policy: EndpointPolicy) -> None:
    (reply,) = policy.generate([asked()])
    assert isinstance(reply, Reply) and reply.completion.text == ANSWER and reply.completion.token_ids == ()
    (body,) = server.seen
    picture, text = body["messages"][1]["content"]
    assert body["messages"][0] == {"role": "system", "content": [{"type": "text", "text": "Hi."}]}
    encoded = picture["image_url"]["url"].removeprefix("data:image/png;base64,")
    assert Image.from_bytes(base64.b64decode(encoded)) == noise(1)
    assert text == {"type": "text", "text": "which?"}
    assert {name: body[name] for name in ("model", "temperature", "max_tokens", "seed")} == {
        "model": "big-model", "temperature": 0.7, "max_tokens": 50, "seed": 7,
    }  # fmt: skip
    assert server.headers[0]["Authorization"] == "Bearer s3cret-key"


def test_what_follows_an_action_is_dropped(server: Server, policy: EndpointPolicy) -> None:
    server.say = lambda body: f"{ANSWER} and <answer>more</answer>"
    (reply,) = policy.generate([asked()])
    assert isinstance(reply, Reply) and reply.completion.text == ANSWER


def test_episodes_are_played_and_evaluated(server: Server, policy: EndpointPolicy) -> None:
    def say(body: dict[str, Any]) -> str:
        turns = sum(message["role"] == "assistant" for message in body["messages"])
        return "<reason>r</reason><search><img></search>" if not turns else ANSWER

    server.say = say
    questions = load_world("atlas").questions("test")[:6]
    for batching in ("together", "continuous"):
        groups = rollout(
            policy, MMSearchEnv, questions, group_size=2, seed=0, limits=RolloutLimits(batching=batching)  # type: ignore[arg-type]
        )  # fmt: skip
        assert all(len(played.turns) == 2 for group in groups for played in group.trajectories)
    assert evaluate(policy, MMSearchEnv, questions, seed=0).overall.search_ratio.mean == 1.0


def test_a_script_takes_the_place_of_the_action(server: Server, policy: EndpointPolicy) -> None:
    server.say = lambda body: "<reason>r</reason><text_search>sol</text_search>"
    look = Script("<search><img></search>", is_whole=True, reason_end="</reason>")
    read = Script("<text_search>", reason_end="</reason>")
    answer = Script("<answer>", reason_end="</reason>")
    texts = [reply.completion.text for reply in policy.generate([asked(script=s) for s in (look, read, answer)])]  # type: ignore[union-attr]
    assert texts == [
        "<reason>r</reason><search><img></search>",
        "<reason>r</reason><text_search>sol</text_search>",
        "<reason>r</reason><answer><text_search>sol</text_search>",
    ]
    questions = load_world("atlas").questions("test")[:1]
    (group,) = rollout(policy, MMSearchEnv, questions, group_size=1, seed=0, workflow=FIXED_RAG)
    assert [turn.kind for turn in group.trajectories[0].turns][:2] == ["image_search", "text_search"]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (lambda: web.json_response({"error": {"message": "busy"}}, status=400), None),
        (lambda: web.json_response({"error": {"message": "bad key s3cret-key"}}, status=401), None),
        (lambda: web.json_response({"error": {"code": "context_length_exceeded"}}, status=400), CONTEXT_FULL),
        (lambda: web.json_response({"choices": []}), NO_REPLY),
    ],
)
def test_what_is_wrong_with_one_request_or_with_all(
    server: Server, policy: EndpointPolicy, reply: Callable[[], web.Response], reason: str | None
) -> None:
    server.say = lambda body: reply()
    if reason is None:
        with pytest.raises(PolicyError, match="expected an end point that answers") as told:
            policy.generate([asked()])
        assert "s3cret" not in str(told.value)
    else:
        (cut,) = policy.generate([asked()])
        assert isinstance(cut, CannotReply) and cut.reason == reason


def test_a_text_that_was_cut_off_says_so(server: Server, policy: EndpointPolicy) -> None:
    choice = {"finish_reason": "length", "message": {"content": "<reason>endless"}}
    server.say = lambda body: web.json_response({"choices": [choice]})
    (reply,) = policy.generate([asked()])
    assert isinstance(reply, Reply) and reply.completion.finish_reason is FinishReason.LENGTH


def test_the_command_evaluates_an_end_point(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("MY_KEY", "s3cret-key")
    place = ["--endpoint", server.url, "--key-variable", "MY_KEY", "--model", "big-model"]
    assert main(["evaluate", *place, "--limit", "3", "--out", str(tmp_path / "out.json")]) == 0
    assert json.loads((tmp_path / "out.json").read_text())[0]["workflow"] == "on_demand"
    assert len(server.seen) == 3
    assert main(["evaluate", *place, "--dtype", "float32"]) == 2
    assert "expected no --dtype beside it" in capsys.readouterr().err


def test_a_key_travels_encrypted_only() -> None:
    with pytest.raises(ConfigError, match="expected https"):
        EndpointPolicy("http://model.example/v1", "m", limits=LIMITS, secret=Secret("s3cret-key", name="key"))

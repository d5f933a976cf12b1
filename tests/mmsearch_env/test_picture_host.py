"""Pictures at public addresses: how long they live, who may see them, and that services are told of them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp.test_utils import TestServer
from fake_services import KEY, ROWS, SERVICES
from yarl import URL

from mmsearch_env.actions import ActionKind
from mmsearch_env.errors import ConfigError, ToolError, ToolUnavailable
from mmsearch_env.images import Image
from mmsearch_env.net.secret import Secret
from mmsearch_env.server.app import SearchServer, ServerSettings
from mmsearch_env.tools import build_tool
from mmsearch_env.tools.fake import FakeSearch
from mmsearch_env.tools.search_tool import ImageQuery, SearchResult, TextQuery
from mmsearch_env.tools.web.picture_host import PictureHost

SIGNING = "signing-key-of-the-host"


def shot(seed: int = 0) -> Image:
    return Image(np.random.default_rng(seed).integers(0, 255, (60, 90, 3)).astype(np.uint8))


@pytest.fixture
def host(tmp_path: Path) -> PictureHost:
    return PictureHost(tmp_path / "pictures", Secret(SIGNING, name="signing key"), "https://pictures.example")


def parts(address: str) -> tuple[str, str, str]:
    url = URL(address)
    return url.name, url.query["until"], url.query["signature"]


def test_an_address_leads_to_the_picture(host: PictureHost) -> None:
    address = host(ImageQuery(shot()))
    assert address.startswith("https://pictures.example/pictures/")
    body = host.opened(*parts(address))
    assert body is not None and (Image.from_bytes(body).width, Image.from_bytes(body).height) == (90, 60)


def test_only_the_part_inside_the_box_is_shown(host: PictureHost) -> None:
    body = host.opened(*parts(host(ImageQuery(shot(), (0.0, 0.0, 0.5, 1.0)))))
    assert body is not None and Image.from_bytes(body).width == 45


def test_the_same_picture_keeps_its_address_for_a_while(host: PictureHost) -> None:
    assert len({host(ImageQuery(shot())) for _ in range(3)}) <= 2
    assert host(ImageQuery(shot(1))).partition("?")[0] != host(ImageQuery(shot(2))).partition("?")[0]


def test_nothing_is_shown_to_who_guesses(host: PictureHost) -> None:
    name, until, signature = parts(host(ImageQuery(shot())))
    later = str(int(until) + 3600)
    assert host.opened(name, until, signature) is not None
    for guess in (
        (name, later, signature),
        (name, until, signature[:-1] + ("0" if signature[-1] != "0" else "1")),
        (name, until, ""),
        (name, "", signature),
        (name, "9" * 400, signature),
        (name, "\u0661\u0662", signature),
        ("0" * 32 + ".jpg", until, signature),
        ("../../etc/passwd", until, signature),
        (name, until, "\u20ac"),
    ):
        assert host.opened(*guess) is None


def test_an_address_expires_and_the_picture_goes(host: PictureHost, monkeypatch: pytest.MonkeyPatch) -> None:
    address = host(ImageQuery(shot()))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 2 * host.lives_s + 1)
    assert host.opened(*parts(address)) is None
    host(ImageQuery(shot(1)))
    assert not (host.folder / parts(address)[0]).exists()


def test_a_picture_shown_again_stays(host: PictureHost) -> None:
    name, _, _ = parts(host(ImageQuery(shot())))
    os.utime(host.folder / name, (1, 1))
    again = host(ImageQuery(shot()))
    assert host.opened(*parts(again)) is not None


def test_a_folder_that_cannot_be_written_is_a_tool_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    host = PictureHost(tmp_path / "file", Secret(SIGNING, name="key"), "https://pictures.example")
    with pytest.raises(ToolUnavailable, match="picture host: expected room"):
        host(ImageQuery(shot()))


def settings_of(name: str, url: str, folder: Path, public_url: str) -> Mapping[str, Any]:
    shown = {"folder": str(folder), "public_url": public_url}
    return {"name": name, "base_url": url, "picture_host": shown, "limits": {"max_tries": 1}}


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERPER_API_KEY", KEY)
    monkeypatch.setenv("MMSEARCH_PICTURE_KEY", SIGNING)


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize("name", ["serper", "searxng"])
def test_a_service_is_given_an_address_at_which_the_server_shows_the_picture(name: str, tmp_path: Path) -> None:
    async def run() -> tuple[SearchResult, bytes, str, int, int]:
        host = PictureHost(tmp_path / "shown", Secret(SIGNING, name="key"))
        tools = {kind: FakeSearch([]) for kind in (ActionKind.TEXT_SEARCH, ActionKind.IMAGE_SEARCH)}
        token = Secret("a-token", name="token")
        server = TestServer(SearchServer(tools, ServerSettings(token=token, pictures=host)).app())
        await server.start_server()
        async with SERVICES[name]().running() as service, aiohttp.ClientSession() as session:
            public = str(server.make_url("")).rstrip("/")
            made = build_tool(ActionKind.IMAGE_SEARCH, settings_of(name, service.url, tmp_path / "shown", public))
            found = await made.search(ImageQuery(shot()), top_k=2)
            await made.aclose()
            asked = service.seen[0]
            address = str((asked["body"] or {}).get("url") or asked["query"]["q"])
            async with session.get(address) as reply:
                body, kind = await reply.read(), reply.content_type
            async with session.get(address.replace("signature=", "signature=0")) as reply:
                refused = reply.status
            async with session.get(public + "/metrics") as reply:
                other = reply.status
        await server.close()
        return found, body, kind, refused, other

    found, body, kind, refused, other = asyncio.run(run())
    assert [hit.url for hit in found.hits] == [url for _, url, _ in ROWS]
    assert (Image.from_bytes(body).width, kind, refused, other) == (90, "image/jpeg", 404, 401)


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize("name", ["serper", "searxng"])
@pytest.mark.parametrize(("fault", "code"), [("rate", "rate_limited"), ("500", "provider_failed"), ("auth", "auth")])
def test_faults_of_reverse_image_search_are_those_of_the_service(
    name: str, fault: str, code: str, tmp_path: Path
) -> None:
    async def run() -> str:
        async with SERVICES[name]().running() as service:
            service.fault = fault
            settings = settings_of(name, service.url, tmp_path, "https://pictures.example")
            made = build_tool(ActionKind.IMAGE_SEARCH, settings)
            with pytest.raises(ToolError) as raised:
                await made.search(ImageQuery(shot()), top_k=2)
            with pytest.raises(ToolError):
                await made.search(TextQuery("words"), top_k=2)
            await made.aclose()
            return raised.value.code

    assert asyncio.run(run()) == code


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize(
    ("host", "message"),
    [
        ({}, "expected folder and public_url, got none.*serve --pictures FOLDER"),
        ({"folder": "x"}, "expected public_url, got none"),
        ({"folder": "x", "public_url": "pictures.example"}, "expected http"),
        ({"folder": "x", "public_url": "https://u:p@pictures.example"}, "expected http"),
        ({"folder": "x", "public_url": "https://pictures.example", "lives_s": 0}, "expected at least 1 second"),
        ({"folder": "x", "public_url": "https://pictures.example", "life": 9}, "got life; mend"),
        ({"folder": "x", "public_url": "https://p.example", "key_variable": "NO_SUCH_KEY"}, "variable NO_SUCH_KEY"),
    ],
)
def test_a_picture_host_that_cannot_be_is_refused(host: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_tool(ActionKind.IMAGE_SEARCH, {"name": "serper", "picture_host": host})


def test_a_secret_that_could_be_guessed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected at least 16 characters, so that nobody guesses it, got 5"):
        PictureHost(tmp_path, Secret("short", name="key"))


def test_the_key_of_a_picture_host_is_shown_to_nobody(host: PictureHost) -> None:
    assert SIGNING not in repr(host) + host(ImageQuery(shot()))

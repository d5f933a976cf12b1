"""Serve searches to other processes: one index, one cache, one set of keys."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web
from rich.console import Console

from mmsearch_env.actions import ActionKind
from mmsearch_env.errors import ConfigError
from mmsearch_env.net.secret import Secret, read_secret
from mmsearch_env.rendering import plain
from mmsearch_env.resources import has_pages
from mmsearch_env.search import parsed_backend
from mmsearch_env.tools import build_tool
from mmsearch_env.tools.web.build import PICTURE_KEY
from mmsearch_env.tools.web.picture_host import PictureHost
from mmsearch_env.worlds import load_world

if TYPE_CHECKING:
    from mmsearch_env.server.app import ServerSettings

TOKEN_VARIABLE = "MMSEARCH_SERVER_TOKEN"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``serve``."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s)")
    parser.add_argument("--port", type=int, default=8600, help="port to listen at; 0 for any (%(default)s)")
    parser.add_argument("--text", default="local", metavar="BACKEND", help="name or JSON of the text search (local)")
    parser.add_argument("--image", default="local", metavar="BACKEND", help="name or JSON of the image search (local)")
    pages = "name or JSON of the page reader (that of --text where it has pages, else local)"
    parser.add_argument("--pages", metavar="BACKEND", help=pages)
    parser.add_argument("--world", default="atlas", help="what local back ends search (atlas)")
    parser.add_argument("--token-file", type=Path, help=f"file with the token clients show, else ${TOKEN_VARIABLE}")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="show a picture_host's pictures (none)")
    parser.add_argument("--picture-key-file", type=Path, help=f"file with the key that signs, else ${PICTURE_KEY}")
    parser.add_argument("--max-searches", type=int, default=256, help="searches at once (%(default)s)")
    parser.add_argument("--max-body-mb", type=float, default=20.0, help="largest request in megabytes (%(default)s)")
    parser.add_argument("--timeout-s", type=float, default=30.0, help="seconds for one search (%(default)s)")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Serve until SIGTERM or Ctrl-C; what is under way is finished. Raises ConfigError."""
    for name in ("max_searches", "max_body_mb", "timeout_s"):
        if not getattr(arguments, name) > 0:
            raise ConfigError(f"--{name.replace('_', '-')}: expected more than 0, got {getattr(arguments, name)}")
    if not 0 <= arguments.port <= 65_535:
        raise ConfigError(f"--port: expected 0 to 65535, got {arguments.port}")
    try:
        from mmsearch_env.server.app import ServerSettings
    except ImportError as error:
        wanted = f"expected the extra 'server', got no {error.name}; install mmsearch-env[server]"
        raise ConfigError(f"serve: {wanted}") from error
    settings = ServerSettings(
        token=_token(arguments),
        pictures=_pictures(arguments),
        max_body_bytes=int(arguments.max_body_mb * 1e6),
        max_searches=arguments.max_searches,
        timeout_s=arguments.timeout_s,
    )
    if settings.token is None and not _is_loopback(arguments.host):
        raise ConfigError(
            f"--host: expected a token beside an address that others reach, got {arguments.host} without one; set "
            f"${TOKEN_VARIABLE} or --token-file"
        )
    asyncio.run(_serve(arguments, settings, console))
    return 0


async def _serve(arguments: argparse.Namespace, settings: ServerSettings, console: Console) -> None:
    from mmsearch_env.server.app import SearchServer

    world = load_world(arguments.world)
    text = parsed_backend(arguments.text)
    pages = parsed_backend(arguments.pages) if arguments.pages else text if has_pages(text) else "local"
    tools = {
        ActionKind.TEXT_SEARCH: build_tool(ActionKind.TEXT_SEARCH, text, world),
        ActionKind.IMAGE_SEARCH: build_tool(ActionKind.IMAGE_SEARCH, parsed_backend(arguments.image), world),
        ActionKind.VISIT_PAGE: build_tool(ActionKind.VISIT_PAGE, pages, world),
    }
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = SearchServer(tools, settings).runner()
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, arguments.host, arguments.port).start()
        except OSError as error:
            place = f"{arguments.host}:{arguments.port}"
            raise ConfigError(
                f"expected an address to listen at, got {place} ({error.strerror}); name another"
            ) from error
        host, port = runner.addresses[0][:2]
        console.print(plain(f"serving at http://{host}:{port}/  (Ctrl-C ends it)"), markup=False)
        await stop.wait()
        console.print("ending what is under way")
    finally:
        await runner.cleanup()


def _token(arguments: argparse.Namespace) -> Secret | None:
    import os

    if arguments.token_file is not None or os.environ.get(TOKEN_VARIABLE):
        file = None if arguments.token_file is None else str(arguments.token_file)
        return read_secret(variable=TOKEN_VARIABLE, file=file)
    return None


def _pictures(arguments: argparse.Namespace) -> PictureHost | None:
    if arguments.pictures is None:
        return None
    file = None if arguments.picture_key_file is None else str(arguments.picture_key_file)
    return PictureHost(arguments.pictures.expanduser(), read_secret(variable=PICTURE_KEY, file=file))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

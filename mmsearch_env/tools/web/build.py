"""From JSON settings to a web search tool.

``{"name": "serper", "key_variable": "SERPER_API_KEY", "reader": "local", "summariser": "passages",
"cache_dir": "~/.cache/mmsearch_env/answers", "budget": {"max_calls": 1000, "max_usd": 5.0}}``
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from mmsearch_env.actions import ActionKind
from mmsearch_env.cache.tool_cache import ToolCache
from mmsearch_env.errors import ConfigError
from mmsearch_env.net.budget import Budget
from mmsearch_env.net.client import HttpClient, ServiceLimits
from mmsearch_env.net.fetch import Fetcher, FetchPolicy
from mmsearch_env.net.secret import Secret, read_secret
from mmsearch_env.tools.chat import ChatModel, chat_client
from mmsearch_env.tools.pages.reader import JINA_URL, JinaReader, LocalReader, PageReader, jina_client
from mmsearch_env.tools.pages.summariser import ChatSummariser, PassageSummariser, Summariser
from mmsearch_env.tools.search_tool import SearchTool
from mmsearch_env.tools.web.answers import Answers
from mmsearch_env.tools.web.brave import BraveSearch
from mmsearch_env.tools.web.engine import Engine
from mmsearch_env.tools.web.picture_host import PictureHost, checked_public_url
from mmsearch_env.tools.web.search_r1 import SearchR1Retriever
from mmsearch_env.tools.web.search_server import ServerSearch
from mmsearch_env.tools.web.search_server import judge as judge_server
from mmsearch_env.tools.web.searxng import SearxngImages, SearxngSearch
from mmsearch_env.tools.web.serpapi import SerpApiGoogle, SerpApiLens
from mmsearch_env.tools.web.serper import SerperLens, SerperSearch
from mmsearch_env.tools.web.tavily import TavilySearch
from mmsearch_env.tools.web.web_pages import WebPages
from mmsearch_env.tools.web.web_search import Service, WebImageSearch, WebTextSearch

T = TypeVar("T")
PICTURE_KEY = "MMSEARCH_PICTURE_KEY"
"""Environment variable with the key that signs the addresses of pictures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSettings:
    """The JSON-able settings of a web search tool.

    Attributes:
        key_variable: environment variable that holds the key; "" for the service's usual one.
        key_file: file that holds the key, in place of the variable.
        base_url: where the service is; "" for its public address.
        country, language: of the results, where the service lets one choose.
        engines: which engines a SearXNG server asks.
        depth: of a Tavily search.
        reader: text search: ``"none"`` (the service's snippets), ``"local"``, ``"jina"``, or a mapping with that name.
        summariser: text search: ``"none"``, ``"passages"``, or ``{"name": "chat", "base_url": ..., "model": ...}``.
        cache_dir: where answers are kept; None keeps none.
        budget: ``max_calls``, ``max_usd``, ``ledger``; see :class:`~mmsearch_env.net.budget.Budget`.
        limits: see :class:`~mmsearch_env.net.client.ServiceLimits`.
        fetch: of pages and thumbnails; see :class:`~mmsearch_env.net.fetch.FetchPolicy`.
        picture_host: image search by serper and searxng: ``folder``, ``public_url``, ``lives_s``, and a signing key's
            place; see :class:`~mmsearch_env.tools.web.picture_host.PictureHost`.
    """

    key_variable: str = ""
    key_file: str | None = None
    base_url: str = ""
    country: str = "us"
    language: str = "en"
    engines: str = ""
    depth: str = "basic"
    reader: str | Mapping[str, Any] = "none"
    summariser: str | Mapping[str, Any] = "none"
    cache_dir: str | None = None
    budget: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, Any] = field(default_factory=dict)
    fetch: Mapping[str, Any] = field(default_factory=dict)
    picture_host: Mapping[str, Any] = field(default_factory=dict)


def build_web_tool(kind: ActionKind, name: str, settings: Mapping[str, Any]) -> SearchTool:
    """The tool of a service for one kind of search.

    Raises:
        ConfigError: the service has no such search, a setting is unknown or wrong, or there is no key.
    """
    engines = {ActionKind.IMAGE_SEARCH: _IMAGE_ENGINES, ActionKind.TEXT_SEARCH: _TEXT_ENGINES}.get(kind, {})
    if name not in engines:
        others = ", ".join(engines) or "reader"
        raise ConfigError(f"tool {name!r}: expected a service with {kind}, got one without; use {others}")
    given = _made(WebSettings, settings, f"tool {name!r}")
    budget = _budget(given.budget, f"tool {name!r}, budget")
    engine = engines[name](given, _made(ServiceLimits, given.limits, f"tool {name!r}, limits"))
    client = HttpClient(engine.name, judge=engine.judge, limits=engine.limits, budget=budget)
    cache = None if given.cache_dir is None else ToolCache(Path(given.cache_dir).expanduser())
    service = Service(engine, client, Answers(cache))
    policy = _made(FetchPolicy, _tuples(given.fetch), f"tool {name!r}, fetch")
    if kind is ActionKind.IMAGE_SEARCH:
        return WebImageSearch(service, Fetcher(policy))
    reader = _reader(given.reader, policy, budget)
    return WebTextSearch(service, reader=reader, summariser=_summariser(given.summariser, reader, budget))


def _key(given: WebSettings, usual: str) -> Secret:
    return read_secret(variable=given.key_variable or usual, file=given.key_file)


def _url(given: WebSettings, name: str) -> str:
    if not given.base_url:
        raise ConfigError(f"tool {name!r}: expected base_url, the address of your server, got none")
    return given.base_url


def _serpapi(given: WebSettings, limits: ServiceLimits) -> Engine:
    return SerpApiGoogle(_key(given, "SERPAPI_API_KEY"), **_place(given), limits=limits)


def _serpapi_lens(given: WebSettings, limits: ServiceLimits) -> Engine:
    return SerpApiLens(_key(given, "SERPAPI_API_KEY"), **_place(given), limits=limits)


def _serper(given: WebSettings, limits: ServiceLimits) -> Engine:
    return SerperSearch(_key(given, "SERPER_API_KEY"), **_place(given), limits=limits)


def _serper_lens(given: WebSettings, limits: ServiceLimits) -> Engine:
    return SerperLens(_key(given, "SERPER_API_KEY"), _picture_host(given, "serper"), **_place(given), limits=limits)


def _brave(given: WebSettings, limits: ServiceLimits) -> Engine:
    return BraveSearch(_key(given, "BRAVE_API_KEY"), **_place(given), limits=limits)


def _tavily(given: WebSettings, limits: ServiceLimits) -> Engine:
    if given.depth not in ("basic", "advanced"):
        raise ConfigError(f"tool 'tavily', depth: expected basic or advanced, got {given.depth!r}")
    where = {"base_url": given.base_url} if given.base_url else {}
    depth: Any = given.depth
    return TavilySearch(_key(given, "TAVILY_API_KEY"), **where, depth=depth, limits=limits)


def _searxng(given: WebSettings, limits: ServiceLimits) -> Engine:
    return SearxngSearch(_url(given, "searxng"), given.language, given.engines, limits)


def _searxng_images(given: WebSettings, limits: ServiceLimits) -> Engine:
    engines = {"engines": given.engines} if given.engines else {}
    return SearxngImages(_url(given, "searxng"), _picture_host(given, "searxng"), **engines, limits=limits)


def _picture_host(given: WebSettings, name: str) -> PictureHost:
    where = f"tool {name!r}, picture_host"
    wanted = _known(given.picture_host, ("folder", "public_url", "lives_s", "key_variable", "key_file"), where)
    if missing := {"folder", "public_url"} - wanted.keys():
        raise ConfigError(
            f"{where}: expected {' and '.join(sorted(missing))}, got none; this service only takes a picture's public "
            "address. Serve a folder with: python -m mmsearch_env serve --pictures FOLDER"
        )
    lives_s = wanted.get("lives_s", 900.0)
    if isinstance(lives_s, bool) or not isinstance(lives_s, (int, float)) or not lives_s >= 1:
        raise ConfigError(f"{where}, lives_s: expected at least 1 second, got {lives_s!r}")
    secret = read_secret(variable=str(wanted.get("key_variable", PICTURE_KEY)), file=wanted.get("key_file"))
    folder = Path(str(wanted["folder"])).expanduser()
    return PictureHost(folder, secret, checked_public_url(str(wanted["public_url"])), float(lives_s))


def _search_r1(given: WebSettings, limits: ServiceLimits) -> Engine:
    secret = _key(given, "") if given.key_variable or given.key_file else None
    return SearchR1Retriever(_url(given, "search_r1"), secret, limits)


def _place(given: WebSettings) -> dict[str, Any]:
    where = {"base_url": given.base_url} if given.base_url else {}
    return {**where, "country": given.country, "language": given.language}


_EngineBuilder = Callable[[WebSettings, ServiceLimits], Engine]
_TEXT_ENGINES: Mapping[str, _EngineBuilder] = {
    "serpapi": _serpapi,
    "serper": _serper,
    "brave": _brave,
    "tavily": _tavily,
    "searxng": _searxng,
    "search_r1": _search_r1,
}
_IMAGE_ENGINES: Mapping[str, _EngineBuilder] = {
    "serpapi": _serpapi_lens,
    "serper": _serper_lens,
    "searxng": _searxng_images,
}
WEB_TOOLS = tuple(dict.fromkeys([*_TEXT_ENGINES, *_IMAGE_ENGINES]))
"""Names that :func:`build_web_tool` knows."""


def build_page_tool(settings: Mapping[str, Any]) -> SearchTool:
    """A reader of pages, from those of :class:`WebSettings` that concern one. Raises ConfigError."""
    names = ("reader", "summariser", "cache_dir", "budget", "fetch")
    given = _made(WebSettings, {"reader": "local", **_known(settings, names, "tool 'reader'")}, "tool 'reader'")
    budget = _budget(given.budget, "tool 'reader', budget")
    policy = _made(FetchPolicy, _tuples(given.fetch), "tool 'reader', fetch")
    reader = _reader(given.reader, policy, budget)
    if reader is None:
        raise ConfigError("tool 'reader': expected local or jina as reader, got none")
    cache = None if given.cache_dir is None else ToolCache(Path(given.cache_dir).expanduser())
    return WebPages(reader, _summariser(given.summariser, reader, budget), Answers(cache))


def build_server_tool(kind: ActionKind, settings: Mapping[str, Any]) -> SearchTool:
    """The client of a search server; settings are ``base_url``, a key's place and ``limits``. Raises ConfigError."""
    wanted = _known(settings, ("base_url", "key_variable", "key_file", "limits"), "tool 'server'")
    if not wanted.get("base_url"):
        raise ConfigError("tool 'server': expected base_url, the address of your server, got none")
    limits = _made(ServiceLimits, {"max_bytes": 50_000_000, **wanted.get("limits", {})}, "tool 'server', limits")
    client = HttpClient("search server", judge=judge_server, limits=limits)
    return ServerSearch(kind, client, str(wanted["base_url"]), _optional_key(wanted))


def _reader(spec: str | Mapping[str, Any], policy: FetchPolicy, budget: Budget) -> PageReader | None:
    name, settings = _named(spec, "reader")
    if name == "none":
        return None
    if name == "local":
        if importlib.util.find_spec("trafilatura") is None:
            raise ConfigError("reader 'local': expected the extra 'web', got no trafilatura; install mmsearch-env[web]")
        return LocalReader(Fetcher(policy), **_known(settings, ("parse_s", "processes"), "reader 'local'"))
    if name == "jina":
        wanted = _known(settings, ("key_variable", "key_file", "base_url", "limits"), "reader 'jina'")
        limits = _made(ServiceLimits, wanted.get("limits", {}), "reader 'jina', limits") if "limits" in wanted else None
        return JinaReader(jina_client(budget, limits), _optional_key(wanted), wanted.get("base_url", JINA_URL))
    raise ConfigError(f"reader: expected none, local or jina, got {name!r}")


def _summariser(spec: str | Mapping[str, Any], reader: PageReader | None, budget: Budget) -> Summariser | None:
    name, settings = _named(spec, "summariser")
    if name == "none":
        return None
    if reader is None:
        raise ConfigError(f"summariser: expected a reader beside it, got {name!r} without; set reader to local or jina")
    if name == "passages":
        return PassageSummariser()
    if name == "chat":
        names = ("base_url", "model", "key_variable", "key_file", "price_usd", "limits")
        wanted = _known(settings, names, "summariser 'chat'")
        if missing := {"base_url", "model"} - wanted.keys():
            raise ConfigError(f"summariser 'chat': expected {' and '.join(sorted(missing))}, got none")
        limits = _made(ServiceLimits, wanted["limits"], "summariser 'chat', limits") if "limits" in wanted else None
        return ChatSummariser(
            ChatModel(
                chat_client(budget, limits),
                str(wanted["base_url"]),
                str(wanted["model"]),
                _optional_key(wanted),
                float(wanted.get("price_usd", 0.0)),
            )
        )
    raise ConfigError(f"summariser: expected none, passages or chat, got {name!r}")


def _optional_key(settings: Mapping[str, Any]) -> Secret | None:
    if "key_file" in settings or "key_variable" in settings:
        return read_secret(variable=str(settings.get("key_variable", "")), file=settings.get("key_file"))
    return None


def _budget(settings: Mapping[str, Any], where: str) -> Budget:
    wanted = dict(_known(settings, ("max_calls", "max_usd", "ledger"), where))
    ledger = wanted.pop("ledger", None)
    return Budget(**wanted, ledger=None if ledger is None else Path(ledger).expanduser())


def _named(spec: str | Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    settings = {"name": spec} if isinstance(spec, str) else dict(spec)
    return str(settings.pop("name", "")), settings


def _known(settings: Mapping[str, Any], names: tuple[str, ...], where: str) -> Mapping[str, Any]:
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{where}: expected a mapping, got {settings!r}")
    if unknown := sorted(settings.keys() - set(names)):
        raise ConfigError(f"{where}: expected {', '.join(names)}, got {', '.join(unknown)}; mend the setting's name")
    return settings


def _made(kind: type[T], settings: Mapping[str, Any], where: str) -> T:
    """A dataclass from settings of its fields' types. Raises ConfigError."""
    known: tuple[Field[Any], ...] = fields(kind)  # type: ignore[arg-type]
    _known(settings, tuple(item.name for item in known), where)
    for item in known:
        if item.name in settings:
            usual = item.default if item.default is not MISSING else None
            _check_type(settings[item.name], usual, f"{where}, {item.name}")
    return kind(**settings)


def _check_type(value: Any, usual: Any, where: str) -> None:
    if usual is None or value is None:
        return
    kinds: tuple[type, ...] = (int, float) if isinstance(usual, float) else (type(usual),)
    if isinstance(usual, str):
        kinds = (str, Mapping) if where.endswith(("reader", "summariser")) else (str,)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise ConfigError(f"{where}: expected something like {usual!r}, got {value!r}")
    if isinstance(value, (int, float)) and not value > 0:
        raise ConfigError(f"{where}: expected a number above 0, got {value!r}")


def _tuples(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """JSON has lists where the policy has tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}

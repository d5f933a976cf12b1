"""Recipes: a YAML file and ``section.key=value`` overrides become a :class:`~training.config.RunConfig`.

Nothing is ignored: an unknown key, a value of the wrong type and a value out of range are refused with the key, the
value and what was expected.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import yaml

from mmsearch_env.errors import ConfigError
from training.config import About, RunConfig
from training.config.consistency import check_together

_BUNDLED = Path(__file__).parents[1] / "configs"
_EXPONENT = re.compile(r"[+-]?[0-9]+([eE][+-]?[0-9]+)")


def read_config(source: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration in ``source``, with overrides applied in order.

    Args:
        source: a YAML file, or the name of a bundled recipe (``quickstart``).
        overrides: ``key=value`` or ``section.key=value``; the value is read as YAML.

    Raises:
        ConfigError: no such file, not YAML, or a key or value that cannot be used.
    """
    tree = _read_yaml(config_path(source))
    for override in overrides:
        _put(tree, *_parse_override(override))
    config = config_from_mapping(tree)
    check_together(config)
    return config


def config_path(source: str) -> Path:
    """The file a recipe's name or path stands for. Raises ConfigError."""
    names = sorted(path.stem for path in _BUNDLED.glob("*.yaml"))
    if source in names:
        return _BUNDLED / f"{source}.yaml"
    if not Path(source).is_file():
        hint = _did_you_mean(source, names)
        raise ConfigError(f"expected a YAML file or a bundled recipe ({', '.join(names)}), got {source!r}{hint}")
    return Path(source)


def config_from_mapping(tree: Mapping[str, Any]) -> RunConfig:
    """A plain nested mapping as a checked configuration. Raises ConfigError."""
    config = _section(RunConfig, tree, "")
    assert isinstance(config, RunConfig)
    return config


def to_mapping(config: RunConfig) -> dict[str, Any]:
    """The configuration as plain nested dictionaries, as ``config_from_mapping`` reads it."""
    return {item.name: _plain(getattr(config, item.name)) for item in dataclasses.fields(config)}


def fields_of(section: type[Any]) -> dict[str, tuple[Any, About | None]]:
    """Name -> (type, About) of every field of a section; a nested section has no About."""
    hints = get_type_hints(section, include_extras=True)
    return {item.name: _split_annotation(hints[item.name]) for item in dataclasses.fields(section)}


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: expected a readable file, got {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected YAML, got {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, got {type(tree).__name__}")
    return tree


def _parse_override(override: str) -> tuple[list[str], Any]:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"expected section.key=value, got {override!r}")
    try:
        return key.strip().split("."), yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: expected a YAML value, got {text!r}") from error


def _put(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    """Set a nested value in a tree of our own."""
    *sections, last = keys
    for section in sections:
        if not isinstance(tree.get(section), dict):
            tree[section] = {}
        tree = tree[section]
    tree[last] = value


def _section(kind: type[Any], tree: Any, path: str) -> Any:
    """Build one dataclass from a mapping; ``path`` is the key prefix for messages, "" or "section."."""
    known = fields_of(kind)
    if not isinstance(tree, Mapping):
        keys = ", ".join(path + key for key in known)
        raise ConfigError(f"{path.rstrip('.')}: expected a section with keys, got {tree!r}; set one of {keys}")
    for key in tree:
        if key not in known:
            raise ConfigError(_unknown(str(key), known, path))
    return kind(**{key: _value(known[key], value, path + key) for key, value in tree.items()})


def _unknown(key: str, known: Mapping[str, Any], path: str) -> str:
    hint = _did_you_mean(key, known) or _did_you_mean_elsewhere(key)
    place = f"section {path.rstrip('.')!r}" if path else "a recipe"
    return f"{path}{key}: unknown key{hint}; {place} knows {', '.join(known)}"


def _did_you_mean(key: str, known: Any) -> str:
    near = difflib.get_close_matches(key, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _did_you_mean_elsewhere(key: str) -> str:
    for name, (kind, about) in fields_of(RunConfig).items():
        if about is None and key in fields_of(kind):
            return f"; did you mean '{name}.{key}'?"
    return ""


def _value(expected: tuple[Any, About | None], value: Any, key: str) -> Any:
    """One checked value; a whole number and ``1e-5`` may stand for a fraction, nothing else is converted."""
    kind, about = expected
    if about is None:
        return _section(kind, value, f"{key}.")
    if get_origin(kind) is Literal:
        return _choice(get_args(kind), value, key)
    if get_origin(kind) is Mapping:
        return _mapping((get_args(kind)[1], about), value, key)
    if isinstance(kind, types.UnionType):  # a number or none
        if value is None:
            return None
        (kind,) = (one for one in get_args(kind) if one is not types.NoneType)
    value = _as_fraction(value) if kind is float else value
    if type(value) is not kind:
        raise ConfigError(f"{key}: expected {_type_name(kind)}, got {value!r}")
    if isinstance(value, int | float) and not (math.isfinite(value) and about.accepts(value)):
        raise ConfigError(f"{key}: expected {_type_name(kind)} {about.range_text}, got {value!r}")
    return value


def _choice(choices: tuple[Any, ...], value: Any, key: str) -> Any:
    if value in choices:
        return value
    words = " or ".join(repr(choice) for choice in choices)
    raise ConfigError(f"{key}: expected {words}, got {value!r}{_did_you_mean(str(value), choices)}")


def _mapping(expected: tuple[Any, About | None], value: Any, key: str) -> Mapping[str, Any]:
    """Keywords with values of the type that is expected, Any leaving them as they are."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise ConfigError(f"{key}: expected keywords and their values, got {value!r}")
    checked = (
        value if expected[0] is Any else {name: _value(expected, item, f"{key}.{name}") for name, item in value.items()}
    )
    return types.MappingProxyType(dict(checked))


def _as_fraction(value: Any) -> Any:
    """YAML 1.1 reads ``1`` as a whole number and ``1e-5`` as text; both are meant as fractions here."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if whole or (isinstance(value, str) and _EXPONENT.fullmatch(value)) else value


def _type_name(kind: Any) -> str:
    return {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}.get(kind, str(kind))


def _split_annotation(hint: Any) -> tuple[Any, About | None]:
    if get_origin(hint) is not Annotated:
        return hint, None
    kind, about, *_ = get_args(hint)
    return kind, about


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    return dict(value) if isinstance(value, Mapping) else value

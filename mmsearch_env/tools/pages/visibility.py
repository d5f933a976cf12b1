"""What of an HTML page a person would not see, as far as the page tells by itself.

That is by attributes, by styles and by the style sheets written into it; a sheet that lies elsewhere is not fetched. Of
several rules for an element the last one counts, whatever its weight.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import cssselect
import tinycss2
from lxml.cssselect import CSSSelector
from lxml.etree import XPathError
from tinycss2.color4 import parse_color

_UNSEEN_TAGS = ("script", "style", "noscript", "template")
_FAR = {"px": -500.0, "pt": -400.0, **dict.fromkeys(("em", "rem"), -40.0), **dict.fromkeys(("vw", "vh"), -90.0)}
"""Shifted as far to the left or to the top, text lies outside of the page."""
_TINY_FONT, _TINY_BOX, _FAINT = 2.0, 1.0, 0.05
_MOST_STYLE, _MOST_SHEET, _MOST_SELECTOR, _MOST_RULES = 4_000, 500_000, 500, 2_000
"""Characters that are read of a style, of all sheets and of a selector, and rules that are applied."""

_Traits = dict[str, Any]
"""What an element's style says, by property: True where that hides it; colours as they are."""
_Number = tuple[float, str]
"""A number and its unit."""


def _shifts(words: Sequence[str], numbers: Sequence[_Number]) -> bool:
    return any(number <= _FAR.get(unit, -math.inf) for number, unit in numbers)


def _is_tiny(words: Sequence[str], numbers: Sequence[_Number]) -> bool:
    return any(number <= _TINY_BOX and unit in ("", "px") for number, unit in numbers)


_JUDGES: Mapping[str, Callable[[Sequence[str], Sequence[_Number]], bool]] = {
    "display": lambda words, numbers: "none" in words,
    "visibility": lambda words, numbers: "hidden" in words or "collapse" in words,
    "content-visibility": lambda words, numbers: "hidden" in words,
    "opacity": lambda words, numbers: any(number <= _FAINT for number, _ in numbers),
    "font-size": lambda words, numbers: any(
        n == 0.0 or (n <= _TINY_FONT and unit in ("px", "pt")) for n, unit in numbers
    ),
    "scale": lambda words, numbers: any(number == 0.0 for number, _ in numbers),
    "clip": lambda words, numbers: "rect" in words and all(number <= 1.0 for number, _ in numbers),
    "clip-path": lambda words, numbers: (
        ("inset" in words and any(number >= 50.0 for number, _ in numbers))
        or ("circle" in words and any(number == 0.0 for number, _ in numbers[:1]))
    ),
    "transform": lambda words, numbers: (
        _shifts(words, numbers)
        or (words[:1] in (["scale"], ["scalex"], ["scaley"], ["scale3d"]) and numbers[0][0] == 0.0)
    ),
    **dict.fromkeys(("left", "top", "margin-left", "margin-top", "text-indent", "translate"), _shifts),
    **dict.fromkeys(("width", "height", "max-width", "max-height"), _is_tiny),
    **dict.fromkeys(("overflow", "overflow-x", "overflow-y"), lambda words, _: "hidden" in words or "clip" in words),
}
"""Whether the words and numbers of a property's value hide, or with a box and its overflow, help to."""
_BOX = ("width", "height", "max-width", "max-height")
_OVERFLOW = ("overflow", "overflow-x", "overflow-y")
_COLOURS = {"color": "color", "background": "ground", "background-color": "ground"}


def drop_hidden(tree: Any) -> None:
    """Remove from a parsed page what a person would not see of it.

    Args:
        tree: element of lxml; changed in place.
    """
    styled: dict[Any, _Traits] = defaultdict(dict)
    for selector, traits in _rules(tree):
        for element in _selected(tree, selector):
            styled[element].update(traits)
    for element in list(tree.iter()):
        traits = styled.get(element, {}) | _traits(str(element.get("style") or "")[:_MOST_STYLE])
        is_hidden = element.tag in _UNSEEN_TAGS or element.get("hidden") is not None or _hides(traits)
        if is_hidden and element.getparent() is not None:
            element.drop_tree()


def _rules(tree: Any) -> Iterator[tuple[str, _Traits]]:
    """Selector and traits of the first rules that hide or show something."""
    sheets = [sheet.text or "" for sheet in tree.iter("style") if _is_for_screens(str(sheet.get("media") or "all"))]
    found = 0
    for rule in _on_screen(tinycss2.parse_stylesheet("\n".join(sheets)[:_MOST_SHEET], skip_comments=True)):
        selector = str(tinycss2.serialize(rule.prelude)).strip()
        if (traits := _traits(rule.content)) and len(selector) <= _MOST_SELECTOR:
            yield selector, traits
            found += 1
        if found == _MOST_RULES:
            return


def _on_screen(rules: Sequence[Any]) -> Iterator[Any]:
    """The plain rules, also those inside of conditions that hold on every screen."""
    for rule in rules:
        if rule.type == "qualified-rule":
            yield rule
        elif rule.type == "at-rule" and rule.content is not None:
            condition = str(tinycss2.serialize(rule.prelude)).strip().lower()
            if rule.lower_at_keyword in ("layer", "supports") or (
                rule.lower_at_keyword == "media" and _is_for_screens(condition)
            ):
                yield from _on_screen(tinycss2.parse_rule_list(rule.content, skip_comments=True))


def _is_for_screens(media: str) -> bool:
    return media.lower().strip() in ("all", "screen", "only screen")


def _selected(tree: Any, selector: str) -> list[Any]:
    try:
        return list(CSSSelector(selector, translator="html")(tree))
    except (cssselect.SelectorError, XPathError, ValueError):  # of a kind that no library here knows
        return []


def _traits(style: Any) -> _Traits:
    """What a style says; as text, or as parsed tokens."""
    if not style:
        return {}
    traits: _Traits = {}
    for declared in tinycss2.parse_blocks_contents(style, skip_comments=True, skip_whitespace=True):
        if declared.type == "declaration":
            traits |= _trait(declared.lower_name, [token for token in declared.value if token.type != "whitespace"])
    return traits


def _trait(name: str, value: Sequence[Any]) -> _Traits:
    if name in _COLOURS:
        return {_COLOURS[name]: next((colour for token in value if (colour := parse_color(token)) is not None), None)}
    if name not in _JUDGES:
        return {}
    words = [word for token in value if (word := getattr(token, "lower_value", "") or getattr(token, "lower_name", ""))]
    return {name: _JUDGES[name](words, list(_numbers(value)))}


def _numbers(tokens: Sequence[Any]) -> Iterator[_Number]:
    """Numbers and their units, also those inside of functions."""
    for token in tokens:
        if token.type in ("number", "dimension", "percentage"):
            yield float(token.value), "%" if token.type == "percentage" else getattr(token, "lower_unit", "")
        elif token.type == "function":
            yield from _numbers(token.arguments)


def _hides(traits: _Traits) -> bool:
    hides = {name for name, value in traits.items() if value is True}
    if hides.difference((*_BOX, *_OVERFLOW)) or (hides.intersection(_BOX) and hides.intersection(_OVERFLOW)):
        return True
    colour = traits.get("color")
    if colour is None or isinstance(colour, str):  # a word for another element's colour
        return False
    return bool(colour.alpha <= _FAINT) or colour == traits.get("ground")

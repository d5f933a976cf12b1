"""What of an HTML page a person would not see, as far as an element says so itself: by its tag, attributes and style.

Style sheets are not read: to know what they hide takes a browser.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tinycss2
from tinycss2.color4 import parse_color

_UNSEEN_TAGS = ("script", "style", "noscript", "template")
_MOST_STYLE = 4_000
"""Characters that are read of a style."""
_FAR = {"px": -500.0, "pt": -400.0, "em": -40.0, "rem": -40.0, "vw": -90.0, "vh": -90.0}
"""Shifted as far to the left or to the top, text lies outside of the page."""
_INHERITED = ("visibility", "font-size")
"""What is inside may set these anew, and be seen."""


def drop_hidden(tree: Any) -> None:
    """Remove from a parsed page what a person would not see of it.

    Args:
        tree: element of lxml; changed in place.
    """
    for element in [element for element in tree.iter() if _is_hidden(element)]:
        if element.getparent() is not None:
            element.drop_tree()


def _is_hidden(element: Any) -> bool:
    if element.tag in _UNSEEN_TAGS or element.get("hidden") is not None:
        return True
    style = element.get("style")
    return bool(style) and _hides(_declared(style), element)


def _declared(style: str) -> Mapping[str, list[Any]]:
    """The properties of a style with the tokens of their values."""
    found = tinycss2.parse_blocks_contents(style[:_MOST_STYLE], skip_comments=True, skip_whitespace=True)
    return {
        one.lower_name: [token for token in one.value if token.type not in ("whitespace", "comment")]
        for one in found
        if one.type == "declaration"
    }


def _hides(declared: Mapping[str, list[Any]], element: Any) -> bool:
    for name, value in declared.items():
        # Only values of one token are judged: what is computed from several may be anything.
        if len(value) == 1 and name in _JUDGES and _JUDGES[name](value[0]):
            inside = (str(child.get("style") or "") for child in element.iterdescendants())
            if name not in _INHERITED or not any(name in style for style in inside):
                return True
    return _is_closed_box(declared) or _is_out_of_place(declared) or _has_no_colour(declared)


def _is_word(*words: str) -> Callable[[Any], bool]:
    return lambda token: token.type == "ident" and token.lower_value in words


def _number(token: Any) -> float | None:
    return float(token.value) if token.type in ("number", "dimension", "percentage") else None


def _is_faint(token: Any) -> bool:
    return token.type == "number" and float(token.value) <= 0.05


def _is_nothing(token: Any) -> bool:
    return _number(token) == 0.0


def _is_far(token: Any) -> bool:
    return token.type == "dimension" and float(token.value) <= _FAR.get(token.lower_unit, float("-inf"))


def _arguments(token: Any, *names: str) -> list[float] | None:
    """The numbers a function is given, in order; None for another function, or where something else is among them."""
    if token.type != "function" or token.lower_name not in names:
        return None
    given = [one for one in token.arguments if one.type != "whitespace" and one != ","]
    numbers = [number for one in given if (number := _number(one)) is not None]
    return numbers if len(numbers) == len(given) > 0 else None


def _is_scaled_away(token: Any) -> bool:
    if (shifts := [one for one in getattr(token, "arguments", ()) if one.type == "dimension"]) and token.lower_name in (
        "translate",
        "translatex",
        "translatey",
    ):
        return any(_is_far(one) for one in shifts)
    return 0.0 in (_arguments(token, "scale", "scalex", "scaley", "scale3d") or ())


def _is_clipped(token: Any) -> bool:
    if (numbers := _arguments(token, "rect")) is not None:
        return all(number <= 1.0 for number in numbers)
    return any(number >= 50.0 for number in _arguments(token, "inset") or ())


_JUDGES: Mapping[str, Callable[[Any], bool]] = {
    "display": _is_word("none"),
    "visibility": _is_word("hidden", "collapse"),
    "content-visibility": _is_word("hidden"),
    "opacity": _is_faint,
    "font-size": _is_nothing,
    "scale": _is_nothing,
    "text-indent": _is_far,
    "transform": _is_scaled_away,
    "clip": _is_clipped,
    "clip-path": _is_clipped,
}
"""Whether the only token of a property's value hides the element."""


def _one(declared: Mapping[str, list[Any]], name: str) -> Any:
    """The only token of a value; None where there are more or there is none."""
    value = declared.get(name, [])
    return value[0] if len(value) == 1 else None


def _is_closed_box(declared: Mapping[str, list[Any]]) -> bool:
    """No room, and what does not fit is cut off."""
    sides = (_one(declared, name) for name in ("width", "height", "max-width", "max-height"))
    is_small = any(side is not None and (number := _number(side)) is not None and number <= 1.0 for side in sides)
    cut = _one(declared, "overflow")
    return is_small and cut is not None and _is_word("hidden", "clip")(cut)


def _is_out_of_place(declared: Mapping[str, list[Any]]) -> bool:
    position = _one(declared, "position")
    if position is None or not _is_word("absolute", "fixed", "relative")(position):
        return False
    return any((shift := _one(declared, name)) is not None and _is_far(shift) for name in ("left", "top"))


def _has_no_colour(declared: Mapping[str, list[Any]]) -> bool:
    """Transparent, or of the colour of its own ground; a ground may be cut to the shape of its text."""
    if "background-clip" in declared or "-webkit-background-clip" in declared:
        return False
    text, ground = (
        None if token is None else parse_color(token)
        for token in (_one(declared, "color"), _one(declared, "background-color") or _one(declared, "background"))
    )
    if text is None or isinstance(text, str):  # a word for another element's colour
        return False
    if text.alpha <= 0.05:
        return True
    return ground is not None and not isinstance(ground, str) and ground.alpha >= 0.95 and ground == text

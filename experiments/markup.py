"""HTML in which everything is escaped that is not HTML already: the one place where text becomes HTML."""

from __future__ import annotations

from html import escape
from typing import Any

_VOID = ("br", "img", "meta")  # elements without an end


class Html(str):
    """Text that is HTML already. Only :func:`element` and :func:`join` make it, and constants of this program."""

    __slots__ = ()


def join(*parts: Any) -> Html:
    """Parts one after the other; what is no :class:`Html` is escaped.

    >>> join("a < b", Html("<br>"), 3)
    'a &lt; b<br>3'
    """
    return Html("".join(part if isinstance(part, Html) else escape(str(part)) for part in parts))


def element(name: str, *parts: Any, **attributes: Any) -> Html:
    """``<name attribute="value">parts</name>``. An attribute that is a word of Python ends in an underscore.

    >>> element("p", "a < b ", element("em", "c"), class_='"quoted"')
    '<p class="&quot;quoted&quot;">a &lt; b <em>c</em></p>'
    """
    given = "".join(f' {key.rstrip("_")}="{escape(str(value))}"' for key, value in attributes.items())
    return Html(f"<{name}{given}>" + ("" if name in _VOID else f"{join(*parts)}</{name}>"))

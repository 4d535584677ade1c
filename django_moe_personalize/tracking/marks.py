"""Marks: show the browser's script which part of a page belongs to an experience.

A mark is an attribute of the experience's first element. If the experience begins with text, the mark is a comment.
The comment ``<!--/moe-->`` ends the experience. So no mark is an element that the site's CSS could count, or that can't
be inside a table or list. The attribute is left if the site removes comments to make its pages smaller.
"""

from __future__ import annotations

import functools
import re
from html import unescape
from typing import Final

from django.http.response import HttpResponseBase

_ATTRIBUTE: Final = ' data-moe-experience="'
_WATCH: Final = ' data-moe-watch=""'
_END: Final = "<!--/moe-->"

TRACE: Final = b"!--/moe--"
"""A page with a mark has these bytes, even if other code has escaped the mark."""

_FIRST_TAG = re.compile(r"(?:\s|<!--(?!moe).*?-->)*+<[a-z][^\s/>]*+", re.IGNORECASE | re.DOTALL)

_IN_TAG = r"""(?:[^"'<>]++|"[^"]*"|'[^']*')*+"""
_START_TAGS = re.compile(
    rf"<!--.*?(?:-->|\Z)|<(script|style|textarea|title)\b({_IN_TAG}).*?(?:</\1|\Z)|<[a-z][^\s/>]*+({_IN_TAG})",
    re.IGNORECASE | re.DOTALL,
)
_ATTRIBUTES = re.compile(r"""([^\s"'<>/=]+)(?:\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+)))?""")


def find_clickable(body: str) -> tuple[str, ...]:
    """Return the names in the ``data-moe-click`` attributes of ``body``, but not of its comments and its text."""
    if "data-moe-click" not in body.lower():
        return ()
    tags = ("".join(match) for _, *match in _START_TAGS.findall(body))
    attributes = [found for tag in tags for found in _ATTRIBUTES.findall(tag)]
    # The browser reports the value of an attribute without HTML entities.
    names = (unescape("".join(value)) for name, *value in attributes if name.lower() == "data-moe-click")
    return tuple(dict.fromkeys(names))


def add_mark(body: str, token: str, *, is_watched: bool, has_comments: bool = True) -> str:
    """Return ``body`` with ``token``. Without comments, only a body that begins with an element gets the token.

    The token has no spaces, because the first element may be the first of several experiences. The outermost comes
    first in the attribute.
    """
    tag = _FIRST_TAG.match(body)
    end = _END if has_comments else ""
    if tag is None:
        return f"<!--moe{'-watch' if is_watched else ''} {token}-->{body}{end}" if has_comments else body
    start, rest = tag[0], body[tag.end() :]
    if rest.startswith(_ATTRIBUTE):
        return f"{start}{_ATTRIBUTE}{token} {rest.removeprefix(_ATTRIBUTE)}{end}"
    return f'{start}{_ATTRIBUTE}{token}"{_WATCH if is_watched else ""}{rest}{end}'


# The search for misplaced marks knows only the parts of HTML that are text for a browser: comments, attributes and some
# elements. These patterns match such a part up to a mark.
_RAW: Final = (b"script", b"style", b"textarea", b"title", b"xmp")
_ANY_MARK: Final = rb"""(?:<!--(?:/moe|moe(?:-watch)? \S*?)-->| data-moe-experience="[^"]*+"(?: data-moe-watch="")?+)"""
_ESCAPED_MARK: Final = (
    _ANY_MARK.replace(b'[^"]', b"[^&]").replace(b'"', b"&quot;").replace(b"<", b"&lt;").replace(b"-->", b"--&gt;")
)
_NO_MARK: Final = rb"<(?!!--/?moe|[a-zA-Z][^\s/>]*+ data-moe-experience=)"
_VALUE: Final = rb"""(?:"(?:[^"<]++|%s)*+|'(?:[^'<]++|%s)*+)""" % (_NO_MARK, _NO_MARK)
_TAG: Final = rb"""</?(?!(?i:%s)\b)[a-zA-Z](?:[^"'<>]++|"(?:[^"<]++|%s)*+"|'(?:[^'<]++|%s)*+')*+""" % (
    b"|".join(_RAW),
    _NO_MARK,
    _NO_MARK,
)
_COMMENT: Final = rb"<!--(?!/?moe)(?:[^<-]++|-(?!->)|%s)*+" % _NO_MARK
_ELEMENTS: Final = [
    rb"<(?i:%s)\b%s>(?:[^<]++|(?!</(?i:%s))%s)*+" % (name, _IN_TAG.encode(), name, _NO_MARK) for name in _RAW
]


@functools.cache
def _compile_misplaced() -> re.Pattern[bytes]:
    # This takes 3 ms, which a process without marks shouldn't spend.
    return re.compile(
        # All that is before the part with the mark. A page of 114 KB with 4,500 tags takes 1.2 ms.
        rb"((?:[^<]++|%s-->|<!--/?moe.*?-->|<![^-]|%s>|%s|<(?![a-zA-Z/!]))*+)"
        % (_COMMENT, _TAG, b"|".join(element + b"</" for element in _ELEMENTS))
        # The part with the mark.
        + rb"((?:%s|%s|%s%s?)(?:<[a-zA-Z][^\s/>]*+)?)" % (b"|".join(_ELEMENTS), _COMMENT, _TAG, _VALUE)
        + _ANY_MARK,
        re.DOTALL,
    )


def remove_misplaced(response: HttpResponseBase) -> None:
    """Remove the marks that a browser would show as text, or that would break an attribute or a script.

    A tag can't know where its output goes: into a title, an attribute or another place where HTML is text. Other code
    may also have escaped the output. JSON and scripts keep their marks, because they may carry HTML. A response of any
    other type loses all marks.
    """
    content: bytes = response.content  # type: ignore[attr-defined]
    kind = response.headers.get("Content-Type", "")
    if "html" not in kind:
        clean = content if "json" in kind or "script" in kind else re.sub(_ANY_MARK, b"", content)
    else:
        clean, position = re.sub(_ESCAPED_MARK, b"", content) if b"&lt;!--/moe" in content else content, 0
        while found := _compile_misplaced().match(clean, position):
            position = found.end(1)
            clean = clean[: found.end(2)] + clean[found.end() :]
    if clean != content:
        response.content = clean  # type: ignore[attr-defined]
        if response.has_header("Content-Length"):
            response.headers["Content-Length"] = str(len(clean))

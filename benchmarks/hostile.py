"""Bodies of fetch responses just below the size limit that take as much work as possible, by name."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable

SIZE = 256 * 1024

_HEAVY = 2_900
"""The values of an experience that the package still builds."""


def _wrap(payload: str, context: str = "{}") -> str:
    if payload.startswith("{"):
        payload = f'{{"Title":"Hi",{payload[1:]}'
    return f'{{"experiences":{{"KEY":{{"payload":{payload},"experience_context":{context}}}}}}}'


def _fill(item: str, frame: Callable[[str], str], size: int) -> str:
    """Return ``frame(items)`` with as many items as fit into ``size`` bytes. ``%d`` in an item becomes its number."""
    room, items = size - len(frame("")), []
    while (room := room - len(text := item.replace("%d", str(len(items)))) - 1) > 0:
        items.append(text)
    return frame(",".join(items))


def _fill_text(text: str, size: int) -> str:
    """Return a variable whose text holds ``text`` as often as fits."""
    return _wrap(f'{{"a":{{"data_type":"json","value":"{text * ((size - 200) // len(text))}"}}}}')


def _list(items: str) -> str:
    return _wrap(f'{{"a":{{"value":[{items}]}}}}')


def _add_heavy(size: int) -> str:
    """Return an experience that is just small enough, beside experiences that are much too large."""
    offerings = ",".join(['{"offering_context":{"a":1}}'] * (_HEAVY // 6))
    head = f'{{"experiences":{{"KEY":{{"payload":{{"Title":"Hi","a":[{offerings}]}}}},"other":{{"payload":{{"a":['
    return _fill("[" * 50 + "]" * 50, lambda items: head + items + "]}}}}", size)


def _hide(size: int) -> str:
    """Return JSON in a text that hides its punctuation from a count of the body."""
    comma, opening, closing = (rf"\u00{ord(sign):x}" for sign in ",[]")
    start = rf"{opening}1"
    return _wrap(f'{{"a":{{"data_type":"json","value":"{start}{f"{comma}{opening}{closing}" * (size // 19)}"}}}}')


OFFERING = r"{\"offering_context\":{\"a\":1},\"offering_content\":\"{}\"},"
BUILDERS: dict[str, Callable[[int], str]] = {
    "empty objects": lambda size: _fill("{}", _list, size),
    "empty lists": lambda size: _fill("[]", _list, size),
    "empty texts": lambda size: _fill('""', _list, size),
    "numbers": lambda size: _fill("1", _list, size),
    "long numbers": lambda size: _fill("9" * 300, _list, size),
    "one endless number": lambda size: _wrap(f'{{"a":{"9" * (size - 100)}}}'),
    "number beyond all": lambda size: _fill("1e999", _list, size),
    "deep lists": lambda size: _fill("[" * 50 + "]" * 50, _list, size),
    "deep objects": lambda size: _fill('{"":' * 50 + "1" + "}" * 50, _list, size),
    "deeper than any": lambda size: _wrap("[" * (size // 2 - 100) + "]" * (size // 2 - 100)),
    "variables": lambda size: _fill('"v%d":{"value":"1","data_type":"number"}', lambda s: _wrap(f"{{{s}}}"), size),
    "the same name": lambda size: _fill('"v":1', lambda s: _wrap(f"{{{s}}}"), size),
    "context": lambda size: _fill('"v%d":1', lambda s: _wrap('{"a":1}', f"{{{s}}}"), size),
    "offerings": lambda size: _fill('{"offering_context":{"a":1}}', _list, size),
    "offerings in a text": lambda size: _wrap(f'{{"a":"[{OFFERING * (size // len(OFFERING) - 3)}{OFFERING[:-1]}]"}}'),
    "JSON in a text": lambda size: _wrap(f'{{"a":{{"data_type":"json","value":"[{"{}," * (size // 3 - 50)}1]"}}}}'),
    "JSON in texts": lambda size: _fill(
        '"v%d":{"value":"[[],[],[],[],[]]","data_type":"json"}', lambda s: _wrap(f"{{{s}}}"), size
    ),
    "hidden JSON": _hide,
    "escapes": lambda size: _fill_text(r"\u00e9", size),
    "lone surrogates": lambda size: _fill_text(r"\ud83d", size),
    "backslashes": lambda size: _fill_text("\\" * 4, size),
    "experiences that nobody asked for": lambda size: _fill('"k%d":{}', lambda s: f'{{"experiences":{{{s}}}}}', size),
    "failures": lambda size: _fill(
        '{"experience_keys":[]}', lambda s: f'{{"experiences":{{}},"failures":[{s}]}}', size
    ),
    "members": lambda size: _fill('"k%d":1', lambda s: f'{{"experiences":{{}},{s}}}', size),
    "just small enough": _add_heavy,
}


SMALL = frozenset({"long numbers", "escapes", "lone surrogates", "backslashes", "just small enough"})
"""Bodies with an experience that a page gets. Other bodies have only experiences that are too large, or none."""


@functools.cache
def build(name: str, key: str) -> bytes:
    """Return the body with this name, just smaller than SIZE. Its experience has the key ``key``."""
    text = BUILDERS[name](SIZE - 100).replace('"KEY"', json.dumps(key))
    return text.encode("ascii")

"""Content of many shapes, different for each number, to compare estimated with measured memory."""

import json


def _nest(depth, wrap, inner):
    for _ in range(depth):
        inner = wrap(inner)
    return inner


OFFERING = {"dp_offering_id": "offering", "offering_content": {"title": "Shoe", "price": 49.5}}
SHAPES = {
    "long strings": lambda n: {"Text": f"{n} " * 2_000, "Title": f"{n} {n} " * 500},
    "not ASCII": lambda n: {"Text": f"{n} " + "ж" * 5_000, "Title": f"{n} é" * 500, "Emoji": f"{n} " + "😀" * 5_000},
    "many variables": lambda n: {f"T{i}": f"{i}-{n}" for i in range(200)},
    "numbers": lambda n: {"rows": [n * 1_000_000 + i for i in range(500)] + [n + i / 7 for i in range(500)]},
    "small numbers": lambda n: {"rows": [i % 200 for i in range(1_000)] + [n, True, None]},
    "lists": lambda n: {"rows": [[[n * 1000 + column, f"{column}"] for column in range(10)] for _ in range(10)]},
    "nested lists": lambda n: {"tree": [_nest(20, lambda inner: [inner], [n]) for _ in range(50)]},
    "empty lists": lambda n: {"rows": [[] for _ in range(1_000)] + [n]},
    "nested dicts": lambda n: {"tree": [_nest(20, lambda inner: {"k": inner}, {"n": n}) for _ in range(20)]},
    "empty dicts": lambda n: {"rows": [{} for _ in range(1_000)] + [n]},
    "offerings": lambda n: {"list": [OFFERING | {"offering_context": {"id": f"{n}-{i}"}} for i in range(20)]},
    "offerings in text": lambda n: {"list": json.dumps([OFFERING | {"offering_context": {"id": f"{n}"}}] * 20)},
    "little": lambda n: {"Title": f"Title {n}"},
    "nothing": None,
}
"""Functions that return the payload for a number. ``None`` stands for an absent experience."""

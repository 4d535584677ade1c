"""By hand: fill the cache of one process with content of each shape, and print by how much the process grows.

Each shape has a process of its own. ``python -m benchmarks.content`` takes about five minutes.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys

from benchmarks import site
from benchmarks.soak import read_memory

TURNS = 2
"""Each process stores this many times as much content as the cache may keep."""

MOST_VISITORS = 100_000


def fill(shape: str) -> str:
    """Fill the cache, and return a line with the estimated and the measured bytes."""
    from django_moe_personalize.conf import get_settings
    from django_moe_personalize.fetching.cache import ExperienceCache
    from django_moe_personalize.moengage.client import read_experience
    from django_moe_personalize.moengage.json_values import parse_json
    from tests.fetching.shapes import SHAPES

    cache, number, most, before = ExperienceCache(get_settings()), 0, 0, read_memory()
    until = MOST_VISITORS
    while number < until:
        content = json.dumps({"payload": SHAPES[shape](number), "experience_context": {"cid": f"{number}"}})
        cache.keep(f"{number:032}", {"hero": read_experience("hero", parse_json(content))})
        number += 1
        if until == MOST_VISITORS and len(cache.memory._new) < number:
            # The cache is full.
            until = TURNS * number
        most = max(most, read_memory() - before)
    gc.collect()
    grown = read_memory() - before
    visitors = len(cache.memory._new)
    figures = {"visitors": visitors, "estimate_mib": cache.memory._bytes, "grown_mib": grown, "peak_mib": most}
    return json.dumps({"shape": shape} | {k: v if k == "visitors" else round(v / 2**20) for k, v in figures.items()})


def main() -> None:
    """Measure the shape in the arguments, or else all shapes."""
    from tests.fetching.shapes import SHAPES

    if len(sys.argv) > 1:
        site.configure(moe=site.build_moe("http://127.0.0.1:9/v1"))
        print(fill(sys.argv[1]), flush=True)
        return
    for shape, build in SHAPES.items():
        if build is not None:
            subprocess.run([sys.executable, "-m", "benchmarks.content", shape], check=True)


if __name__ == "__main__":
    main()

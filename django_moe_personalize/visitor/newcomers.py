"""Sample the new anonymous ids of a process, so that ``moe_doctor`` can tell how many of them never come back."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from django_moe_personalize.runtime import Runtime, part

SAMPLE_SIZE: Final = 512


class Newcomers:
    """The ids that pages of this process gave to browsers, and the ids that browsers sent back to this process.

    A browser may send its id back to another process. So all processes keep the ids with the lowest hashes: an id
    that is low enough for all samples is in the sample of each process that has seen it.
    """

    def __init__(self) -> None:
        self._given: set[str] = set()
        self._returned: set[str] = set()

    def add_given(self, anonymous_id: str) -> None:
        """Note a new id whose cookie a page sets."""
        _add(self._given, anonymous_id)

    def add_returned(self, anonymous_id: str) -> None:
        """Note an id that came from a cookie."""
        _add(self._returned, anonymous_id)

    def describe(self) -> dict[str, list[str]]:
        """Return both samples as JSON values. An id can't be found from its hash."""
        return {"given": sorted(self._given)[:SAMPLE_SIZE], "returned": sorted(self._returned)[:SAMPLE_SIZE]}


def _add(sample: set[str], anonymous_id: str) -> None:
    # The sizes of the set and of each step are bounded. Without a lock, two threads may lose an id, which is harmless.
    sample.add(hashlib.sha256(anonymous_id.encode()).hexdigest()[:12])
    if len(sample) >= 2 * SAMPLE_SIZE:
        sample.intersection_update(sorted(sample)[:SAMPLE_SIZE])


def count_lost(samples: Collection[Mapping[str, Any]]) -> tuple[int, int]:
    """Return how many new ids the samples of all processes have, and how many of them never came back."""
    lists = [ids for sample in samples for ids in (sample["given"], sample["returned"])]
    # A full sample lacks the ids with higher hashes.
    limit = min((ids[-1] for ids in lists if len(ids) >= SAMPLE_SIZE), default="g")
    given, returned = (_merge((sample[name] for sample in samples), limit) for name in ("given", "returned"))
    return len(given), len(given - returned)


def _merge(lists: Iterable[Iterable[str]], limit: str) -> set[str]:
    return {name for ids in lists for name in ids if name <= limit}


@part
def get_newcomers(runtime: Runtime) -> Newcomers:
    """Return the samples of this process."""
    return Newcomers()

"""Customer profiles: those of the workspace, updated by events."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from django_moe_personalize.sandbox.audiences import Scalar, as_text
from django_moe_personalize.sandbox.workspace import Workspace

MAX_ADDED = 10_000
"""Number of profiles that events may create or change; after that the oldest of them is dropped."""


class Profiles:
    """Customer attributes by customer id. Threads may share it."""

    def __init__(self, workspace: Workspace, *, max_added: int = MAX_ADDED) -> None:
        self._stored = workspace.customers
        self._identifiers = workspace.identity_resolution
        self._max_added = max_added
        self._added: OrderedDict[str, dict[str, Scalar]] = OrderedDict()
        self._lock = threading.Lock()

    def attributes(self, customer_id: str | None) -> Mapping[str, Scalar]:
        """Return the attributes of a customer, none for an unknown customer or ``None``."""
        if customer_id is None:
            return {}
        with self._lock:
            return {**self._stored.get(customer_id, {}), **self._added.get(customer_id, {})}

    def resolve(self, customer_id: str | None, identifiers: Mapping[str, str] | str) -> str | None:
        """Return ``customer_id`` if it is known, else the customer with one of the identifiers (contract §2).

        One schema of the vendor has a string in place of ``identifiers``; any identifier may match it.
        If no identifier matches, return ``customer_id`` as it is.
        """
        with self._lock:
            if customer_id is None or (customer_id not in self._stored and customer_id not in self._added):
                return self._find(identifiers) or customer_id
        return customer_id

    def _find(self, identifiers: Mapping[str, str] | str) -> str | None:
        for name in self._identifiers:
            wanted = identifiers if isinstance(identifiers, str) else identifiers.get(name)
            if not wanted:
                continue
            for profiles in (self._added, self._stored):
                for customer_id, attributes in profiles.items():
                    if name in attributes and as_text(attributes[name]) == wanted:
                        return customer_id
        return None

    def update(self, customer_id: str, attributes: Mapping[str, Any]) -> None:
        """Update or create a profile with the ``user_attributes`` of an event (contract §4), scalars only."""
        known = {name: value for name, value in attributes.items() if isinstance(value, (str, int, float))}
        with self._lock:
            self._added[customer_id] = self._added.pop(customer_id, {}) | known
            if len(self._added) > self._max_added:
                self._added.popitem(last=False)

"""The profiles of customers: the workspace has some, and events create or update others."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from django_moe_personalize.sandbox.audiences import Scalar, as_text
from django_moe_personalize.sandbox.workspace import Workspace

MAX_ADDED = 10_000
"""The number of profiles that events may create or change. Beyond this number the oldest change is dropped."""


class Profiles:
    """Customer attributes by customer id. Threads may share the profiles."""

    def __init__(self, workspace: Workspace, *, max_added: int = MAX_ADDED) -> None:
        self._stored = workspace.customers
        self._identifiers = workspace.identity_resolution
        self._max_added = max_added
        self._added: OrderedDict[str, dict[str, Scalar]] = OrderedDict()
        self._lock = threading.Lock()

    def attributes(self, customer_id: str | None) -> Mapping[str, Scalar]:
        """Return the attributes of a customer. For an unknown customer or ``None``, return an empty mapping."""
        if customer_id is None:
            return {}
        with self._lock:
            return {**self._stored.get(customer_id, {}), **self._added.get(customer_id, {})}

    def resolve(self, customer_id: str | None, identifiers: Mapping[str, str] | str) -> str | None:
        """Return a known ``customer_id``, or the id of the customer with one of the identifiers (contract §2).

        If no customer has such an identifier, return ``customer_id`` unchanged. In one schema of MoEngage,
        ``identifiers`` is a string. Then an identifier of any name may match the string.
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
        """Update or create a profile with an event's ``user_attributes`` (contract §4). Skip arrays and objects."""
        known = {name: value for name, value in attributes.items() if isinstance(value, (str, int, float))}
        with self._lock:
            self._added[customer_id] = self._added.pop(customer_id, {}) | known
            if len(self._added) > self._max_added:
                self._added.popitem(last=False)

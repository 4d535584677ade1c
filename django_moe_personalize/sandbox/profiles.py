"""Who the customers are: those of the workspace, and what events added to them since."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from django_moe_personalize.sandbox.rules import Scalar, as_text
from django_moe_personalize.sandbox.workspace import Workspace

MAX_ADDED = 10_000
"""Profiles that events may make or change before the oldest of them is forgotten."""


class Profiles:
    """Customer attributes by customer id. Safe to use from many threads."""

    def __init__(self, workspace: Workspace, *, max_added: int = MAX_ADDED) -> None:
        self._stored = workspace.customers
        self._identifiers = workspace.identity_resolution
        self._max_added = max_added
        self._added: OrderedDict[str, dict[str, Scalar]] = OrderedDict()
        self._lock = threading.Lock()

    def attributes(self, customer_id: str | None) -> Mapping[str, Scalar]:
        """Return what is known of a customer; nothing for an unknown one or none."""
        if customer_id is None:
            return {}
        with self._lock:
            return {**self._stored.get(customer_id, {}), **self._added.get(customer_id, {})}

    def resolve(self, customer_id: str | None, identifiers: Mapping[str, str] | str) -> str | None:
        """Return the customer meant: ``customer_id`` when it is known, else whom an identifier names (contract §2).

        One schema of the vendor calls the identifiers a string: it may then be any of them. An
        unknown ``customer_id`` that no identifier explains stays as it is.
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
        """Update or create a profile from an event's ``user_attributes`` (contract §4); only scalars are kept."""
        known = {name: value for name, value in attributes.items() if isinstance(value, (str, int, float))}
        with self._lock:
            self._added[customer_id] = self._added.pop(customer_id, {}) | known
            if len(self._added) > self._max_added:
                self._added.popitem(last=False)

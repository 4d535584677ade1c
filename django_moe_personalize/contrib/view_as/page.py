"""The page of a preview: it has the view's visitor and forced experiences, uses no cache and counts nothing.

This module relies on these names of ``Page``: ``read()`` asks ``confirm()`` before it returns an entry of ``_answers``,
and calls ``prefetch()`` for a key without an entry. ``find()`` sets ``_expected``. ``visitor`` asks
``_find_visitor()``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from types import FrameType
from typing import Any, Final

from asgiref.sync import sync_to_async
from django.core.cache.backends.dummy import DummyCache
from django.http import HttpRequest
from django.templatetags.cache import CacheNode
from django.utils import timezone

from django_moe_personalize import planning
from django_moe_personalize.client import get_client
from django_moe_personalize.conf import get_settings
from django_moe_personalize.contrib.view_as.view import View
from django_moe_personalize.exceptions import APIError
from django_moe_personalize.fetching.switch import get_switch
from django_moe_personalize.moengage.client import read_experience
from django_moe_personalize.moengage.types import MAX_KEYS, Experience
from django_moe_personalize.page import Page
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.tracking import PageTracker
from django_moe_personalize.visitor import MINTED, NO_VISITOR, Consent, Identity, Visitor
from django_moe_personalize.visitor.attributes import collect_attributes
from django_moe_personalize.visitor.identity import get_consent, get_identity

SEEN: Final = Consent(track=False)

NEWCOMER: Final = "anon-" + 32 * "0"
"""The anonymous id of a preview. All anonymous previews share it, so they make one profile at MoEngage at most."""


class PreviewPage(Page):
    """See Page."""

    is_preview = True

    def __init__(self, request: HttpRequest, view: View) -> None:
        super().__init__(request)
        self._visitor = build_visitor(request, view)
        # explain() reads these two attributes.
        self.forced, self.has_failed = view.forced, False
        self._answers = {
            key: None if payload is None else read_experience(key, {"payload": payload})
            for key, payload in view.forced.items()
        }

    def confirm(self, **options: bool) -> bool:
        """Keep the visitor, even if a user logs in. See Page.confirm()."""
        return True

    async def aconfirm(self, **options: bool) -> None:
        """See confirm()."""

    def _find_visitor(self) -> Visitor | None:
        return self._visitor

    async def _agather(self) -> None:
        """Do nothing: the visitor is known."""

    @property
    def tracker(self) -> PageTracker:
        """The tracker of a visitor whom nothing counts."""
        self._tracker = self._tracker or PageTracker(None)
        return self._tracker

    def prefetch(self, *experience_keys: str) -> None:
        """Fetch the keys now. See Page.prefetch()."""
        if wanted := self._find_unasked(experience_keys):
            self._answers.update(fetch(self, self._visitor or NO_VISITOR, wanted))

    async def aprefetch(self, *experience_keys: str) -> None:
        """See prefetch()."""
        await sync_to_async(self.prefetch)(*experience_keys)

    def load(self, *experience_keys: str) -> None:
        """See prefetch()."""
        self.prefetch(*experience_keys)

    async def aload(self, *experience_keys: str) -> None:
        """See prefetch()."""
        await self.aprefetch(*experience_keys)

    def read(self, key: str) -> Experience | None:
        """Return the experience, or nothing inside of a fragment that Django would store. See Page.read()."""
        return None if _is_in_stored_fragment() else super().read(key)

    def _learn(self, *keys: str, limit: int = planning.MAX_KEYS_A_ROUTE) -> None:
        """Learn nothing: a preview must not change which keys other pages fetch."""


def fetch(page: PreviewPage, visitor: Visitor, keys: Sequence[str]) -> dict[str, Experience | None]:
    """Ask MoEngage for ``keys``, without any cache. Never raises: after a failure all keys are absent."""
    found: dict[str, Experience | None] = dict.fromkeys(keys)
    if not visitor.consent.fetch:
        return found
    keys = get_switch(page.runtime).leave_out(keys)
    identity, deadline = visitor.identity, Deadline(page.runtime.settings.deadline)
    try:
        for start in range(0, len(keys), MAX_KEYS):
            result = get_client(page.runtime).fetch_experiences(
                keys[start : start + MAX_KEYS],
                customer_id=identity.customer_id,
                user_identifiers=identity.user_identifiers,
                attributes=visitor.attributes,
                deadline=deadline,
            )
            found.update(result.experiences)
    except APIError as error:
        page.has_failed = True
        page.runtime.log_once(("view_as", type(error)), _FAILED, type(error).__name__)
    return found


def build_visitor(request: HttpRequest, view: View) -> Visitor:
    """Return the visitor of ``view``. The parts that the view leaves open are those of the real visitor."""
    stand_in, consent = _copy(request), SEEN
    identity: Identity | None
    if view.customer_id:
        identity = Identity(view.customer_id)
    elif view.anonymous:
        identity = Identity(NEWCOMER, anonymous=True)
    else:
        consent = replace(get_consent(stand_in), track=False)
        identity = get_identity(stand_in, consent)
        if MINTED in stand_in.__dict__:
            # The response sets no cookie, so each page would make another new profile at MoEngage.
            identity = Identity(NEWCOMER, anonymous=True)
    if identity is None:
        return NO_VISITOR
    attributes = collect_attributes(stand_in, now=timezone.now(), consent=consent)
    campaign = get_settings().query_parameters
    if not view.attributes.keys().isdisjoint(campaign):
        # The parameters of two campaigns never mix.
        attributes = {name: value for name, value in attributes.items() if name not in campaign}
    return Visitor(identity, {**attributes, **view.attributes}, consent)


def _copy(request: HttpRequest) -> HttpRequest:
    """Return a copy. A new anonymous id or a stored campaign stays in the copy, so the response sets no cookie."""
    copy = request.__class__.__new__(request.__class__)
    copy.__dict__.update(request.__dict__)
    return copy


def _is_in_stored_fragment() -> bool:
    """Return whether a ``{% cache %}`` tag renders now whose cache keeps its content, as with ``using``."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        values: Any = frame.f_locals if frame.f_code is CacheNode.render.__code__ else {}
        if "fragment_cache" in values and not isinstance(values["fragment_cache"], DummyCache):
            return True
        frame = frame.f_back
    return False


_FAILED = "A preview got no experiences from MoEngage (%s), so it shows the defaults."

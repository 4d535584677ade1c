"""A panel for django-debug-toolbar: which experiences a page asked for, how long it waited, and why a key is absent."""

from __future__ import annotations

from debug_toolbar.panels import Panel
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from django_moe_personalize import context
from django_moe_personalize.context import get_page
from django_moe_personalize.context.explain import explain_page
from django_moe_personalize.context.recording import RecordedPage

HIDDEN = "(hidden)"

PERSONAL = ("USER_AGENT", "USER_IP_ADDRESS")
"""Attributes whose values the panel never stores. The toolbar's history keeps the requests of all visitors."""


class PersonalizePanel(Panel):  # type: ignore[misc]
    """The experiences of a page. List this class in ``DEBUG_TOOLBAR_PANELS``."""

    title = nav_title = "Experiences"
    nav_icon = "moe_personalize/experiences.svg"
    template = "moe_personalize/debug_toolbar.html"
    is_async = True
    _timing: str | None = None

    @classmethod
    def ready(cls) -> None:
        """Record the timeline of all pages of this process."""
        context.Page = RecordedPage  # type: ignore[attr-defined]

    @property
    def nav_subtitle(self) -> str:
        """The number of keys, and of those that came."""
        found = self.get_stats().get("experiences", [])
        came = sum(each["state"] == "came" for each in found)
        return f"{came} of {len(found)} came" if found else "none"

    def generate_stats(self, request: HttpRequest, response: HttpResponseBase) -> None:
        """Store the facts of the page, without its visitor's ids."""
        if (page := get_page(request)) is None:
            self.record_stats({"is_missing": True})
            return
        facts = explain_page(page)
        visitor = facts["visitor"]
        visitor["customer_id"] = None
        visitor["user_identifiers"] = dict.fromkeys(visitor["user_identifiers"], HIDDEN)
        is_own = _is_staff(request) or (visitor["kind"] != "customer" and _is_on_this_machine(request))
        for attribute in facts["attributes"]:
            if attribute["name"] in PERSONAL or not (is_own or attribute["origin"].startswith("the clock")):
                attribute["value"] = HIDDEN
        facts["timeline"] = [(f"{seconds * 1000:.1f}", text) for seconds, text in facts["timeline"]]
        facts["waited_ms"], facts["deadline_ms"] = f"{facts['waited'] * 1000:.1f}", f"{facts['deadline'] * 1000:.0f}"
        self.record_stats(facts)

    def generate_server_timing(self, request: HttpRequest, response: HttpResponseBase) -> None:
        """Keep the header Server-Timing of the page, which the toolbar would overwrite."""
        self._timing = response.headers.get("Server-Timing")

    def get_headers(self, request: HttpRequest) -> dict[str, str]:
        """Return the header of the page. The toolbar adds the entries of other panels."""
        return {"Server-Timing": self._timing} if self._timing else {}


def _is_on_this_machine(request: HttpRequest) -> bool:
    """Return whether the browser runs on this machine. Behind a proxy, every request seems to come from here."""
    is_proxied = "HTTP_FORWARDED" in request.META or "HTTP_X_FORWARDED_FOR" in request.META
    return not is_proxied and request.META.get("REMOTE_ADDR") in ("127.0.0.1", "::1")


def _is_staff(request: HttpRequest) -> bool:
    # Only a user that this request has loaded, because a query would block an event loop.
    user = request.__dict__.get("_cached_user") or request.__dict__.get("_acached_user")
    return bool(user and user.__dict__.get("is_staff"))

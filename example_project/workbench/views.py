"""The form of the switches, and the ledger. None of these pages is personalized."""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from django.contrib.auth import login, logout
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_POST

from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.visitor.identity import QUERY_COOKIE, delete_anonymous_cookie
from django_moe_personalize.workbench import build_ledger
from shop.people import PEOPLE, get_user
from shop.views import get_next
from workbench import sandbox
from workbench.switches import Switches, SwitchForm, write_switches


@require_POST
def switch(request: HttpRequest) -> HttpResponse:
    """Set the switches and go back to the page."""
    form = SwitchForm(request.POST)
    if not form.is_valid():
        return redirect(get_next(request))
    if "forget" in request.POST:
        return forget_visitor(request)
    chosen = form.cleaned_data
    change_user(request, chosen["user"])
    response = redirect(build_return_url(get_next(request), chosen["medium"]))
    # Forget the remembered campaign. The address may bring a new one.
    response.delete_cookie(QUERY_COOKIE, samesite="Lax")
    write_switches(response, Switches(chosen["device"], chosen["hour"], chosen["day"]))
    return response


def forget_visitor(request: HttpRequest) -> HttpResponse:
    """Sign out, clear the session and delete the package's cookies, so that the next page has a new visitor."""
    request.session.flush()
    response = redirect(build_return_url(get_next(request), ""))
    delete_anonymous_cookie(response)
    return response


def change_user(request: HttpRequest, username: str) -> None:
    """Sign in as ``username``; without a username sign out."""
    person = next((person for person in PEOPLE if person.username == username), None)
    if person is None:
        if request.user.is_authenticated:
            logout(request)
    elif request.user.pk != person.pk:
        login(request, get_user(person))


def build_return_url(url: str, medium: str) -> str:
    """Return ``url`` with the chosen ``utm_medium``."""
    parts = urlsplit(url)
    query = [pair for pair in parse_qsl(parts.query, keep_blank_values=True) if pair[0] != "utm_medium"]
    query += [("utm_medium", medium)] if medium else []
    return parts._replace(query=urlencode(query)).geturl()


@require_GET
@never_cache
def ledger(request: HttpRequest) -> HttpResponse:
    """Show the events that the sandbox counted."""
    return render(request, "workbench/ledger.html", build_context())


@require_POST
def clear_ledger(request: HttpRequest) -> HttpResponse:
    """Clear the ledger and show it."""
    # Without a sandbox the ledger's page says so.
    with suppress(sandbox.SandboxUnreachableError):
        sandbox.clear_events()
    return redirect("workbench:ledger")


def build_context() -> dict[str, Any]:
    """Return the context of the ledger's templates; ``view`` is ``None`` if there is no sandbox."""
    context: dict[str, Any] = {"view": None, "source": sandbox.describe(), "delivery": get_delivery().counts()}
    context["dropped"] = sum(context["delivery"].dropped.values())
    names = {str(person.pk): person.name for person in PEOPLE}
    try:
        return context | {"view": build_ledger(sandbox.read_events(), names)}
    except sandbox.SandboxUnreachableError as error:
        return context | {"trouble": str(error)}

"""The form of a view, its link, and the way back to the real visitor."""

from __future__ import annotations

from dataclasses import replace

from django.contrib.auth.decorators import login_not_required
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext_lazy as _
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_POST, require_safe

from django_moe_personalize import tracking
from django_moe_personalize.contrib.view_as.forms import ViewForm, build_initial
from django_moe_personalize.contrib.view_as.view import COOKIE, MAX_AGE, MAX_LENGTH, may_preview, read_view


@never_cache
@sensitive_post_parameters()
def control(request: HttpRequest) -> HttpResponse:
    """Show the form, turn the view on, or make its link. Users without the permission get a 404."""
    if not may_preview(user := getattr(request, "user", None)):
        raise Http404
    # The bar would only repeat this page.
    request.moe_has_no_bar = True  # type: ignore[attr-defined]
    view = getattr(request, "moe_view_as", None)
    form = ViewForm(request.POST or None, request.FILES or None, initial=view and build_initial(view))
    path, link = _get_path(request), ""
    if request.method == "POST" and form.is_valid():
        view = form.build_view(str(user.pk))  # type: ignore[union-attr]
        is_link = "link" in request.POST
        text = (replace(view, is_shared=True) if is_link else view).sign(request)
        if len(text) > MAX_LENGTH:
            form.add_error(
                None, _("The view is too long for a cookie or a link. Shorten the payloads or the attributes.")
            )
        elif is_link:
            link = request.build_absolute_uri(reverse("moe_personalize_view_as:open", args=[text]))
        else:
            return _turn_on(request, text, path)
    context = {"form": form, "path": path, "link": link, "minutes": MAX_AGE // 60}
    return render(request, "moe_personalize/view_as/control.html", context)


@login_not_required
@never_cache
@require_safe
def open_link(request: HttpRequest, token: str) -> HttpResponse:
    """Turn on the view of a link. The response to any other link is a 404."""
    view = read_view(request, token)
    # A browser or a mail program may ask before the colleague opens the link.
    if view is None or not view.is_shared or request.method == "HEAD" or tracking.is_speculative(request):
        raise Http404
    response = _turn_on(request, token, _get_path(request))
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


# Without a CSRF token, because the token's cookie would stay after the preview. A forged request only ends the preview.
@csrf_exempt
@login_not_required
@never_cache
@require_POST
def leave(request: HttpRequest) -> HttpResponse:
    """Turn the view off."""
    response = HttpResponseRedirect(_get_path(request))
    response.delete_cookie(COOKIE, samesite="Lax")
    return response


def _turn_on(request: HttpRequest, text: str, path: str) -> HttpResponse:
    response = HttpResponseRedirect(path)
    secure = request.is_secure()
    response.set_cookie(COOKIE, text, max_age=MAX_AGE, secure=secure, httponly=True, samesite="Lax")
    return response


def _get_path(request: HttpRequest) -> str:
    """Return the page of this site to which the visitor returns."""
    path = request.POST.get("next") or request.GET.get("next") or "/"
    is_local = path.startswith("/") and url_has_allowed_host_and_scheme(path, None)
    return path if is_local else "/"

"""The view of another visitor: who the page pretends to be for, which experiences it forces, and until when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from django.contrib.auth import get_user_model
from django.core import signing
from django.http import HttpRequest

PERMISSION: Final = "moe_personalize.preview"

COOKIE: Final = "moe_view_as"

MAX_AGE: Final = 60 * 60
"""Seconds for which a view and its link are valid."""

MAX_LENGTH: Final = 3000
"""Characters of a signed view. Browsers keep cookies of up to 4,096 bytes, and servers limit the address of a link."""

SALT: Final = "moe_personalize.view_as.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The visitor and the experiences of a preview.

    Without ``customer_id`` the page is for the real visitor, or with ``anonymous`` for a visitor without a name.
    ``attributes`` replace the in-session attributes of the same names. ``forced`` has payloads by experience key, as
    MoEngage sends them, and ``None`` for an absent experience. ``issuer`` is the primary key of the staff user. Only
    this user may use the view, unless it ``is_shared``.
    """

    issuer: str
    customer_id: str = field(default="", repr=False)
    anonymous: bool = False
    attributes: Mapping[str, str] = field(default_factory=dict, repr=False)
    forced: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict, repr=False)
    is_shared: bool = False

    def sign(self, request: HttpRequest) -> str:
        """Return the view as text that is valid for MAX_AGE seconds on the host of ``request``."""
        return signing.dumps(asdict(self), salt=_build_salt(request), compress=True)


def read_view(request: HttpRequest, text: str) -> View | None:
    """Return the view in ``text``, or ``None`` if the text is expired, altered, or not for this host or this user.

    A view ends early if its issuer loses the permission.
    """
    if not text or len(text) > MAX_LENGTH:
        return None
    try:
        view = View(**signing.loads(text, salt=_build_salt(request), max_age=MAX_AGE))
    except (signing.BadSignature, TypeError):
        # During a deployment, another version of this package may have signed other fields.
        return None
    user = getattr(request, "user", None)
    if not view.is_shared:
        return view if may_preview(user) and str(user.pk) == view.issuer else None  # type: ignore[union-attr]
    return view if may_preview(get_user_model()._default_manager.filter(pk=view.issuer).first()) else None


def may_preview(user: Any) -> bool:
    """Return whether ``user`` is an active staff user with the permission."""
    return bool(user and user.is_active and getattr(user, "is_staff", False) and user.has_perm(PERMISSION))


def _build_salt(request: HttpRequest) -> str:
    return f"{SALT}:{request.get_host()}"

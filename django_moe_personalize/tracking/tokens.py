"""Signed tokens: what a page hands to the browser so that a later click or view can be counted."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from django.conf import settings as django_settings
from django.core import signing
from django.utils.crypto import constant_time_compare, salted_hmac

from django_moe_personalize.moengage.types import Action, Event
from django_moe_personalize.runtime import log_once

TOKEN_MAX_AGE = 24 * 60 * 60
"""Seconds for which a click or a beacon of a page still counts."""

MAX_TOKEN_LENGTH = 3000
"""Characters; gunicorn refuses a request line over 4,094, and other servers have their own limits."""

OFFERINGS = "offerings"
"""The attribute of an impression under which the contexts of the offerings shown with it ride."""

_SALT = "moe_personalize.track.1"


class Token(NamedTuple):
    """What a page hands out to be told about later: one event, bound to its visitor.

    A link's token stands for its click and has a ``destination`` (on ``host``, where the template's
    author named another site). A mark's stands for the impression, and for the clicks on its
    ``elements``. An ``expired`` token counts nothing.
    """

    event_uuid: str
    action: str
    attributes: Mapping[str, Any]
    binding: str
    destination: str = ""
    host: str = ""
    elements: Sequence[str] = ()
    expired: bool = False

    def __repr__(self) -> str:
        return f"<Token {self.action} {self.event_uuid}>"

    @classmethod
    def build(cls, event: Event, *, destination: str = "", host: str = "", elements: Sequence[str] = ()) -> Token:
        """Return the token that stands for ``event``; it holds no customer id."""
        binding = bind_visitor(event.customer_id)
        return cls(event.event_uuid, event.action.value, event.attributes, binding, destination, host, elements)

    def sign(self) -> str | None:
        """Return the token as URL-safe text, compressed when that helps; ``None`` when it is too long."""
        text = signing.dumps(self[:-1], salt=_SALT, compress=True)
        if len(text) > MAX_TOKEN_LENGTH:
            log_once("token", "An experience's context is too long for a token; its clicks are not tracked.")
            return None
        return text

    def belongs_to(self, customer_id: str) -> bool:
        """Return whether the visitor of the page is the one who sends the token back."""
        keys = (django_settings.SECRET_KEY, *django_settings.SECRET_KEY_FALLBACKS)
        return any(constant_time_compare(self.binding, bind_visitor(customer_id, secret)) for secret in keys)

    def build_event(self, customer_id: str) -> Event:
        """Return the event this token stands for: with its own UUID, happening now."""
        return Event(Action(self.action), customer_id, self.attributes, int(time.time()), self.event_uuid)

    def build_click(self, customer_id: str, element: str) -> Event:
        """Return the click on ``element`` of a mark: one in a page view, however often it is reported."""
        attributes = {name: value for name, value in self.attributes.items() if name != OFFERINGS}
        if element:
            attributes["b_id"] = element
        event_uuid = derive_uuid(self.event_uuid, element)
        return Event(Action.CLICKED, customer_id, attributes, int(time.time()), event_uuid)


def read_token(text: str) -> Token:
    """Return the token that ``sign`` made. Raises ``signing.BadSignature`` for anything else."""
    if not text.isascii():
        raise signing.BadSignature("not a token")
    try:
        return Token(*signing.loads(text, salt=_SALT, max_age=TOKEN_MAX_AGE))
    except signing.SignatureExpired:
        return Token(*signing.loads(text, salt=_SALT))._replace(expired=True)


def bind_visitor(customer_id: str, secret: str | bytes | None = None) -> str:
    """Return what tells a visitor from another without telling who it is."""
    return salted_hmac(f"{_SALT}.visitor", customer_id, secret=secret, algorithm="sha256").hexdigest()[:32]


def derive_uuid(event_uuid: str, element: str) -> str:
    """Return the UUID v4 of a click on ``element`` in the page view that ``event_uuid`` stands for."""
    text = f"{event_uuid}/{element}".encode("utf-8", "surrogatepass")
    return str(uuid.UUID(bytes=hashlib.blake2b(text, digest_size=16).digest(), version=4))

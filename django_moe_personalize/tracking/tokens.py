"""Sign and read tokens. A page contains tokens, and the browser sends a token back to report a click or a view.

A token has all data of its event, belongs to one visitor, and expires. All events from the same token have the same
UUID, so a repeated report doesn't count again.
"""

from __future__ import annotations

import hashlib
import secrets
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from django.conf import settings as django_settings
from django.core import signing
from django.utils.crypto import constant_time_compare, salted_hmac

from django_moe_personalize.conf import DEFAULT, get_settings
from django_moe_personalize.moengage.types import Action, Event

TOKEN_MAX_AGE: Final = 24 * 60 * 60
"""Seconds for which a token counts."""

MAX_LINK_LENGTH: Final = 3000
"""Characters of a link's token. gunicorn refuses a request line over 4,094 characters. Other servers are similar."""

MAX_MARK_LENGTH: Final = 8000
"""Characters of a mark's token. The browser sends it in the body of a beacon, which has at most 16 KiB."""

OFFERINGS: Final = "moe_offering_ids"
"""The attribute of an impression that lists the ids of the shown offerings. Attributes are strings (contract §2)."""

SALT: Final = "moe_personalize.track.1"

STAMP: Final = "moe."
"""The start of each stamp. HTML, JSON, JavaScript and URLs never escape these characters."""

_STAMP_LENGTH: Final = 16


class Token(NamedTuple):
    """The permission to report one event of one visitor.

    The token of a link is for its click and has a ``destination``. Its ``host`` is another site to which the template's
    author links. The token of a mark is for the impression, and for clicks on the ``elements`` inside the mark. An
    ``expired`` token doesn't count. The event goes to the token's own ``workspace``, even if the site chooses another
    one for the request that reports it: the address of a link or a beacon may not tell the workspace.
    """

    event_uuid: str
    action: str
    attributes: Mapping[str, Any]
    binding: str
    destination: str = ""
    host: str = ""
    elements: Sequence[str] = ()
    experience_key: str = ""
    workspace: str = DEFAULT
    expired: bool = False

    def __repr__(self) -> str:
        return f"<Token {self.action} {self.event_uuid}>"

    @classmethod
    def build(cls, event: Event, *, destination: str = "", host: str = "", elements: Sequence[str] = ()) -> Token:
        """Return the token for ``event``. The token has a keyed hash in place of the customer id."""
        binding, workspace = bind_visitor(event.customer_id), get_settings().name
        action, key = event.action.value, event.experience_key
        return cls(event.event_uuid, action, event.attributes, binding, destination, host, elements, key, workspace)

    def sign(self, stamp: str = "", limit: int = MAX_LINK_LENGTH) -> str | None:
        """Return the token as URL-safe text that starts with ``stamp``, or ``None`` if it is longer than ``limit``."""
        stamp = stamp or draw_stamp()
        content = self[:-2] if self.workspace == DEFAULT else self[:-1]
        text = stamp + signing.dumps(content, salt=SALT + stamp, compress=True)
        return text if len(text) <= limit else None

    def belongs_to(self, customer_id: str) -> bool:
        """Return whether the token was made for this visitor."""
        keys = (django_settings.SECRET_KEY, *django_settings.SECRET_KEY_FALLBACKS)
        return any(constant_time_compare(self.binding, bind_visitor(customer_id, secret)) for secret in keys)

    def build_event(self, customer_id: str) -> Event:
        """Return the event of this token. Its time is now, and its UUID is the token's."""
        return self._build(Action(self.action), customer_id, self.attributes, self.event_uuid)

    def build_click(self, customer_id: str, element: str) -> Event:
        """Return the click on ``element`` inside a mark. In one page view, all clicks on an element have one UUID."""
        attributes = {name: value for name, value in self.attributes.items() if name != OFFERINGS}
        if element:
            attributes["b_id"] = element
        return self._build(Action.CLICKED, customer_id, attributes, derive_uuid(self.event_uuid, element))

    def _build(self, action: Action, customer_id: str, attributes: Mapping[str, Any], event_uuid: str) -> Event:
        now, key = int(time.time()), self.experience_key
        return Event(action, customer_id, attributes, now, event_uuid, experience_key=key)


def read_token(text: str) -> Token:
    """Return the token in a text that sign() made. Raises ``signing.BadSignature`` for any other text.

    During a deployment another version of this package may have signed the text, with another content.
    """
    salt, signed = SALT + text[:_STAMP_LENGTH], text[_STAMP_LENGTH:]
    with suppress(Exception):  # loads() raises many kinds of exceptions for a signed text that isn't from sign().
        try:
            return _build_token(signing.loads(signed, salt=salt, max_age=TOKEN_MAX_AGE))
        except signing.SignatureExpired:
            return _build_token(signing.loads(signed, salt=salt))._replace(expired=True)
    raise signing.BadSignature("not a token")


def _build_token(content: object) -> Token:
    match content:
        # A token of the default workspace doesn't name it.
        case [str(event_uuid), str(action), dict(), str(binding), str(), str(), list(elements), str(), *rest] if all(
            isinstance(workspace, str) for workspace in rest
        ):
            # These raise an exception for a wrong value.
            uuid.UUID(event_uuid), Action(action), binding.encode("ascii"), "".join(elements)
            return Token(*content[:9])  # type: ignore[arg-type]
    raise ValueError


def draw_stamp() -> str:
    """Return the stamp of one page view: a random text that tells its tokens and marks from those of other pages."""
    return STAMP + secrets.token_hex(6)


def bind_visitor(customer_id: str, secret: str | bytes | None = None) -> str:
    """Return a keyed hash of the customer id."""
    return salted_hmac(f"{SALT}.visitor", customer_id, secret=secret, algorithm="sha256").hexdigest()[:32]


def derive_uuid(event_uuid: str, element: str) -> str:
    """Return the UUID v4 of a click on ``element``. ``event_uuid`` is the UUID of the page view's impression."""
    text = f"{event_uuid}/{element}".encode("utf-8", "surrogatepass")
    return str(uuid.UUID(bytes=hashlib.sha256(text).digest()[:16], version=4))

"""The three customers of the demonstration; the sandbox's workspace has the same ids.

The ids have two digits, because MoEngage's Data API refuses ids of one character.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from django.contrib.auth import get_user_model
from django.contrib.auth.models import AbstractBaseUser, Permission


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """A customer to sign in as."""

    pk: int
    username: str
    name: str
    text: str
    is_staff: bool = False


PEOPLE: Final = (
    Person(pk=11, username="ada", name="Ada", text="Gold member, carries everything herself"),
    Person(pk=12, username="grace", name="Grace", text="Silver, one good tent away from gold"),
    Person(
        pk=13, username="linus", name="Linus", text="Works here, may view the shop as another visitor", is_staff=True
    ),
)


def get_user(person: Person) -> AbstractBaseUser:
    """Return the user of a person, created or updated, without a usable password."""
    defaults = {"username": person.username, "first_name": person.name, "password": "!", "is_staff": person.is_staff}
    user = get_user_model().objects.update_or_create(pk=person.pk, defaults=defaults)[0]
    if person.is_staff:
        user.user_permissions.add(Permission.objects.get(content_type__app_label="moe_personalize", codename="preview"))
    return user

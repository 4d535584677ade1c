"""The three customers of the demonstration; the sandbox's workspace has the same ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from django.contrib.auth import get_user_model
from django.contrib.auth.models import AbstractBaseUser


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """A customer to sign in as."""

    pk: int
    username: str
    name: str
    text: str


PEOPLE: Final = (
    Person(pk=1, username="ada", name="Ada", text="Gold member, carries everything herself"),
    Person(pk=2, username="grace", name="Grace", text="Silver, one good tent away from gold"),
    Person(pk=3, username="linus", name="Linus", text="New here, likes small tools"),
)


def get_user(person: Person) -> AbstractBaseUser:
    """Return the user of a person, created or updated, without a usable password."""
    defaults = {"username": person.username, "first_name": person.name, "password": "!"}
    return get_user_model().objects.update_or_create(pk=person.pk, defaults=defaults)[0]

"""``ExperienceSchema``: a site declares the variables of an experience, and their defaults."""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any, ClassVar, Final, NamedTuple, Self, get_origin

from django_moe_personalize.moengage.json_values import freeze
from django_moe_personalize.moengage.types import Experience
from django_moe_personalize.runtime import get_runtime
from django_moe_personalize.schemas.kinds import ALLOWED, ANYTHING, Kind, describe, read_kind

_REQUIRED: Final = object()
_PLAIN: Final = (str, int, float, bool, list, dict, tuple)


class Mistake(NamedTuple):
    """A mistake in the ``annotation`` or the ``default`` of a variable, in words, with its fix."""

    kind: str
    message: str
    hint: str
    variable: str


class Variable:
    """One variable of a schema. On an experience, it reads the payload."""

    def __init__(self, name: str, default: object) -> None:
        self.name = name
        self.default = default

    def __repr__(self) -> str:
        return f"<Variable {self.name}>"

    def __get__(self, experience: Experience | None, schema: type) -> Any:
        return self if experience is None else experience.payload[self.name]


class ExperienceSchema(Experience):
    """The variables of one experience. Inherit from this class in the file ``experiences.py`` of an app.

    ``key`` is the experience key. Each annotation is a variable, and its value is the default. If an experience has a
    wrong value or lacks a variable, pages show the default. If this variable has no default, visitors have no
    experience and see the fallback. A class without ``key`` is a base for other schemas.
    """

    __slots__ = ()

    key: ClassVar[str] = ""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in _list_annotated(cls):
            if name not in RESERVED:
                default = cls.__dict__.get(name, _REQUIRED)
                setattr(cls, name, default if isinstance(default, Variable) else Variable(name, default))
        # A reloaded module declares its schemas again.
        known = [other for other in _schemas if _get_path(other) != _get_path(cls)]
        _schemas[:] = [*known, cls]

    @classmethod
    def parse(cls, experience: Experience | None) -> Self | None:
        """Return the experience with the defaults of this schema, or ``None`` if it lacks a variable without default.

        Each wrong or missing variable is logged once.
        """
        if experience is None or isinstance(experience, cls):
            return experience
        payload: dict[str, Any] = dict(experience.payload)
        for name, problem in cls.find_problems(experience):
            default = getattr(cls, name).default
            shown = "its fallback" if default is _REQUIRED else f"the default of {cls.__name__}"
            message = "The variable %r of experience %r %s, so pages show %s. Correct the content, or the schema."
            get_runtime().log_once(("schema", cls.key, name, problem), message, name, cls.key, problem, shown)
            if default is _REQUIRED:
                return None
            payload[name] = default
        for name, (_, default) in cls.read_variables().items():
            payload.setdefault(name, default)
        values = (experience.experience_context, experience.source, experience.offerings)
        return cls(experience.experience_key, freeze(payload), *values)

    @classmethod
    def find_problems(cls, experience: Experience) -> Iterator[tuple[str, str]]:
        """Yield each variable that the experience lacks or that has a wrong value, with the words for a message."""
        for name, (kind, default) in cls.read_variables().items():
            if name in experience.payload:
                value = experience.payload[name]
                if not kind.accepts(value):
                    yield name, f"is {describe(value)} but must be {kind.words}"
            elif default is not None:
                yield name, "is missing"

    @classmethod
    def read_variables(cls) -> dict[str, tuple[Kind, Any]]:
        """Return the kind and the default of each variable. Leave out a variable with a wrong annotation."""
        return _read(cls)[0]

    @classmethod
    def find_mistakes(cls) -> list[Mistake]:
        """Return the mistakes in this class, except those of its key."""
        return _read(cls)[1]


_schemas: list[type[ExperienceSchema]] = []

RESERVED: Final = frozenset(name for name in dir(ExperienceSchema) if not name.startswith("_"))
"""Names that a variable can't have, because an experience has attributes and methods with these names."""


def get_schemas() -> list[type[ExperienceSchema]]:
    """Return all schemas that have a key, in the order of their declaration."""
    return [schema for schema in _schemas if schema.key and isinstance(schema.key, str)]


def get_classes() -> list[type[ExperienceSchema]]:
    """Return all subclasses, also those without a key."""
    return list(_schemas)


def find_schema(experience_key: object) -> type[ExperienceSchema] | None:
    """Return the schema of a key. If there are several, return the first."""
    return next((schema for schema in get_schemas() if schema.key == experience_key), None)


def is_schema(key: object) -> bool:
    """Return whether ``key`` is a schema, and not the text of an experience key."""
    return isinstance(key, type) and issubclass(key, ExperienceSchema)


def _get_path(schema: type) -> tuple[str, str]:
    return schema.__module__, schema.__qualname__


def _list_annotated(schema: type) -> list[str]:
    """Return the names that this class annotates as variables, without those of its bases."""
    annotations = inspect.get_annotations(schema)
    return [name for name, value in annotations.items() if _is_variable(name, value)]


def _is_variable(name: str, annotation: Any) -> bool:
    is_class_variable = "ClassVar" in annotation if isinstance(annotation, str) else get_origin(annotation) is ClassVar
    return name != "key" and not name.startswith("_") and not is_class_variable


@cache
def _read(schema: type[ExperienceSchema]) -> tuple[dict[str, tuple[Kind, Any]], list[Mistake]]:
    variables: dict[str, tuple[Kind, Any]] = {}
    mistakes: list[Mistake] = []
    bases = [base for base in reversed(schema.__mro__) if issubclass(base, ExperienceSchema)][1:]
    for base in bases:
        for name in _list_annotated(base):
            kind, default, mistake = _read_variable(base, name)
            if name not in RESERVED:
                variables[name] = kind, default
            if mistake and base is schema:
                mistakes.append(Mistake(*mistake, name))
    known = RESERVED | inspect.get_annotations(schema).keys()
    for name, value in vars(schema).items():
        if not name.startswith("_") and name not in known and isinstance(value, _PLAIN):
            message = f"The variable {name} of {schema.__name__} has no annotation, so it isn't a variable."
            mistakes.append(Mistake("annotation", message, f"Write {name}: {type(value).__name__} = {value!r}.", name))
    return variables, mistakes


def _read_variable(schema: type[ExperienceSchema], name: str) -> tuple[Kind, Any, tuple[str, str, str] | None]:
    """Return the kind and the default of a variable, and the number, the message and the hint for a mistake in it."""
    label = f"The variable {name} of {schema.__name__}"
    if name in RESERVED:
        hint = f"Rename the variable in the dashboard, or remove the annotation and read experience[{name!r}]."
        return ANYTHING, None, ("annotation", f"{label} has the name of an attribute or method of an experience.", hint)
    default = vars(schema)[name].default
    try:
        kind = read_kind(_evaluate(schema, name))
    except NameError as error:
        message = f"{label} has an annotation with an unknown name ({error.name})."
        hint = f"Import {error.name} at the start of the module, not under TYPE_CHECKING."
        return ANYTHING, default, ("annotation", message, hint)
    except Exception as error:
        # The annotation is Python code of the site, and may raise anything.
        reason = error if isinstance(error, TypeError) else type(error).__name__
        return ANYTHING, default, ("annotation", f"{label} has an unusable annotation ({reason}).", f"Use {ALLOWED}.")
    if default is _REQUIRED or kind.accepts(default):
        return kind, default, None
    message = f"The default of {name} in {schema.__name__} is {describe(default)}, but must be {kind.words}."
    return kind, default, ("default", message, "Correct the default or the annotation.")


def _evaluate(schema: type, name: str) -> Any:
    """Return the annotation of a variable. Under ``from __future__ import annotations`` it's text."""
    stub = SimpleNamespace(__annotations__={name: inspect.get_annotations(schema)[name]})
    module = vars(sys.modules[schema.__module__])
    return typing.get_type_hints(stub, globalns=module, localns=vars(schema), include_extras=True)[name]

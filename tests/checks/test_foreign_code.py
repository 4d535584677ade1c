"""Code of other libraries in a fragment cache: the check reads its source, and a doubt counts as a leak."""

import builtins
import sys
from functools import partial
from types import SimpleNamespace

import pytest
from django.core.checks import run_checks
from django.template import Node
from django.template.loader import render_to_string

from django_moe_personalize.checks import foreign_code
from django_moe_personalize.checks.foreign_code import may_render


def call_helper(context):
    return helper(context["request"])


def helper(request):
    return render_to_string("hero.html", {}, request)


def call_unknown(context):
    return context["view"].show(page=context)


def import_inside(context):
    from django.shortcuts import render as draw

    return draw(context)


def read(context):
    return context["request"].personalization


def call_itself(context):
    return call_itself(context) or isinstance(context, Quiet) or builtins.len(context["page"].get_url(context["x"]))


class Quiet:
    def show(self):
        return "rendered"


class Block(Node):
    def render(self, context):
        return self.body.render(context) + self.read(context) + Quiet().show()

    def read(self, context):
        return self.argument.resolve(context)


RENDERING = [call_helper, partial(helper, 1), call_unknown, import_inside, read, Block, max.__call__]


@pytest.mark.parametrize("function", [*RENDERING, call_itself, Quiet, len, render_to_string])
def test_functions(function):
    """A function may render if it or a function that it calls does, or if its source isn't known."""
    assert may_render(function) == (function in RENDERING)


def test_many_functions(monkeypatch):
    """The number of functions that are read is limited."""
    monkeypatch.setattr(foreign_code, "MAX_FUNCTIONS", 2)
    assert may_render.__wrapped__(call_itself)


@pytest.mark.parametrize("nodelists", [{"body"}, {"other"}])
def test_block(nodelists):
    """A block tag may render the nodelists that the search follows."""
    assert may_render(Block.render, Block, frozenset(nodelists)) == ("other" in nodelists)


HERO = "{% load moe_personalize %}\n{% experience 'hero' %}{% endexperience %}"
ON, OFF = SimpleNamespace(enabled=True), SimpleNamespace(enabled=False)


@pytest.mark.parametrize(
    ("template", "file", "cache", "place"),
    [
        (HERO, None, ON, "shop.ui"),
        (None, "hero.html", ON, "hero.html"),
        (None, "hero.html", OFF, None),
        ("The same for all.", None, ON, None),
        ("{% nonsense %}", None, ON, None),
    ],
)
def test_component_that_stores_what_it_renders(monkeypatch, settings, tmp_path, template, file, cache, place):
    """A component whose cache is on is like {% cache %}. Components and versions that are broken give no message."""
    (tmp_path / "hero.html").write_text(HERO)
    settings.TEMPLATES = [settings.TEMPLATES[0] | {"DIRS": [tmp_path]}]
    hero = SimpleNamespace(__name__="Hero", __module__="shop.ui", template=template, template_file=file, Cache=cache)
    library = SimpleNamespace(all_components=lambda: [SimpleNamespace(), hero])
    monkeypatch.setitem(sys.modules, "django_components", library)
    found = [message for message in run_checks(tags=["moe_personalize"]) if message.id == "moe_personalize.E014"]
    assert len(found) == (place is not None)
    for message in found:
        assert message.msg.startswith("Hero.Cache shows one visitor's content to all visitors: {% experience 'hero' %}")
        assert message.msg.endswith(f"{place}, line 2.")
        assert "Hero.Cache starts in shop.ui" in message.hint
    monkeypatch.setitem(sys.modules, "django_components", SimpleNamespace())
    assert "moe_personalize.E014" not in [message.id for message in run_checks(tags=["moe_personalize"])]

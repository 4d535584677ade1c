"""may_render() reads the source of another library's tags, and is on the safe side where the source doesn't tell."""

import builtins
from functools import partial

import pytest
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

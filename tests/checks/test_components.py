"""Components of django-components that store what they render, with a stand-in for the library."""

import sys
from types import SimpleNamespace

import pytest
from django.core.checks import run_checks

HERO = "{% load moe_personalize %}\n{% experience 'hero' %}{% endexperience %}"
ON, OFF = SimpleNamespace(enabled=True), SimpleNamespace(enabled=False)


@pytest.mark.parametrize(
    ("template", "file", "cache", "place"),
    [
        (HERO, None, ON, "shop.components"),
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
    hero = SimpleNamespace(
        __name__="Hero", __module__="shop.components", template=template, template_file=file, Cache=cache
    )
    library = SimpleNamespace(all_components=lambda: [SimpleNamespace(), hero])
    monkeypatch.setitem(sys.modules, "django_components", library)
    found = [message for message in run_checks(tags=["moe_personalize"]) if message.id == "moe_personalize.E014"]
    assert len(found) == (place is not None)
    for message in found:
        assert message.msg.startswith("Hero.Cache shows one visitor's content to all visitors: {% experience 'hero' %}")
        assert message.msg.endswith(f"{place}, line 2.")
        assert "Hero.Cache starts in shop.components" in message.hint
    monkeypatch.setitem(sys.modules, "django_components", SimpleNamespace())
    assert "moe_personalize.E014" not in [message.id for message in run_checks(tags=["moe_personalize"])]

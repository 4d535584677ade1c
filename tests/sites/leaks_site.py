"""A site with the template languages of Wagtail, django-components, cotton and slippers. It prints its leaks.

``python -m tests.sites.leaks_site FOLDER LIBRARY`` reads templates by name as JSON, and prints a list of check, message
and hint. LIBRARY is django_cotton or django_components, which don't work together.
"""

import json
import sys
from pathlib import Path

import django
from django.conf import settings
from django.core.checks import run_checks
from django.template import TemplateSyntaxError
from django.template.loader import get_template

from tests.sites.settings import CMS, WAGTAIL, build_settings

CARD = """{% load moe_personalize %}{% experience "hero-banner" as hero %}{{ hero.Title }}{% endexperience %}"""
FILES = {
    "hero.html": CARD,
    "card.html": "{{ children }}" + CARD,
    "cotton/hero.html": "{{ slot }}" + CARD,
    "components.yaml": "components:\n  card: card.html\n",
}
LOADERS = ["django.template.loaders.filesystem.Loader", "django.template.loaders.app_directories.Loader"]
LIBRARIES = {
    "django_cotton": (["django_cotton.cotton_loader.Loader", *LOADERS], ["django_cotton.templatetags.cotton"]),
    "django_components": (
        [*LOADERS, "django_components.template_loader.Loader"],
        ["django_components.templatetags.component_tags"],
    ),
}


def configure(folder: Path, library: str) -> None:
    loaders, builtins = LIBRARIES[library]
    own = ["django.contrib.humanize", "wagtail.search", "wagtail.contrib.redirects", library, "slippers"]
    values = build_settings(
        **{**CMS, **WAGTAIL, "apps": [*CMS["apps"], *WAGTAIL["apps"], *own]},
        templates={"loaders": [("django.template.loaders.cached.Loader", loaders)], "builtins": builtins},
        BASE_DIR=folder,
        COMPONENTS={"autodiscover": False},
        ROOT_URLCONF="django_moe_personalize.urls",
        CMS_TEMPLATES=[("plain.html", "Plain")],
        MOE_PERSONALIZE={"SANDBOX": True},
    )
    values["TEMPLATES"][0]["DIRS"] = [folder / "templates"]
    settings.configure(**values)
    django.setup()


def main(folder: Path, library: str) -> None:
    pages = json.load(sys.stdin)
    for name, text in {**FILES, **pages}.items():
        path = folder / "templates" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    configure(folder, library)
    messages = run_checks(tags=["moe_personalize"])
    wanted = [m for m in messages if m.id.rpartition(".")[2] in ("E014", "W012")]
    refused = [
        ("refused", _compile(name), f"starts in /templates/{name}, line 2") for name in pages if "refused" in name
    ]
    print(json.dumps(refused + [(m.id, m.msg.replace(f"{folder}/templates/", ""), m.hint) for m in wanted]))


def _compile(name: str) -> str:
    try:
        get_template(name)
    except TemplateSyntaxError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

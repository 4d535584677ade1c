"""The catalogs have all texts that a site's users see, and no text is translated at import."""

import gettext
import json
import re

import pytest
from django.apps import apps
from django.core.management import call_command
from django.utils.functional import Promise
from django.utils.translation.template import templatize

from tests.documents import ROOT

PACKAGE = ROOT / "django_moe_personalize"
CATALOGS = sorted(PACKAGE.glob("locale/*/LC_MESSAGES/django.po"))
MARKED = re.compile(r"""\b(_|[np]*gettext(?:_lazy)?)\(\s*u?["'](.+?)["'](?:, u?["'](.+?)["'])?""")


def find_texts():
    """Return the texts in the package that are marked for translation, as the compiled catalog names them."""
    sources = [path.read_text() for path in PACKAGE.rglob("*.py")]
    sources += [templatize(path.read_text()) for path in PACKAGE.rglob("*.html")]
    marked = [match.groups() for source in sources for match in MARKED.finditer(source)]
    return {f"{first}\x04{second}" if name.startswith("p") else first for name, first, second in marked}


@pytest.mark.parametrize("path", CATALOGS, ids=[path.parts[-3] for path in CATALOGS])
def test_a_catalog_is_complete(path):
    """Each marked text has a translation, and ``compilemessages`` has run after the last change of a translation."""
    with path.with_suffix(".mo").open("rb") as file:
        compiled = gettext.GNUTranslations(file)._catalog
    del compiled[""]
    texts = {key[0] if isinstance(key, tuple) else key for key in compiled}
    assert texts == find_texts()
    source = path.read_text()
    assert "fuzzy" not in source
    assert source.count("\nmsgid ") == len(texts) + 1
    parts = {part for text in (*texts, *compiled.values()) for part in text.split("\x04")}
    assert [part for part in parts if json.dumps(part, ensure_ascii=False) not in source] == []


@pytest.mark.django_db
def test_texts_wait_for_the_language_of_the_request():
    """The names of models, fields, choices and the app are lazy, and the migrations are the same in all languages."""
    config = apps.get_app_config("moe_personalize")
    texts = [config.verbose_name]
    for model in config.get_models():
        texts += [model._meta.verbose_name, model._meta.verbose_name_plural]
        fields = [field for field in model._meta.get_fields() if not field.auto_created]
        texts += [field.verbose_name for field in fields]
        texts += [label for field in fields for _, label in field.choices or ()]
    assert len(texts) >= 20
    assert [text for text in texts if not isinstance(text, Promise)] == []
    call_command("makemigrations", "moe_personalize", check_changes=True, dry_run=True, verbosity=0)

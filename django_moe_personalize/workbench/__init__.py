"""The workbench: the pages that ``manage.py moe_sandbox`` serves at ``/``, for the person who works with the sandbox.

The sandbox itself knows no Django. The workbench has the sandbox's pages, with Django's forms and templates but without
the site's own URLs, middleware and template settings, which may be incomplete. ``site`` answers the requests;
``experiences``, ``answers``, ``visitor``, ``ledger``, ``faults`` and ``editor`` each build the content of one page.
"""

from django_moe_personalize.workbench.answers import Answer, build_answer
from django_moe_personalize.workbench.ledger import build_ledger
from django_moe_personalize.workbench.site import Workbench
from django_moe_personalize.workbench.visitor import USER_AGENTS

__all__ = ["USER_AGENTS", "Answer", "Workbench", "build_answer", "build_ledger"]

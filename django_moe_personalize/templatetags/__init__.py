"""Template tags and filters: ``moe_personalize`` is the library of ``{% load moe_personalize %}``.

A tag that shows its default logs the reason there: a missing payload variable, or a template without a request.
"""

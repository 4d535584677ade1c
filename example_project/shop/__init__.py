"""Fernweh, a small shop: this app has all the code that a site writes for personalization.

- ``views``, ``urls``, ``templates``: the pages, with the experiences they show
- ``personalization``: the attributes that the shop sends to MoEngage
- ``catalog``, ``cart``, ``people``: products, the shopping bag, the customers of the demonstration
- ``security``: a strict Content-Security-Policy
"""

"""The workbench shows how the pages are made; a real site doesn't need it.

- ``panel``: the panel on every page: attributes sent, experiences received, and why; ``templatetags`` has its tag
- ``switches``: the visitor of the demonstration chooses device, day and hour
- ``ledger``: the page with impressions and clicks; ``sandbox``: the questions to the sandbox
- ``views``, ``urls``; ``management/commands/demo``: ``manage.py demo`` starts the shop
"""

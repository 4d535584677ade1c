"""The workbench shows how the pages are made; a real site doesn't need it.

- ``panel``: the panel on every page: attributes sent, experiences received, and why; ``templatetags`` has its tag
- ``switches``: the visitor of the demonstration chooses device, day and hour
- ``sandbox``: the questions to the sandbox, for the panel and the ledger, which use the package's own workbench
- ``views``, ``urls``; ``management/commands/demo``: ``manage.py demo`` starts the shop
"""

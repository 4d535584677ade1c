"""The sandbox replaces MoEngage in development and tests. It answers the calls to MoEngage's API from one JSON file.

Its modules import neither Django nor the site's settings. If you change its responses, also change the contract's tests
(``tests/sandbox/test_contract*.py``). The modules, in the order of a request:

- ``transport`` runs the sandbox in this process. ``server`` runs the sandbox over HTTP (``manage.py moe_sandbox``).
- ``faults`` makes responses slow or broken. ``control`` answers the server's own paths, which show and set its state.
- ``engine`` answers the three endpoints. ``validation`` checks requests. ``responses`` builds responses and errors.
- ``decisions`` decides which experience and which variation a visitor gets, and says why.
- ``audiences`` decides which audiences a visitor is in. It has the rules as code, and no data.
- ``ledger`` keeps the accepted events and their counts. ``profiles`` keeps the attributes of customers.
- ``workspace`` reads experiences, variations, audiences and customers from a file, with the help of ``rule_reader``,
  ``payloads`` and ``reading``. They report all mistakes in the file.
- ``workspace.json`` is the shipped file. It has the data: the experiences, audiences and customers of an example shop.
"""

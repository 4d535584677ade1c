"""The sandbox stands in for MoEngage in development and tests: its three endpoints, answered from one JSON file.

Its modules import neither Django nor the site's settings, and its answers change only with the contract's tests
(``tests/sandbox/test_contract*.py``). In the order of a request:

- ``transport``: the sandbox in this process; ``server``: the sandbox over HTTP (``manage.py moe_sandbox``)
- ``faults``: slow, failing and broken responses; ``control``: the server's own paths to see and set its state
- ``engine``: the three endpoints; ``validation``: the checks on requests; ``responses``: JSON and errors
- ``decisions``: which experience and variation a visitor gets, and why; ``audiences``: who is in an audience
- ``ledger``: the accepted events and their counts; ``profiles``: the attributes of customers
- ``workspace``: experiences, variations and schedules, read from a file; ``workspace.json`` is the shipped file
- ``rule_reader``, ``payloads``, ``reading``: the parts that read the file and report its mistakes
"""

from django_moe_personalize.sandbox.control import is_loopback
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.faults import Faults
from django_moe_personalize.sandbox.server import SandboxServer, build_server
from django_moe_personalize.sandbox.transport import SandboxTransport
from django_moe_personalize.sandbox.workspace import Workspace, WorkspaceError, load_workspace, parse_workspace

__all__ = [
    "Engine",
    "Faults",
    "SandboxServer",
    "SandboxTransport",
    "Workspace",
    "WorkspaceError",
    "build_server",
    "is_loopback",
    "load_workspace",
    "parse_workspace",
]

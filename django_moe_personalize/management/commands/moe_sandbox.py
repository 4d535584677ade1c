"""``manage.py moe_sandbox``: the sandbox as a server of its own."""

from __future__ import annotations

import ipaddress
import signal
import threading
from types import FrameType
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from django_moe_personalize.sandbox.control import is_loopback
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.faults import Faults
from django_moe_personalize.sandbox.server import SandboxServer, build_server
from django_moe_personalize.sandbox.workspace import Workspace, WorkspaceError, load_workspace

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8899


class Command(BaseCommand):
    """Serve the sandbox until it is interrupted or terminated; the exit code is then 0."""

    help = "Runs MoEngage Personalize locally, from a workspace file."
    # It needs no settings: it is what a site is configured against.
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """See BaseCommand.add_arguments()."""
        parser.add_argument("address", nargs="?", default="", metavar="ADDR:PORT", help="default: 127.0.0.1:8899")
        parser.add_argument("--workspace", metavar="FILE", help="a workspace file (default: the shipped one)")
        parser.add_argument("--latency-ms", type=float, default=0.0, metavar="N", help="wait before every answer")
        parser.add_argument("--error-rate", type=float, default=0.0, metavar="P", help="share of answers that are 500")

    def handle(self, *args: Any, **options: Any) -> None:
        """Serve. Raises CommandError for a bad address, a port in use, a bad workspace or fault."""
        host, port = parse_address(options["address"])
        try:
            workspace = load_workspace(options["workspace"])
            faults = Faults(latency=options["latency_ms"] / 1000, error_rate=options["error_rate"])
        except WorkspaceError as error:
            raise CommandError(f"The workspace cannot be used:\n{error}") from error
        except ValueError as error:
            raise CommandError(str(error)) from error
        try:
            server = build_server(Engine(workspace), host, port, faults=faults)
        except OSError as error:
            raise CommandError(f"{host}:{port} cannot be had: {error.strerror}.") from error
        with server:
            self._serve(server, workspace, host)

    def _announce(self, server: SandboxServer, workspace: Workspace, host: str) -> None:
        settings = {"BASE_URL": server.url, "WORKSPACE_ID": workspace.workspace_id, "API_KEY": workspace.api_key}
        self.stdout.write(f"The sandbox answers at {server.url}\n\nIn the settings:\n\n    MOE_PERSONALIZE = {{")
        for name, value in settings.items():
            self.stdout.write(f'        "{name}": "{value}",')
        self.stdout.write("    }\n\nor in the environment:\n")
        for name, value in settings.items():
            self.stdout.write(f"    MOE_PERSONALIZE_{name}={value}")
        self.stdout.write(f"\n{len(workspace.definitions)} experiences: {', '.join(workspace.definitions)}")
        if not is_loopback(host):
            self.stderr.write("Anyone who reaches this machine reaches the sandbox.")
        self.stdout.write("Ctrl-C ends it.")
        self.stdout.flush()

    def _serve(self, server: SandboxServer, workspace: Workspace, host: str) -> None:
        def end(number: int, frame: FrameType | None) -> None:
            # Not an exception, which is lost where one is ignored (a finaliser, say); and not here,
            # where shutdown() would wait for the loop it interrupts.
            threading.Thread(target=server.shutdown, daemon=True).start()

        before = {}
        if threading.current_thread() is threading.main_thread():
            # Before the announcement: whoever waits for it may end the sandbox the moment it is out.
            before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._announce(server, workspace, host)
            server.serve_forever()
            self.stdout.write("The sandbox has ended.")
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def parse_address(text: str) -> tuple[str, int]:
    """Return (host, port) of ``ADDR:PORT``, ``ADDR``, ``PORT`` or ``""``; raises CommandError."""
    host, colon, port = text.rpartition(":")
    if not colon or (text.startswith("[") and text.endswith("]")):
        host, port = (DEFAULT_HOST, text) if text.isdigit() else (text, "")
    host = "127.0.0.1" if host == "localhost" else host.strip("[]") or DEFAULT_HOST
    try:
        ipaddress.ip_address(host)
        number = int(port or DEFAULT_PORT)
    except ValueError as error:
        raise CommandError(f'"{text}" is not an address: write ADDR:PORT, such as 127.0.0.1:8899.') from error
    if not 0 <= number <= 65535:
        raise CommandError(f"{number} is not a port: it must be 0 to 65535.")
    return host, number

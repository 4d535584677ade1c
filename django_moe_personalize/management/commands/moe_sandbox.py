"""``manage.py moe_sandbox``: run the sandbox as an HTTP server."""

from __future__ import annotations

import ipaddress
import re
import threading
from typing import Any
from urllib.parse import urlsplit

from django.core.management.base import BaseCommand, CommandError, CommandParser

from django_moe_personalize.management import stop_on_signals
from django_moe_personalize.sandbox.control import is_loopback
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.faults import Faults
from django_moe_personalize.sandbox.server import BASE_PATH, SandboxServer
from django_moe_personalize.sandbox.workspace import Workspace, WorkspaceError, WorkspaceFile
from django_moe_personalize.workbench import Workbench

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8899


class Command(BaseCommand):
    """Serve the sandbox until SIGTERM or Ctrl-C. Then the exit code is 0."""

    help = "Runs MoEngage Personalize locally, from a workspace file."
    # The site's settings may be incomplete: this command prints the settings that the site needs.
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """See BaseCommand.add_arguments()."""
        parser.add_argument("address", nargs="?", default="", metavar="ADDR:PORT", help="default: 127.0.0.1:8899")
        parser.add_argument("--workspace", metavar="FILE", help="a workspace file (default: this package's)")
        parser.add_argument("--latency-ms", type=float, default=0.0, metavar="N", help="wait before every answer")
        parser.add_argument("--error-rate", type=float, default=0.0, metavar="P", help="share of answers that are 500")

    def handle(self, *args: Any, **options: Any) -> None:
        """Serve. Raises CommandError for a wrong address, a port in use, a wrong workspace or a wrong fault."""
        host, port = parse_address(options["address"])
        try:
            file = WorkspaceFile(options["workspace"])
            faults = Faults(latency=options["latency_ms"] / 1000, error_rate=options["error_rate"])
            server = SandboxServer(Engine(file), host, port, faults=faults)
            server.pages = Workbench(server.engine, server.injector, file).handle
        except WorkspaceError as error:
            raise CommandError(f"The workspace file has mistakes. Fix them, and start again:\n{error}") from error
        except ValueError as error:
            raise CommandError(str(error)) from error
        except OSError as error:
            message = f"The sandbox can't listen on {host}:{port}: {error.strerror}. Choose another ADDR:PORT."
            raise CommandError(message) from error

        def stop() -> None:
            # In another thread, because shutdown() waits for the loop that the signal has interrupted. An exception
            # can't end the loop: if the signal interrupts a finalizer, Python ignores the exception.
            threading.Thread(target=server.shutdown, daemon=True).start()

        # Handle signals before the announcement: a script may read it and send a signal immediately.
        with server, stop_on_signals(stop):
            self._announce(server, file.workspace, host)
            server.serve_forever()
            self.stdout.write("The sandbox has stopped.")

    def _announce(self, server: SandboxServer, workspace: Workspace, host: str) -> None:
        settings = {"BASE_URL": server.url, "WORKSPACE_ID": workspace.workspace_id, "API_KEY": workspace.api_key}
        settings["DATA_API_KEY"] = workspace.data_api_key
        self.stdout.write(f"The sandbox answers at {server.url}\n\nIn the settings:\n\n    MOE_PERSONALIZE = {{")
        for name, value in settings.items():
            self.stdout.write(f'        "{name}": "{value}",')
        self.stdout.write("    }\n\nor in the environment:\n")
        for name, value in settings.items():
            self.stdout.write(f"    MOE_PERSONALIZE_{name}={value}")
        self.stdout.write(f"\nThe workbench is at {server.url.removesuffix(BASE_PATH)}/")
        self.stdout.write(f"{len(workspace.definitions)} experiences: {', '.join(workspace.definitions)}")
        if not is_loopback(host):
            self.stderr.write("Everyone who can reach this machine can use the sandbox.")
        self.stdout.write("Press Ctrl-C to stop it.")
        self.stdout.flush()


def parse_address(text: str) -> tuple[str, int]:
    """Return (host, port) from ``ADDR:PORT``, ``ADDR``, ``PORT`` or ``""``. Raises CommandError."""
    try:
        if re.search(r"[^\w.:\[\]-]", text) or (text.count(":") > 1 and "[" not in text):
            raise ValueError("only a port may follow it, and an IPv6 address needs brackets")
        parts = urlsplit(f"//:{text}" if text.isdigit() else f"//{text}")
        host = DEFAULT_HOST if parts.hostname in (None, "localhost") else parts.hostname
        ipaddress.ip_address(host)
        return host, DEFAULT_PORT if parts.port is None else parts.port
    except ValueError as error:
        raise CommandError(f'"{text}" is not an address ({error}). Write ADDR:PORT, such as 127.0.0.1:8899.') from error

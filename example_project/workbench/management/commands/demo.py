"""``manage.py demo``: prepare the database and serve the shop."""

from __future__ import annotations

import errno
import re
import signal
from argparse import ArgumentParser
from typing import Any

from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler, get_internal_wsgi_application

from shop.people import PEOPLE, get_user
from workbench import sandbox

ADDRESS = re.compile(r"(?:(?P<host>[^\[\]]*|\[[0-9A-Fa-f:.]+\]):)?(?P<port>\d{1,5})")


class QuietHandler(WSGIRequestHandler):
    """Don't log requests: the pages of the shop show what it does."""

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


class Command(BaseCommand):
    """Migrate, create the demo users, serve until Ctrl-C."""

    help = "Migrates the database, creates the demo users and serves the example shop until Ctrl-C."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the address."""
        parser.add_argument("addrport", nargs="?", default="127.0.0.1:8000", metavar="ADDR:PORT")

    def handle(self, *args: Any, addrport: str, **options: Any) -> None:
        """Run the demonstration. Raises CommandError if the address can't be bound."""
        host, port = read_address(addrport)
        server = self.build_server(host, port)
        with server:
            call_command("migrate", interactive=False, verbosity=0)
            for person in PEOPLE:
                get_user(person)
            self.greet(host, server.server_port)
            # `kill` and tox stop the shop like Ctrl-C does, so that it delivers its last events.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.default_int_handler)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                self.stdout.write("\nThe shop is closed.")

    def build_server(self, host: str, port: int) -> ThreadedWSGIServer:
        """Return a bound server that also serves the static files of the apps. Raises CommandError."""
        try:
            server = ThreadedWSGIServer((host.strip("[]"), port), QuietHandler, ipv6=host.startswith("["))
        except OSError as error:
            raise CommandError(describe_bind_error(error, host, port)) from error
        server.daemon_threads = True
        server.set_app(StaticFilesHandler(get_internal_wsgi_application()))
        return server

    def greet(self, host: str, port: int) -> None:
        """Print the address of the shop and what to try."""
        url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}/"  # noqa: S104 - compared, not bound
        lines = (
            self.style.SUCCESS(f"The shop is at {url}"),
            f"Its experiences come from {sandbox.describe()}.",
            f"Try {url}?utm_medium=email, sign in as Ada, open “Behind this page” and change the hour.",
            f"Watch the clicks arrive at {url}ledger/. Press Ctrl-C to close the shop.",
        )
        self.stdout.write("\n".join(lines))
        self.stdout.flush()


def read_address(text: str) -> tuple[str, int]:
    """Return host and port from ``ADDR:PORT`` or ``PORT``; raises CommandError."""
    match = ADDRESS.fullmatch(text)
    if match is None or int(match["port"]) > 65535:
        raise CommandError(f"{text!r} is not an address. Write ADDR:PORT, such as 127.0.0.1:8000, or only a port.")
    return match["host"] or "127.0.0.1", int(match["port"])


def describe_bind_error(error: OSError, host: str, port: int) -> str:
    """Return why the server can't start, and how to fix it."""
    if error.errno == errno.EADDRINUSE:
        other = f"{host}:{port + 1 if port < 65535 else 8001}"
        return (
            f"Another program uses {host}:{port}. Stop that program, or give the shop another port: "
            f"python example_project/manage.py demo {other} (or: python3 -m tox run -e demo -- {other})."
        )
    if error.errno == errno.EACCES:
        return f"You may not use port {port}. Choose one above 1023, such as {host}:8000."
    return f"The shop can't listen on {host}:{port}: {error.strerror or error}. Try 127.0.0.1:8000."

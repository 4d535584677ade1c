"""``manage.py moe_sandbox``: its output, its arguments, its errors and its end."""

import http.client
import io
import os
import re
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from django_moe_personalize.management.commands.moe_sandbox import parse_address
from tests.sandbox.ways import METADATA, credentials


class Output(io.StringIO):
    """The output of a command. ``ready`` is set after the announcement."""

    def __init__(self) -> None:
        super().__init__()
        self.ready = threading.Event()

    def flush(self) -> None:
        if "Ctrl-C" in self.getvalue():
            self.ready.set()


def run(*args: str, end: int = signal.SIGTERM, **options: Any) -> tuple[str, str, int]:
    """Run the command until a signal. Return its output, its errors and the status of one metadata call."""
    out, err, statuses = Output(), io.StringIO(), []

    def visit() -> None:
        assert out.ready.wait(60)
        port = int(re.search(r"answers at http://\S+:(\d+)/v1", out.getvalue())[1])
        line = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for path in ("/v1" + METADATA, "/"):
            line.request("GET", path, headers=credentials())
            answer = line.getresponse()
            statuses.append(answer.status)
            answer.read()
        line.close()
        os.kill(os.getpid(), end)

    visitor = threading.Thread(target=visit)
    visitor.start()
    call_command("moe_sandbox", *args, stdout=out, stderr=err, **options)
    visitor.join()
    assert statuses[1] == 200, "the workbench has no faults"
    return out.getvalue(), err.getvalue(), statuses[0]


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_a_signal(end: int) -> None:
    """The output has the settings of a site. A signal ends the command without an error, and restores the handlers."""
    before = signal.getsignal(signal.SIGTERM)

    out, err, status = run("127.0.0.1:0", end=end)

    base_url = re.search(r"answers at (\S+)", out)[1]
    assert status == 200
    assert err == ""
    for name, value in [("BASE_URL", base_url), ("WORKSPACE_ID", "SANDBOX_DEBUG"), ("API_KEY", "sandbox-key")]:
        assert f'"{name}": "{value}",' in out
        assert f"MOE_PERSONALIZE_{name}={value}\n" in out
    assert "hero-banner" in out
    assert f"The workbench is at {base_url.removesuffix('v1')}\n" in out
    assert signal.getsignal(signal.SIGTERM) is before


def test_options_reach_the_server(tmp_path: Path) -> None:
    """The server uses the workspace file and the faults."""
    file = tmp_path / "mine.json"
    file.write_text('{"workspace_id": "SANDBOX_DEBUG", "api_key": "sandbox-key"}')
    began = time.monotonic()

    out, _, status = run("localhost:0", "--workspace", str(file), "--error-rate", "1", "--latency-ms", "50")

    assert status == 500
    assert time.monotonic() - began >= 0.05
    assert "0 experiences" in out


def test_open_address_is_a_warning() -> None:
    """An address beyond the loopback prints a warning."""
    _, err, status = run("0.0.0.0:0")

    assert status == 200
    assert "Everyone who can reach this machine" in err


def test_outside_the_main_thread_it_takes_no_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the main thread may handle signals. In another thread the command serves without them."""
    from django_moe_personalize.sandbox.server import SandboxServer

    served = []
    monkeypatch.setattr(SandboxServer, "serve_forever", lambda self: served.append(self.url))
    thread = threading.Thread(target=call_command, args=("moe_sandbox", "0"), kwargs={"stdout": io.StringIO()})
    thread.start()
    thread.join()

    assert len(served) == 1


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("", ("127.0.0.1", 8899)),
        ("9000", ("127.0.0.1", 9000)),
        (":9000", ("127.0.0.1", 9000)),
        ("127.0.0.1", ("127.0.0.1", 8899)),
        ("localhost", ("127.0.0.1", 8899)),
        ("localhost:80", ("127.0.0.1", 80)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("[::1]:9000", ("::1", 9000)),
        ("[::1]", ("::1", 8899)),
    ],
)
def test_address_may_be_short(text: str, address: tuple[str, int]) -> None:
    """The defaults are 127.0.0.1 and 8899."""
    assert parse_address(text) == address


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere:80"], "\"nowhere:80\" is not an address ('nowhere' does not appear to be an IPv4 or IPv6 address)."),
        (["127.0.0.1:http"], "is not an address (Port could not be cast"),
        (
            ["127.0.0.1:70000"],
            "is not an address (Port out of range 0-65535). Write ADDR:PORT",
        ),
        (["127.0.0.1:-1"], "is not an address (Port"),
        (["::1"], "is not an address (only a port may follow it, and an IPv6 address needs brackets)."),
        (["sites/mine.json"], "is not an address (only a port may follow it, and"),
        (["127.0.0.1:80/admin"], "is not an address (only a port may follow it, and"),
        (["203.0.113.1:0"], "The sandbox can't listen on 203.0.113.1:0: "),
        (["0", "--workspace", "/nonexistent.json"], "/nonexistent.json: cannot be read"),
        (["0", "--latency-ms", "-1"], "latency must be a number of seconds"),
        (["0", "--error-rate", "2"], "error_rate must be a rate"),
    ],
)
def test_mistake_is_a_command_error(args: list[str], message: str) -> None:
    """The message says how to fix it."""
    with pytest.raises(CommandError, match=re.escape(message)):
        call_command("moe_sandbox", *args)


def test_port_in_use_is_a_command_error() -> None:
    """The message names the address and the reason."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(CommandError, match=f"{address}: Address already in use. Choose another"):
            call_command("moe_sandbox", address)


def test_all_mistakes_of_a_workspace_file(tmp_path: Path) -> None:
    """The error lists each mistake with its place, on its own line."""
    file = tmp_path / "mine.json"
    file.write_text('{"workspace_id": 5}')

    with pytest.raises(CommandError) as caught:
        call_command("moe_sandbox", workspace=str(file))

    assert str(caught.value).splitlines() == [
        "The workspace file has mistakes. Fix them, and start again:",
        "mine.json: workspace_id: must be a string that is not empty, not 5",
        'mine.json: "api_key" is missing',
    ]

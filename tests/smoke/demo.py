"""Start the example shop on a free port as a new user does, read pages over HTTP, and stop it.

Run by `tox run -e demo-check`. Not collected by pytest.
"""

import contextlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

MANAGE = Path(__file__).resolve().parents[2] / "example_project" / "manage.py"
START_SECONDS = 60.0
STOP_SECONDS = 20.0
LAPTOP = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
PHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/18.5 Mobile/15E148 Safari/604.1"
)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def read(url: str, *, user_agent: str = LAPTOP) -> tuple[int, str]:
    """Return the status and the text of a page, as a new visitor."""
    request = urllib.request.Request(url, headers={"User-Agent": user_agent})
    with urllib.request.urlopen(request, timeout=10) as response:
        return response.status, response.read().decode()


def wait_until_served(address: str, process: subprocess.Popen[bytes]) -> None:
    """Return when the demo listens; raise RuntimeError if it ends or doesn't listen in time."""
    host, _, port = address.partition(":")
    over = time.monotonic() + START_SECONDS
    while time.monotonic() < over and process.poll() is None:
        with contextlib.suppress(ConnectionError), socket.create_connection((host, int(port)), timeout=1):
            return
        time.sleep(0.1)
    raise RuntimeError(f"The demo doesn't listen on {address}. Its exit code is {process.poll()}.")


@contextlib.contextmanager
def running_demo(address: str) -> Iterator[IO[bytes]]:
    """Run the demo command on ``address`` and yield its output; stop it like Ctrl-C."""
    command = [sys.executable, "-u", str(MANAGE), "demo", address]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_until_served(address, process)
            yield log
        except Exception:
            log.seek(0)
            print(log.read().decode(), file=sys.stderr)
            raise
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=STOP_SECONDS)
            finally:
                process.kill()


def visible_text(html: str) -> str:
    """Return the visible text of the page, so that tokens, nonces and scripts don't count as differences."""
    body = re.sub(r"(?s)<(script|style)\b.*?</\1>", " ", html.partition("<main")[2].partition("</main>")[0])
    return " ".join(re.sub(r"<[^>]*>", " ", body).split())


def main() -> None:
    """Check that the demo prints its address, and that its home page differs by device and campaign."""
    address = f"127.0.0.1:{free_port()}"
    home = f"http://{address}/"
    with running_demo(address) as log:
        pages = {
            "on a laptop": read(home),
            "from an email": read(f"{home}?utm_medium=email"),
            "on a phone": read(home, user_agent=PHONE),
        }
        log.seek(0)
        output = log.read().decode()
    assert home in output, f"the demo doesn't print {home}:\n{output}"
    texts = {name: visible_text(html) for name, (_, html) in pages.items()}
    assert {status for status, _ in pages.values()} == {200}
    assert all(texts.values()), f"a page without text in <main>: {texts}"
    assert texts["from an email"] != texts["on a laptop"], "the home page is the same for ?utm_medium=email"
    assert texts["on a phone"] != texts["on a laptop"], "the home page is the same for a phone"
    print(f"{home} differs for a visitor {', '.join(name for name in texts if name != 'on a laptop')}")


if __name__ == "__main__":
    main()

"""Drive a real browser over WebDriver BiDi: one client for Debian's Chromium (its chromedriver) and Firefox."""

import json
import re
import subprocess
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import websocket

# A person's Chromium isn't headless. The package takes a headless one for a program.
AGENT = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/150.0.0.0 Safari/537.36"
CHROMIUM = {
    "binary": "/usr/bin/chromium",
    "args": ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--user-agent={AGENT}"],
}
COMMANDS = {
    "chromium": ["/usr/bin/chromedriver", "--port=0"],
    "firefox": ["/usr/bin/firefox-esr", "--headless", "--remote-debugging-port=0", "--profile"],
}
KEYS = {"Control": "\ue009", "Shift": "\ue008", "Tab": "\ue004", "Enter": "\ue007", "Escape": "\ue00c"}
KEYS |= {"ArrowLeft": "\ue012", "ArrowUp": "\ue013", "ArrowRight": "\ue014", "ArrowDown": "\ue015"}

# Scroll to the element if it isn't in view, and return the center of its first box.
LOCATE = """const element = document.querySelector(arguments[0]);
element.scrollIntoView({block: "nearest", inline: "nearest", behavior: "instant"});
const box = element.getClientRects()[0];
return [box.x + box.width / 2, box.y + box.height / 2].map(Math.floor)"""

# A violation of the policy isn't in the log of every browser.
REPORT_VIOLATIONS = """() => addEventListener("securitypolicyviolation", (event) => {
  console.error(`Content-Security-Policy: ${event.effectiveDirective} ${event.blockedURI}`) })"""


class BrowserError(Exception):
    """The browser refused a command, or the page's script failed."""


class Browser:
    """A running browser: open pages with ``open_page``."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self.events: list[dict[str, Any]] = []
        self.scripts: dict[str, str] = {}
        self._sent = 0
        self._socket = websocket.create_connection(url, suppress_origin=True, timeout=60)
        wanted = {"goog:chromeOptions": CHROMIUM} if name == "chromium" else {}
        self.send("session.new", capabilities={"alwaysMatch": wanted})
        self.send("session.subscribe", events=["log.entryAdded"])
        self.send("script.addPreloadScript", functionDeclaration=REPORT_VIOLATIONS)

    def send(self, method: str, /, **params: Any) -> dict[str, Any]:
        """Send a command, and return its result. Keep the events that arrive before it."""
        self._sent += 1
        self._socket.send(json.dumps({"id": self._sent, "method": method, "params": params}))
        while (message := self._receive(method)).get("id") != self._sent:
            if message.get("method") == "network.beforeRequestSent":
                self._answer(message["params"])
            elif "method" in message:
                self.events.append(message)
        if message["type"] == "error":
            raise BrowserError(f"{method}: {message['error']}: {message['message']}")
        return message["result"]

    def _receive(self, method: str) -> dict[str, Any]:
        try:
            return json.loads(self._socket.recv())
        except websocket.WebSocketTimeoutException as error:
            raise BrowserError(f"{method}: the browser doesn't answer") from error

    def _answer(self, request: dict[str, Any]) -> None:
        """Answer a request to another site. Its response and this one's id don't matter."""
        if not request["isBlocked"]:
            return
        script = self.scripts.get(request["request"]["url"])
        params = {"request": request["request"]["request"]}
        if script is not None:
            params |= {"statusCode": 200, "reasonPhrase": "OK", "body": {"type": "string", "value": script}}
            kind = {"type": "string", "value": "text/javascript"}
            params |= {"headers": [{"name": "Content-Type", "value": kind}]}
        method = "network.failRequest" if script is None else "network.provideResponse"
        self._socket.send(json.dumps({"id": 0, "method": method, "params": params}))

    @contextmanager
    def open_page(self, width: int = 800, height: int = 600) -> Iterator["Page"]:
        """Open a page for a person whom no site knows: without cookies, cache and storage."""
        person = self.send("browser.createUserContext")["userContext"]
        self.events.clear()
        try:
            page = Page(self, person)
            page.resize(width, height)
            yield page
        finally:
            self.send("browser.removeUserContext", userContext=person)

    def close(self) -> None:
        self.send("browser.close")
        self._socket.close()


@contextmanager
def start(name: str, profile: Path) -> Iterator[Browser]:
    """Start ``"chromium"`` or ``"firefox"``."""
    command = COMMANDS[name] + ([str(profile)] if name == "firefox" else [])
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            lines = iter(process.stdout.readline, "")
            found = next(filter(None, (re.search(r"(?:ws://\S+:|successfully on port )(\d+)", line) for line in lines)))
            browser = Browser(name, f"ws://127.0.0.1:{found[1]}/session")
            yield browser
            browser.close()
        finally:
            process.terminate()


class Page:
    """A tab, with the hands of the person in front of it."""

    def __init__(self, browser: Browser, person: str) -> None:
        self.browser = browser
        self._person = person
        self._context = browser.send("browsingContext.create", type="tab", userContext=person)["context"]

    def _send(self, method: str, /, **params: Any) -> dict[str, Any]:
        try:
            return self._send_to_tab(method, params)
        except BrowserError as error:
            # When Chromium shows a page that it has prerendered, the tab gets another id.
            if "no such frame" not in str(error) or self._context in self._list_tabs():
                raise
            self._context = self._list_tabs()[0]
            return self._send_to_tab(method, params)

    def _send_to_tab(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        place = {"target": {"context": self._context}} if method.startswith("script.") else {"context": self._context}
        return self.browser.send(method, **params, **place)

    def _list_tabs(self) -> list[str]:
        tree = self.browser.send("browsingContext.getTree", maxDepth=0)["contexts"]
        return [context["context"] for context in tree if context["userContext"] == self._person]

    def resize(self, width: int, height: int) -> None:
        self._send("browsingContext.setViewport", viewport={"width": width, "height": height}, devicePixelRatio=1)

    def get(self, url: str) -> None:
        self._send("browsingContext.navigate", url=url, wait="complete")

    def intercept(self, host: str, scripts: dict[str, str]) -> None:
        """Answer all requests to a host with scripts, by their URL. The other requests to the host fail."""
        self.browser.scripts = scripts
        self.browser.send("session.subscribe", events=["network.beforeRequestSent"], contexts=[self._context])
        patterns = [{"type": "pattern", "hostname": host}]
        phases = {"phases": ["beforeRequestSent"], "contexts": [self._context]}
        self.browser.send("network.addIntercept", urlPatterns=patterns, **phases)

    def refresh(self) -> None:
        self._send("browsingContext.reload", wait="complete")

    def back(self) -> None:
        self._send("browsingContext.traverseHistory", delta=-1)

    def run(self, script: str, *arguments: Any) -> Any:
        """Run the body of a function in the page. Wait for the promise that it returns. Values travel as JSON."""
        values = [{"type": "string", "value": json.dumps(arguments)}]
        function = f"async (json) => JSON.stringify([await (function () {{{script}\n}}).apply(null, JSON.parse(json))])"
        call = {"functionDeclaration": function, "arguments": values, "awaitPromise": True}
        answer = self._send("script.callFunction", **call)
        if answer["type"] == "exception":
            raise BrowserError(answer["exceptionDetails"]["text"])
        return json.loads(answer["result"]["value"])[0]

    @property
    def title(self) -> str:
        return self.run("return document.title")

    @property
    def url(self) -> str:
        return self.run("return location.href")

    def _point(self, selector: str, *actions: dict[str, Any], modifier: str = "") -> None:
        x, y = self.run(LOCATE, selector)
        sources: list[dict[str, Any]] = [
            {"type": "pointer", "id": "mouse", "actions": [{"type": "pointerMove", "x": x, "y": y}, *actions]}
        ]
        if modifier:
            wait = [{"type": "pause"}] * (len(actions) + 1)
            down, up = ({"type": kind, "value": KEYS[modifier]} for kind in ("keyDown", "keyUp"))
            sources[0]["actions"].insert(0, {"type": "pause"})
            sources.append({"type": "key", "id": "keyboard", "actions": [down, *wait, up]})
        self._send("input.performActions", actions=sources)

    def hover(self, selector: str) -> None:
        self._point(selector)

    def click(self, selector: str, *, button: int = 0, modifier: str = "") -> None:
        """Click with the left (0) or the middle (1) mouse button, while a modifier key may be down."""
        click = ({"type": "pointerDown", "button": button}, {"type": "pointerUp", "button": button})
        self._point(selector, *click, modifier=modifier)

    def press(self, key: str, selector: str = "") -> None:
        """Press a key: a name in KEYS or a character. With a selector, focus that element first."""
        if selector:
            self.run("document.querySelector(arguments[0]).focus()", selector)
        keys = [{"type": kind, "value": KEYS.get(key, key)} for kind in ("keyDown", "keyUp")]
        self._send("input.performActions", actions=[{"type": "key", "id": "keyboard", "actions": keys}])

    def screenshot(self) -> bytes:
        """Return a PNG of the viewport."""
        return b64decode(self._send("browsingContext.captureScreenshot")["data"])

    def open_tab(self) -> "Page":
        """Open a tab in front of this one."""
        return Page(self.browser, self._person)

    def activate(self) -> None:
        self._send("browsingContext.activate")

    def close(self) -> None:
        self._send("browsingContext.close")

    def count_tabs(self) -> int:
        return len(self._list_tabs())

    def prefer_dark(self, dark: bool) -> None:
        """Emulate a person who prefers no motion, and dark or light pages. Only Chromium can."""
        session = self.browser.send("goog:cdp.getSession", context=self._context)["session"]
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        features += [{"name": "prefers-reduced-motion", "value": "reduce"}]
        media = {"method": "Emulation.setEmulatedMedia", "params": {"features": features}, "session": session}
        self.browser.send("goog:cdp.sendCommand", **media)

    def read_complaints(self) -> list[str]:
        """Return the errors and warnings since the last call."""
        # The log of a page arrives before the response to the next command.
        self.run("")
        entries = [event["params"] for event in self.browser.events if event["method"] == "log.entryAdded"]
        self.browser.events.clear()
        return [entry["text"] for entry in entries if entry["level"] in {"error", "warn"}]

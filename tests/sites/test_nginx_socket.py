"""The visitor's address behind a real nginx that talks to the site through a unix socket."""

import json
import os
import shutil
import sys
import tempfile
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.services.serving import find_free_port, running, wait_until

SITE = "tests.sites.socket_site"
SERVERS = {
    "gunicorn": ["gunicorn", f"{SITE}:wsgi()", "--log-level=warning", "--no-control-socket", "--bind=unix:{socket}"],
    "uvicorn": ["uvicorn", f"{SITE}:asgi", "--factory", "--log-level=warning", "--uds={socket}"],
}
# Debian installs it where only root's PATH has it.
NGINX_PROGRAM = shutil.which("nginx") or "/usr/sbin/nginx"
NGINX = """
daemon off; pid {folder}/nginx.pid; error_log stderr; worker_processes 1; {user}
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://unix:{socket};
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        }}
    }}
}}
"""
WARNING = "A proxy connects to the site through a unix socket"


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize(
    ("proxies", "address", "warnings"),
    [
        # The test stands for a load balancer in front of nginx, so its address is a proxy's too.
        (["unix", "127.0.0.0/8"], "198.41.0.4", 0),
        (["127.0.0.0/8"], "unknown", 1),
        ([], "unknown", 1),
    ],
)
def test_address_through_a_unix_socket(server, proxies, address, warnings):
    """With "unix" in TRUSTED_PROXIES MoEngage gets the address that nginx wrote, never one that the visitor wrote.

    Without "unix" MoEngage gets no address, and the log says once what to do.
    """
    with tempfile.TemporaryDirectory(prefix="moe-") as name, ExitStack() as stack:
        folder, port = Path(name), find_free_port()
        socket, log = folder / "site.sock", stack.enter_context((folder / "log").open("w+"))
        command = [part.format(socket=socket) for part in SERVERS[server]]
        environment = {**os.environ, "TRUSTED_PROXIES": json.dumps(proxies)}
        site = stack.enter_context(running([sys.executable, "-m", *command], env=environment, stderr=log))
        wait_until(site, socket.exists, (folder / "log").read_text)
        user = "user root;" if os.geteuid() == 0 else ""
        (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port, socket=socket, user=user))
        nginx = stack.enter_context(running([NGINX_PROGRAM, "-c", folder / "nginx.conf", "-p", folder], stderr=log))
        url = f"http://127.0.0.1:{port}/"
        wait_until(nginx, lambda: urllib.request.urlopen(url, timeout=60).close() is None, (folder / "log").read_text)
        for _ in range(2):
            request = urllib.request.Request(url, headers={"X-Forwarded-For": "8.8.8.8, 198.41.0.4"})
            with urllib.request.urlopen(request, timeout=60) as response:
                assert response.read().decode() == address
        assert (folder / "log").read_text().count(WARNING) == warnings

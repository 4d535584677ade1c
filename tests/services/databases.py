"""Database servers for as long as a context lasts. Each has a folder of its own with its socket."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.services.serving import ROOT, running, wait_until

Database = dict[str, Any]
"""The value of an alias in DATABASES."""


@contextmanager
def start_postgresql() -> Iterator[Database]:
    programs = _find_postgresql()
    with _folder("postgres") as (folder, owner):
        data = folder / "data"
        initialize = [programs / "initdb", "--auth=trust", "--username=tests", "--no-sync", "--encoding=UTF8"]
        _run([*initialize, "--locale=C", f"--pgdata={data}"], owner)
        # The tests kill the clients of the database, not the machine.
        command = [programs / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off"]
        log = folder / "log"
        with log.open("wb") as file, running(command, stdout=file, stderr=file, **owner) as process:
            wait_until(process, lambda: "ready to accept connections" in log.read_text(), log.read_text)
            yield {
                "ENGINE": "django.db.backends.postgresql",
                "HOST": str(folder),
                "USER": "tests",
                "NAME": "postgres",
            }


def _find_postgresql() -> Path:
    """Return the folder with the programs of the newest PostgreSQL, from Debian or from the path."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    return debian[-1] if debian else Path(shutil.which("postgres") or "").parent


@contextmanager
def start_mariadb() -> Iterator[Database]:
    with _folder("mysql") as (folder, owner):
        data, socket, log = folder / "data", folder / "socket", folder / "log"
        install = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--skip-test-db", "--skip-log-bin"]
        _run([*install, "--auth-root-authentication-method=normal"], owner)
        command = ["mariadbd", "--no-defaults", f"--datadir={data}", f"--socket={socket}", "--skip-networking"]
        command += ["--skip-log-bin", "--innodb-flush-log-at-trx-commit=0", f"--pid-file={folder / 'pid'}"]
        with log.open("wb") as file, running(command, stdout=file, stderr=file, **owner) as process:
            wait_until(process, lambda: "ready for connections" in log.read_text(), log.read_text)
            _run(["mariadb", "--no-defaults", f"--socket={socket}", "--user=root", "-e", "CREATE DATABASE site"], {})
            yield {
                "ENGINE": "django.db.backends.mysql",
                "HOST": str(socket),
                "USER": "root",
                "NAME": "site",
                "OPTIONS": {"charset": "utf8mb4"},
            }


@contextmanager
def start_sqlite() -> Iterator[Database]:
    """Use SQLite with a write-ahead log, which Django's documentation recommends for several writing processes."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"timeout": 20, "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"}
        yield {"ENGINE": "django.db.backends.sqlite3", "NAME": f"{folder}/site.sqlite3", "OPTIONS": options}


@contextmanager
def _folder(user: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Give a folder, and the user that runs the server: database servers refuse to run as root."""
    with tempfile.TemporaryDirectory(prefix="moe-") as name:
        folder, owner = Path(name), {}
        if os.geteuid() == 0:
            account = pwd.getpwnam(user)
            os.chown(folder, account.pw_uid, account.pw_gid)
            owner = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        folder.chmod(0o755)
        yield folder, owner


def _run(command: list[Any], options: dict[str, Any]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr


STARTS = {"postgresql": start_postgresql, "mariadb": start_mariadb, "sqlite": start_sqlite}

"""A Redis on loopback with the commands that Celery's queue and our journal need, which fails as told."""

import contextlib
import socketserver
import threading
import time
from collections import Counter


class LoopbackRedis:
    """Serve on a free port of 127.0.0.1 while in its ``with`` block; one database.

    A command in ``refused`` is answered with an error, one in ``silent`` is executed and never answered, and one
    in ``cut`` is executed once more before its connection ends without an answer. ``asked`` counts commands.
    """

    def __init__(self):
        self.data = {}
        self.ends = {}
        self.refused, self.silent, self.cut = set(), set(), set()
        self.asked = Counter()
        self.lock = threading.RLock()
        self.stopped = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.redis = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self.url = f"redis://127.0.0.1:{self._server.server_address[1]}/0"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc_info):
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def execute(self, name, *told):
        """Execute one command and return its answer: int, bytes, None, a list, or str for a status."""
        with self.lock:
            return getattr(self, f"do_{name.lower()}", lambda *told: "OK")(*told)

    def do_ping(self):
        return "PONG"

    def do_hello(self, version):
        return {b"proto": int(version)}

    def do_set(self, key, value, *options):
        told = [option.upper() for option in options]
        if b"NX" in told and self.ends.get(key, 0.0) > time.monotonic():
            return None
        self.ends[key] = time.monotonic() + int(told[told.index(b"PX") + 1]) / 1000
        return "OK"

    def do_hset(self, key, *pairs):
        held = self.data.setdefault(key, {})
        before = len(held)
        held.update(zip(pairs[::2], pairs[1::2], strict=True))
        return len(held) - before

    def do_hsetnx(self, key, field, value):
        held = self.data.setdefault(key, {})
        return int(held.setdefault(field, value) is value)

    def do_hget(self, key, field):
        return self.data.get(key, {}).get(field)

    def do_hmget(self, key, *fields):
        return [self.do_hget(key, field) for field in fields]

    def do_hdel(self, key, *fields):
        held = self.data.get(key, {})
        return sum(held.pop(field, None) is not None for field in fields)

    do_zrem = do_hdel

    def do_zadd(self, key, *told):
        held = self.data.setdefault(key, {})
        only_there = told[0] == b"XX"
        pairs = told[1:] if only_there else told
        for score, member in zip(pairs[::2], pairs[1::2], strict=True):
            if member in held or not only_there:
                held[member] = float(score)
        return 0

    def do_zcard(self, key):
        return len(self.data.get(key, ()))

    def do_zrangebyscore(self, key, lowest, highest, word, start, count):
        held = self.data.get(key, {})
        found = sorted((score, member) for member, score in held.items() if score <= float(highest))
        return [member for _, member in found][: int(count)]

    def do_lpush(self, key, value):
        self.data.setdefault(key, []).insert(0, value)
        return len(self.data[key])

    def do_llen(self, key):
        return len(self.data.get(key, ()))

    def do_sadd(self, key, *members):
        self.data.setdefault(key, set()).update(members)
        return 0

    def do_smembers(self, key):
        return list(self.data.get(key, ()))


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False


class _Handler(socketserver.StreamRequestHandler):
    disable_nagle_algorithm = True

    def handle(self):
        with contextlib.suppress(OSError):
            queued, nothing = None, b"$-1\r\n"
            while command := self._read():
                name, told = command[0].decode().upper(), command[1:]
                redis = self.server.redis
                redis.asked[name] += 1
                if name in redis.refused:
                    answer = ValueError("ERR refused")
                elif name == "MULTI":
                    queued, answer = [], "OK"
                elif name == "EXEC":
                    answer, queued = [redis.execute(*each) for each in queued], None
                elif queued is not None:
                    queued.append((name, *told))
                    answer = "QUEUED"
                else:
                    answer = redis.execute(name, *told)
                if name in redis.cut:
                    redis.cut.discard(name)
                    return
                if name in redis.silent:
                    redis.stopped.wait()
                # What Redis says for nothing is another word in either version of its protocol.
                nothing = b"_\r\n" if name == "HELLO" or nothing.startswith(b"_") else nothing
                self.wfile.write(encode(answer, nothing))

    def _read(self):
        head = self.rfile.readline()
        return [self.rfile.read(int(self.rfile.readline()[1:]) + 2)[:-2] for _ in range(int(head[1:] or 0))]


def encode(answer, nothing):
    """Return an answer as it goes over the wire."""
    match answer:
        case None:
            return nothing
        case int():
            return b":%d\r\n" % answer
        case bytes():
            return b"$%d\r\n%s\r\n" % (len(answer), answer)
        case str():
            return b"+%s\r\n" % answer.encode()
        case ValueError():
            return b"-%s\r\n" % str(answer).encode()
        case dict():
            pairs = [encode(each, nothing) for pair in answer.items() for each in pair]
            return b"%%%d\r\n" % len(answer) + b"".join(pairs)
        case _:
            return b"*%d\r\n" % len(answer) + b"".join(encode(each, nothing) for each in answer)

"""An upstream whose experiences name the customer, and which counts the calls."""

import json
import random
import time
from typing import Any

from tests.loopback import Exchange, Loopback

CONTEXT = {"cid": "65ea_F_T_WP_AB_2_P_0_AU_42D", "experience": "Echo", "moe_variation_id": "2", "moe_locale_id": "0"}


class Echo(Loopback):
    """Answer each fetch after ``delay`` seconds, and up to ``jitter`` seconds more."""

    def __init__(self, *, delay: float = 0.0, jitter: float = 0.0) -> None:
        super().__init__(self._echo)
        self._delay = delay
        self._jitter = jitter

    def _echo(self, exchange: Exchange) -> None:
        path = exchange.received.target.partition("?")[0]
        if path == "/v1/experiences/fetch":
            time.sleep(self._delay + random.random() * self._jitter)
            exchange.reply(json.dumps(build_answer(json.loads(exchange.received.body))).encode())
        elif path == "/v1/experiences/events":
            exchange.reply(b'{"status": "success", "message": "ok", "req_id": "r"}')
        else:
            exchange.reply(status="503 Service Unavailable")

    def count_fetches(self, customer_id: str) -> int:
        bodies = [json.loads(one.body) for one in self.received if one.target == "/v1/experiences/fetch"]
        return sum(body["identifiers"]["customer_id"] == customer_id for body in bodies)


def build_answer(question: dict[str, Any]) -> dict[str, Any]:
    """Return the response to a fetch (contract §2)."""
    value = {"value": question.get("identifiers", {}).get("customer_id", "nobody"), "data_type": "string"}
    entry = {"payload": {"Title": value, "Text": value}, "experience_context": CONTEXT}
    return {"experiences": dict.fromkeys(question["experience_key"], entry)}

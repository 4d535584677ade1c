"""What an error report would print of an exception: messages, and the locals of every frame but the tests'."""

import traceback
from pathlib import Path
from pprint import pformat

TESTS = str(Path(__file__).parent)


def describe_report(error: BaseException) -> str:
    """Return messages, reprs and locals along the whole chain, suppressed contexts included."""
    shown: list[str] = []
    pending, seen = [error], set()
    while pending:
        link = pending.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        shown += [str(link), repr(link), *(pformat(vars(part)) for part in vars(link).values() if hasattr(part, "url"))]
        for frame, _line in traceback.walk_tb(link.__traceback__):
            if not frame.f_code.co_filename.startswith(TESTS):
                shown += [f"{name} = {pformat(value)}" for name, value in frame.f_locals.items()]
        pending += [link.__cause__, link.__context__]
    return "\n".join(shown)

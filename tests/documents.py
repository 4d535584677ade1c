"""Read the documents: their tables and their code blocks."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)]

_NOTE = r"(?:<!-- (file|not typed): ([^\n]+?) -->\n\n)?"
_FENCE = re.compile(rf"^{_NOTE}( *)```([\w+-]+)\n(.*?)^\3```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block of code; ``place`` is its page and line.

    A comment before the block may name its file, or say why the block can't be typed as printed.
    """

    place: str
    language: str
    code: str
    notes: Mapping[str, str]

    @property
    def file(self) -> str:
        """The path that the comment before the block or its first line names, ``""`` without one."""
        if "file" in self.notes:
            return self.notes["file"]
        match = re.match(r"(?:#|\{#) ([\w./-]+\.\w+)", self.code)
        return match[1] if match else ""


def read(name: str) -> str:
    """Return the text of a page below docs."""
    return (DOCS / name).read_text()


def read_blocks(path: Path) -> list[Block]:
    text = path.read_text()
    return [
        Block(
            f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, match.start(4)) + 1}",
            match[4],
            match[5],
            {match[1]: match[2]} if match[1] else {},
        )
        for match in _FENCE.finditer(text)
    ]


def read_section(text: str, heading: str) -> str:
    """Return what stands under a heading, up to the next one of the same level or a higher one."""
    level = len(heading) - len(heading.lstrip("#"))
    rest = text.partition(f"\n{heading}\n")[2]
    assert rest, f"no section {heading!r}"
    return re.split(rf"^#{{1,{level}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def read_rows(text: str, *columns: str) -> list[list[str]]:
    """Return the cells of all tables in ``text`` whose header is ``columns``."""
    rows, inside = [], False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if cells == list(columns):
            inside = True
        elif not cells:
            inside = False
        elif inside and set(line) - set("|-"):
            rows.append(cells)
    return rows


def read_words(cell: str) -> list[str]:
    """Return what stands between backticks."""
    return re.findall(r"`([^`]+)`", cell)

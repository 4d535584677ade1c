"""Check the examples of docs/howto/testing.md with mypy and pyright, and the typed samples with pyright."""

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.documents import DOCS, ROOT, read_blocks

LAX = ["--allow-untyped-defs", "--allow-incomplete-defs", "--allow-untyped-calls"]
MYPY = ["mypy", "--config-file", str(ROOT / "pyproject.toml"), *LAX]


def main() -> int:
    """Return the number of type checkers that find a mistake."""
    with tempfile.TemporaryDirectory() as folder:
        blocks = [block for block in read_blocks(DOCS / "howto/testing.md") if block.language == "python"]
        # The settings of a site have no types.
        blocks = [block for block in blocks if "settings" not in block.file]
        for number, block in enumerate(blocks):
            (Path(folder) / f"example_{number}.py").write_text(f"# {block.place}\n{block.code}")
        files = [str(path) for path in sorted(Path(folder).glob("*.py"))]
        cache = ["--cache-dir", str(Path(folder) / "cache")]
        commands = [[*MYPY, *cache, *files], ["pyright", "--pythonpath", sys.executable, *files, "tests/typing"]]
        results = [subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=False) for command in commands]
    print(f"checked {len(files)} examples")
    return sum(result.returncode != 0 for result in results)


if __name__ == "__main__":
    sys.exit(main())

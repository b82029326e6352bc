"""Runs what documents tell readers to run: their `sh` blocks line by line, the `python` blocks of each as one program.

Of a table after the line `<!-- run the last column -->`, the code in the last column is run too, row by row. `make
test` is left out, because it has been run before; so are `py` blocks, which need a reader's own files or a network.
Everything runs in the project's root, with .venv's programs. The first document runs alone, since others may use what
it makes; the rest run two at a time, because compiling, which takes most of the time, uses one core.
"""

import concurrent.futures
import json
import os
import re
import subprocess
import sys
import textwrap
import time

SKIPPED = ("make test", ". .venv", "git clone", "cd ", "pip install")
BLOCK = re.compile(
    r"^ *```(sh|python)\n(.*?)^ *```|^<!-- run the last column -->\n((?:\|[^\n]*\n)+)", re.MULTILINE | re.DOTALL
)


def main(paths: list[str]) -> None:
    first, *rest = paths
    document(first)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        runs = {path: pool.submit(alone, path) for path in rest}
        for result in runs.values():
            print(result.result().stdout, end="", flush=True)
        failed = [path for path, result in runs.items() if result.result().returncode]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def alone(path: str) -> subprocess.CompletedProcess[str]:
    """Runs a document in a process of its own, and returns what it printed."""
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.run([sys.executable, __file__, path], stdin=subprocess.DEVNULL, **output)


def document(path: str) -> None:
    """Runs the blocks of a document.

    Raises:
        subprocess.CalledProcessError: A command or a block failed.
    """
    environment = os.environ | {"PATH": f"{os.path.abspath('.venv/bin')}:{os.environ['PATH']}"}
    with open(path) as file:
        text = file.read()
    python = Python(environment)  # later blocks of a document build on earlier ones
    for language, block, table in BLOCK.findall(text):
        block = last_column(table) if table else textwrap.dedent(block)
        if language != "sh":
            print(f"{path}: {block.strip()}", flush=True)
            started = time.perf_counter()
            python.run(block)
            print(f"  {time.perf_counter() - started:.0f} s", flush=True)
            continue
        for line in block.replace("\\\n", " ").splitlines():
            command = line.split("  #")[0].strip()
            if command and not command.startswith(SKIPPED):
                run(["bash", "-euc", command], path, command, environment)
    python.end()


def last_column(table: str) -> str:
    """The code in the last cell of each row below the head, a line for each."""
    rows = table.splitlines()[2:]
    return "".join(row.rsplit("|", 2)[1].strip().strip("`") + "\n" for row in rows)


class Python:
    """An interpreter that runs one block after the other, with warnings as errors."""

    LOOP = """
import json, sys
space = {"__name__": "__main__"}
for line in sys.stdin:
    exec(compile(json.loads(line), "document", "exec"), space)
    print(chr(0), flush=True)
"""

    def __init__(self, environment: dict[str, str]):
        # Most of the time would go to compiling programs that run once, on tiny images.
        flags = f"{environment.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
        environment = environment | {"XLA_FLAGS": flags}
        command = ["python", "-W", "error", "-c", self.LOOP]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True)

    def run(self, block: str) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(block) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line == "\0\n":
                return
            print(line, end="", flush=True)
        raise subprocess.CalledProcessError(self._process.wait(), "python")

    def end(self) -> None:
        self._process.communicate()


def run(arguments: list[str], path: str, what: str, environment: dict[str, str]) -> None:
    print(f"{path}: {what.strip()}", flush=True)
    started = time.perf_counter()
    subprocess.run(arguments, check=True, env=environment, stdin=subprocess.DEVNULL)
    print(f"  {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

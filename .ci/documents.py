"""Runs what documents tell readers to run: their `sh` blocks line by line, their `python` blocks as one program each.

`make test` is left out, because it has been run before; so are `py` blocks, which need a reader's own files. Everything
runs in the project's root, with .venv's programs.
"""

import os
import re
import subprocess
import sys
import time

SKIPPED = ("make test", ". .venv", "git clone", "cd ", "pip install")
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def main(paths: list[str]) -> None:
    environment = os.environ | {"PATH": f"{os.path.abspath('.venv/bin')}:{os.environ['PATH']}"}
    for path in paths:
        with open(path) as file:
            text = file.read()
        programs = ""
        for language, block in BLOCK.findall(text):
            if language == "python":
                # Later blocks of a document build on earlier ones.
                programs += block
                run(["python", "-W", "error", "-c", programs], path, block, environment)
                continue
            for line in block.replace("\\\n", " ").splitlines():
                command = line.split("  #")[0].strip()
                if command and not command.startswith(SKIPPED):
                    run(["bash", "-euc", command], path, command, environment)


def run(arguments: list[str], path: str, what: str, environment: dict[str, str]) -> None:
    print(f"{path}: {what.strip()}", flush=True)
    started = time.perf_counter()
    subprocess.run(arguments, check=True, env=environment, stdin=subprocess.DEVNULL)
    print(f"  {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Commands as processes that are forked off one which has imported torch and timm: that takes each of them seconds.

Run as a program it is that process; it answers a JSON line of what to run with one of how that ended.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any


class Forks:
    """Runs `python -m sam_inspect` again and again."""

    def __init__(self) -> None:
        self.process = self._begun()

    def run(self, words: Sequence[str], env: Mapping[str, str], out: str, err: str) -> tuple[int, int]:
        """The exit status and the largest resident size in bytes; what was said is in the files `out` and `err`."""
        assert self.process.stdin is not None and self.process.stdout is not None
        request = {"words": list(words), "env": dict(env), "folder": str(Path.cwd()), "out": out, "err": err}
        print(json.dumps(request), file=self.process.stdin, flush=True)
        try:
            status, peak_bytes = json.loads(self.process.stdout.readline())
        except BaseException:  # A timeout, say: whoever asks next must not get the answer of this one.
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process = self._begun()
            raise
        return int(status), int(peak_bytes)

    def _begun(self) -> subprocess.Popen[str]:
        words, pipe = [sys.executable, __file__], subprocess.PIPE
        return subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, start_new_session=True)


def serve() -> None:
    """Forks for each line."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            become(json.loads(line))
            return
        _, status, usage = os.wait4(child, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024]), flush=True)


def become(request: Mapping[str, Any]) -> None:
    """What a shell would do, and then the command."""
    for number, path in enumerate((os.devnull, request["out"], request["err"])):
        opened = os.open(path, os.O_RDWR)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["folder"])
    sys.argv = ["sam_inspect", *request["words"]]
    runpy.run_module("sam_inspect", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    for name in ("sam_inspect.batch", "sam_inspect.segment.sam"):
        import_module(name)
    sys.path.pop(0)  # this folder, which no user has there
    serve()

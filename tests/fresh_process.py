"""Scripts in fresh processes that start in half the time: they are forked from one that has imported what is slow.

Nothing of Hugging Face is among it, for that reads its settings from the environment when it is imported.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path


def run_script(
    script: str, *arguments: object, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Like `subprocess.run([sys.executable, "-c", script, *arguments], cwd=cwd, env=env)`, with what it printed."""
    server = _server()
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
        request = {
            "script": textwrap.dedent(script),
            "arguments": [*map(str, arguments)],
            "cwd": str(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
            "stdout": str(stdout),
            "stderr": str(stderr),
        }
        try:
            print(json.dumps(request), file=server.stdin, flush=True)
            returncode = int(server.stdout.readline())
        except BaseException:  # the test's time is up
            os.killpg(server.pid, signal.SIGKILL)
            _server.cache_clear()
            raise
        return subprocess.CompletedProcess(arguments, returncode, stdout.read_text(), stderr.read_text())


@functools.cache
def _server() -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    server = subprocess.Popen([sys.executable, __file__], **pipes, text=True, start_new_session=True)
    atexit.register(server.communicate)  # closes its standard input, at which it ends
    return server


def serve() -> None:
    import pandas  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import scipy.optimize  # noqa: F401
    import torch._dynamo
    import torch.distributed.fsdp
    import torch.utils.tensorboard  # noqa: F401

    gc.freeze()  # or every process would walk through all of it when it ends
    for line in sys.stdin:
        process = os.fork()
        if not process:
            return _become(**json.loads(line))
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become(script: str, arguments: list[str], cwd: str, env: dict[str, str], stdout: str, stderr: str) -> None:
    for number, (path, mode) in enumerate([(os.devnull, os.O_RDONLY), (stdout, os.O_WRONLY), (stderr, os.O_WRONLY)]):
        os.dup2(os.open(path, mode | os.O_CREAT), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["-c", *arguments]
    sys.path[0] = ""
    main = type(sys)("__main__")
    sys.modules["__main__"] = main
    exec(compile(script, "<script>", "exec"), main.__dict__)


if __name__ == "__main__":
    serve()

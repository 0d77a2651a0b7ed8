"""A job in a child of the night's warm process: ``python -m sgrec_core.runtime.warm jobs.<stage> --day D``.

Imports cost a job seconds. `sgrec_core.runtime.zygote` has done them once, and runs the job in a fork of itself with
this command's arguments, environment, folder and standard streams; this command waits and ends as the job did. Where
there is no such process, or it is of another environment, the job runs here, as ``python -m jobs.<stage>`` would.
Imports the standard library alone: it starts in 50 ms.
"""

import json
import os
import resource
import signal
import socket
import sys
from contextlib import suppress

SOCKET = "_SGREC_WARM_SOCKET"
"""Environment variable that names the socket. No setting: `sgrec nightly` sets it for the jobs of its own Airflow."""
COLD, WARM = "cold", "warm"
"""Answers to a request: run it yourself; or it runs here, and its wait status follows."""


def request(path: str, module: str, arguments: list[str]) -> socket.socket | None:
    """Ask the warm process at ``path`` to run the module; None where it does not.

    The connection carries the job's wait status in the end. To close it is to end the job.
    """
    connection = socket.socket(socket.AF_UNIX)
    with suppress(OSError):
        connection.connect(path)
        content = {
            "module": module,
            "arguments": arguments,
            "folder": os.getcwd(),
            "environment": dict(os.environ),
            "prefix": os.path.realpath(sys.prefix),
        }
        text = json.dumps(content).encode()
        socket.send_fds(connection, [len(text).to_bytes(4, "big")], [0, 1, 2])
        connection.sendall(text)
        if connection.recv(len(WARM)).decode() == WARM:
            return connection
    connection.close()
    return None


def end_like(status: int) -> None:
    """End this process as the job ended: with its exit code, or by the signal that killed it."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with suppress(OSError):  # SIGKILL has no other disposition
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def main() -> None:
    module, *arguments = sys.argv[1:]
    path = os.environ.get(SOCKET)
    connection = request(path, module, arguments) if path else None
    if connection is None:
        os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
    status = connection.recv(4)
    if len(status) < 4:
        sys.exit(f"{module}: the warm process that ran it has ended, and the job with it")
    end_like(int.from_bytes(status, "big"))


if __name__ == "__main__":
    main()

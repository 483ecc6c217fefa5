"""Run a command as N processes of one job on this machine, with simulated or real devices.

    python launch/local.py --processes 2 --devices 2 -- jwm train codec-tiny --out runs/codec

Every process gets JWM_COORDINATOR, JWM_NUM_PROCESSES and JWM_PROCESS_ID, which
`jwm_jax.distributed.initialize` reads. With --devices the processes run on that many simulated CPU
devices each and talk through gloo. A signal is passed on to all of them. When one fails the others
are stopped, and its exit code is this program's; 75 (preempted and saved) is passed on as well.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

PREEMPTED = 75


def free_port() -> int:
    """A TCP port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(index: int, processes: int, devices: int | None, port: int) -> dict[str, str]:
    """Environment of one process.

    Args:
        index: Index of the process.
        processes: Processes of the job.
        devices: Simulated CPU devices of each process, or None to leave the platform alone.
        port: Port of the coordinator.

    Returns:
        The variables, on top of this program's.
    """
    env = {
        **os.environ,
        "JWM_COORDINATOR": f"127.0.0.1:{port}",
        "JWM_NUM_PROCESSES": str(processes),
        "JWM_PROCESS_ID": str(index),
        "PYTHONUNBUFFERED": "1",
    }
    if devices is not None:
        env |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    return env


def _copy_lines(stream: IO[str], prefix: str) -> None:
    for line in stream:
        sys.stdout.write(f"{prefix}{line}")
        sys.stdout.flush()


def _stop(children: Sequence["subprocess.Popen[str]"], grace: float) -> None:
    for child in children:
        if child.poll() is None:
            child.terminate()
    deadline = time.monotonic() + grace
    for child in children:
        try:
            child.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def run_local(
    command: Sequence[str],
    processes: int,
    devices: int | None = None,
    *,
    grace: float = 60.0,
    timeout: float | None = None,
) -> int:
    """Run a command in every process and wait.

    Args:
        command: Program and arguments.
        processes: Number of processes.
        devices: Simulated CPU devices of each process, or None to leave the platform alone.
        grace: Seconds between asking the others to stop and killing them.
        timeout: Stop all of them after this many seconds; the exit code is then 124.

    Returns:
        0 when all succeed, else the exit code of the first that failed; a death by signal n is
        128 + n.
    """
    port = free_port()
    children = [
        subprocess.Popen(
            list(command),
            env=environment(index, processes, devices, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for index in range(processes)
    ]
    readers = [
        threading.Thread(target=_copy_lines, args=(child.stdout, f"[{i}] "), daemon=True)
        for i, child in enumerate(children)
    ]
    for reader in readers:
        reader.start()

    def pass_on(number: int, frame: object) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    main = threading.current_thread() is threading.main_thread()
    before = {s: signal.signal(s, pass_on) for s in (signal.SIGTERM, signal.SIGINT)} if main else {}
    try:
        code = _watch(children, grace, timeout)
    finally:
        _stop(children, 0.1)
        for number, handler in before.items():
            signal.signal(number, handler)
    for reader in readers:
        reader.join(timeout=5)
    return code


def _watch(children: Sequence["subprocess.Popen[str]"], grace: float, timeout: float | None) -> int:
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        codes = [child.poll() for child in children]
        failed = next((code for code in codes if code not in (None, 0, PREEMPTED)), None)
        if failed is not None:
            _stop(children, grace)
            return failed if failed > 0 else 128 - failed
        if all(code is not None for code in codes):
            return PREEMPTED if PREEMPTED in codes else 0
        if deadline is not None and time.monotonic() > deadline:
            _stop(children, grace)
            return 124
        time.sleep(0.05)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        description="Run a command as several processes of one job on this machine.",
        epilog="Example: python launch/local.py --processes 2 --devices 2 -- jwm train NAME",
    )
    parser.add_argument("--processes", type=int, default=1, help="number of processes")
    parser.add_argument("--devices", type=int, help="simulated CPU devices of each process")
    parser.add_argument("--grace", type=float, default=60.0, help="seconds from stop to kill")
    parser.add_argument("--timeout", type=float, help="stop everything after so many seconds")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- PROGRAM ARGUMENTS")
    options = parser.parse_args(argv)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("give the command after --")
    if options.processes < 1 or (options.devices is not None and options.devices < 1):
        parser.error("--processes and --devices must be at least 1")
    return run_local(
        command,
        options.processes,
        options.devices,
        grace=options.grace,
        timeout=options.timeout,
    )


if __name__ == "__main__":
    sys.exit(main())

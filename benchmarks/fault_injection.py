"""Faults done to runs: processes stopped at a chosen file operation or moment, full disks, damaged files.

Commands run in processes forked from one that has imported everything, so that each costs its own work only. A stop is
set by Python's audit events, which are raised before a file operation is done: a kill at the renaming of a folder falls
between writing it and its appearing. Native code (Parquet, TensorFlow's checkpoints) raises no such events; stops at a
random moment and a small file system fall there.
"""

import contextlib
import ctypes
import errno
import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

PRELOADED = ["benchmarks.fault_injection", "pipeline.cli", "pipeline.funnel"]
WRITES = frozenset({"open", "os.mkdir", "os.rename"})
REMOVES = frozenset({"os.remove", "os.rmdir"})
CAPABILITIES_OVER_PERMISSIONS = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


class Stop(StrEnum):
    """How a running command is met."""

    KILL = "kill -9"
    INTERRUPT = "Ctrl-C"
    DISK_FULL = "disk full"


class Damage(StrEnum):
    """What is done to a file."""

    FLIP = "flipped byte"
    TRUNCATE = "truncated file"
    REMOVE = "removed file"


@dataclass(frozen=True)
class At:
    """Where a command is stopped.

    Args:
      stop: how.
      number: at which of the file operations that fit, from 1; a disk stays full from there on.
      event: only operations of this audit event (`open` for writing, `os.mkdir`, `os.rename`); "": any.
      inside: only paths in which this regular expression is found.
    """

    stop: Stop
    number: int = 1
    event: str = ""
    inside: str = ""


@dataclass(frozen=True)
class Ending:
    """How a command ended: exit code (negative: the signal), standard output and error, file operations seen."""

    code: int
    out: str
    err: str
    operations: int

    def complaint(self) -> str:
        """Why this is not how a command should end; "" where it succeeded, or refused in one line."""
        lines = [line for line in self.err.splitlines() if line and not line.startswith("epoch ")]
        if "Traceback" in self.out + self.err:
            return f"a traceback: {lines[-1]}"
        if self.code in (0, -signal.SIGKILL):
            return ""
        if len(lines) != 1 or not lines[0].startswith(("error: ", "interrupted: ")):
            return f"exit code {self.code} with {len(lines)} lines: {' / '.join(lines)[:300]}"
        return f"a defect: {lines[0]}" if "UPNEXT_TRACEBACK" in lines[0] else ""


class Commands:
    """Runs `upnext` commands, each in a process forked from one that imported everything.

    Args:
      logs: folder for what they say.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)
        self._count = 0

    def start(self, arguments: Sequence[object], at: At | None = None, **options: Any) -> "Running":
        """Starts `upnext arguments...`; options as of `_command`."""
        self._count += 1
        log = self._logs / f"command-{self._count}"
        process = self._context.Process(target=_command, args=([*map(str, arguments)], str(log), at), kwargs=options)
        process.start()
        return Running(process, log)

    def __call__(self, *arguments: object, at: At | None = None, **options: Any) -> Ending:
        """Runs `upnext arguments...` to its end."""
        return self.start(arguments, at, **options).ending()


@dataclass(frozen=True)
class Running:
    """A command on its way."""

    process: BaseProcess
    log: Path

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the command's whole group, as a terminal does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid or 0, number)

    def ending(self, timeout: float = 900) -> Ending:
        """Waits for the end."""
        self.process.join(timeout)
        if self.process.is_alive():
            self.send(signal.SIGKILL)
            raise TimeoutError(f"{self.log}: no end after {timeout:.0f} s")
        texts = [_text(self.log.with_suffix(suffix)) for suffix in (".out", ".err", ".operations")]
        return Ending(self.process.exitcode or 0, texts[0], texts[1], int(texts[2] or 0))


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _command(
    arguments: list[str],
    log: str,
    at: At | None,
    obey_permissions: bool = False,
    full_folder: tuple[str, int] | None = None,
) -> None:
    """What the forked process does.

    Args:
      arguments: of `upnext`.
      log: path without suffix of what it says.
      at: where it is stopped.
      obey_permissions: root gives up what lets it read and write everything.
      full_folder: a folder that becomes a file system of its own, with room for that many bytes beyond what is in it.
    """
    from pipeline import cli

    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(log + suffix, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if obey_permissions:
        _give_up_override()
    sys.argv = ["upnext", *arguments]
    if full_folder is not None:
        _on_a_small_file_system(Path(full_folder[0]), full_folder[1], cli.main)
    workdir = arguments[arguments.index("--workdir") + 1] if "--workdir" in arguments else arguments[1]
    counted = _Operations(workdir, at)
    sys.addaudithook(counted)
    try:
        cli.main()
    finally:
        Path(log + ".operations").write_text(str(counted.seen))


class _Operations:
    """Counts the file operations under a folder and stops the process at the one that was chosen."""

    def __init__(self, folder: str, at: At | None) -> None:
        self._folder, self._at = folder, at
        self.seen = 0
        self._fitting = 0

    def __call__(self, event: str, arguments: tuple) -> None:
        if event not in WRITES and event not in REMOVES:
            return
        path = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | os.PathLike) else ""
        if not path.startswith(self._folder) or (event == "open" and not _for_writing(arguments)):
            return
        self.seen += 1
        at = self._at
        if at is None or (at.event and event != at.event) or not re.search(at.inside, path):
            return
        self._fitting += 1
        if at.stop == Stop.DISK_FULL:
            if self._fitting >= at.number and event in WRITES and event != "os.rename":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        elif self._fitting == at.number:
            os.kill(os.getpid(), signal.SIGKILL if at.stop == Stop.KILL else signal.SIGINT)


def _for_writing(arguments: tuple) -> bool:
    _, mode, flags = arguments
    return bool(set(mode or "") & set("wax+")) or bool((flags or 0) & (os.O_WRONLY | os.O_RDWR))


def _give_up_override() -> None:
    """Permission bits bind this process from now on, also where it is root's (Linux)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice 32 bits
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    for index in (0, 1):
        sets[index] &= ~CAPABILITIES_OVER_PERMISSIONS
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")


def _on_a_small_file_system(folder: Path, room: int, main: Any) -> None:
    """Runs `main` with `folder` on a file system that becomes full, and copies what it left back to the folder."""
    libc = ctypes.CDLL(None, use_errno=True)
    content = folder.with_name(f"{folder.name}.content")
    folder.rename(content)
    folder.mkdir()
    used = sum(-(-path.stat().st_size // 4096) * 4096 for path in content.rglob("*") if path.is_file())
    size = f"size={used + room}".encode()
    if libc.unshare(0x00020000) or libc.mount(b"none", b"/", None, 1 << 18 | 1 << 14, None):  # private mounts
        raise OSError(ctypes.get_errno(), "no mounts of its own")
    if libc.mount(b"none", os.fsencode(folder), b"tmpfs", 0, size):
        raise OSError(ctypes.get_errno(), "no small file system")
    shutil.copytree(content, folder, dirs_exist_ok=True)
    try:
        main()
    finally:
        shutil.rmtree(content)
        shutil.copytree(folder, content)
        libc.umount2(os.fsencode(folder), 2)
        folder.rmdir()
        content.rename(folder)


def small_file_systems() -> bool:
    """Whether this user may mount one (root with the capability to)."""
    probe = os.fork()
    if not probe:
        libc = ctypes.CDLL(None)
        refused = libc.unshare(0x00020000) or libc.mount(b"none", b"/", None, 1 << 18 | 1 << 14, None)
        os._exit(1 if refused or libc.mount(b"none", b"/mnt", b"tmpfs", 0, b"size=1m") else 0)
    return os.waitstatus_to_exitcode(os.waitpid(probe, 0)[1]) == 0


def damage(path: Path, how: Damage, seed: int) -> None:
    """Damages a file; which byte is flipped, or where it is cut, depends on the seed."""
    content = bytearray(path.read_bytes())
    at = int(np.random.default_rng(seed).integers(max(len(content), 1)))
    if how == Damage.REMOVE:
        path.unlink()
    elif how == Damage.TRUNCATE:
        path.write_bytes(content[:at])
    else:
        content[at] ^= 1 << seed % 8
        path.write_bytes(content)


@contextlib.contextmanager
def copied(folder: Path, to: Path) -> Iterator[Path]:
    """A copy that may be damaged, removed afterwards."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(folder, to)
    try:
        yield to
    finally:
        shutil.rmtree(to, ignore_errors=True)


def wait_for_lock(folder: Path, process: BaseProcess) -> None:
    """Returns when the process holds the run's folder."""
    while process.is_alive() and _text(folder / ".lock") != str(process.pid):
        time.sleep(0.01)

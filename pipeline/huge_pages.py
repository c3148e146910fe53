"""Huge pages for the memory of large embedding tables, without asking the user.

A training step touches rows all over its tables; with pages of 4 KiB most of these are misses of the processor's
address cache. Linux gives pages of 2 MiB to who asks, and the C library asks for all that it allocates when it is
started with `GLIBC_TUNABLES=glibc.malloc.hugetlb=1` (glibc manual, "Memory Allocation Tunables"). It reads this once,
before Python runs, so a command sets it and replaces its own process.
"""

import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

VARIABLE = "GLIBC_TUNABLES"
TUNABLE = "glibc.malloc.hugetlb"

_FIRST_GLIBC = (2, 35)  # the first with this tunable
_MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def environment_for_huge_pages(environment: Mapping[str, str], libc: str, mode: str) -> dict[str, str] | None:
    """The environment to start again with; None where nothing is to be changed.

    Args:
      environment: as it is. Where it says anything of the tunable (0 to do without) it stays; other tunables are kept.
      libc: the C library's name and version, as `glibc 2.36`; another library or an older version has no such tunable.
      mode: the kernel's modes of huge pages with the present one in brackets, as `always [madvise] never`. Only
        `madvise` waits to be asked.
    """
    given = environment.get(VARIABLE, "")
    glibc = re.fullmatch(r"glibc (\d+)\.(\d+).*", libc)
    if TUNABLE in given or "[madvise]" not in mode or not glibc or tuple(map(int, glibc.groups())) < _FIRST_GLIBC:
        return None
    return {**environment, VARIABLE: ":".join(filter(None, [given, f"{TUNABLE}=1"]))}


def restart_with_huge_pages() -> None:
    """Replaces this process by the same command with huge pages, where the system has them and is not using them.

    Only for the first line of a program: whatever the process has done so far is lost. The process id, the arguments,
    open standard streams and ignored signals stay. It happens once, since the second start finds the variable set.
    """
    environment = environment_for_huge_pages(os.environ, _libc(), _mode())
    if environment is not None and sys.executable:
        with suppress(OSError):  # too large an environment: the command works without
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _libc() -> str:
    """Name and version of the C library; "" where it does not tell, as musl."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):
        return ""


def _mode() -> str:
    try:
        return _MODE.read_text()
    except OSError:
        return ""

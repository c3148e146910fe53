"""The command starts itself again with huge pages where the system has them to give, and nowhere else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import huge_pages
from pipeline.huge_pages import environment_for_huge_pages, restart_with_huge_pages

MADVISE = "always [madvise] never\n"
LIBC = "glibc 2.36"

# The command as it is started, where the system gives huge pages; what it finds after the restart is printed.
COMMAND = """
import json, os, sys
from pipeline import cli, huge_pages
huge_pages._mode, huge_pages._libc = lambda: "[madvise]", lambda: "glibc 2.36"
def say():
    environment = [os.environ["GLIBC_TUNABLES"], os.environ["STARTS"]]
    print(json.dumps([sys.argv[1:], sys.orig_argv[1:3], os.getpid(), environment]))
    sys.exit(7)
cli.main = say
os.environ["STARTS"] += "+1"
from pipeline.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("given", "tunables"),
    [
        ({}, "glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": ""}, "glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}, "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"),
    ],
)
def test_huge_pages_are_asked_for_beside_what_is_set(given: dict[str, str], tunables: str) -> None:
    found = environment_for_huge_pages({"HOME": "/h", **given}, LIBC, MADVISE)
    assert found == {"HOME": "/h", "GLIBC_TUNABLES": tunables}


@pytest.mark.parametrize("libc", ["glibc 2.35", "glibc 2.100", "glibc 3.0"])
def test_they_are_asked_for_from_the_first_version_with_the_tunable(libc: str) -> None:
    assert environment_for_huge_pages({}, libc, MADVISE) == {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


@pytest.mark.parametrize(
    ("given", "libc", "mode"),
    [
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}, LIBC, MADVISE),  # so it ends
        ({"GLIBC_TUNABLES": "glibc.malloc.check=3:glibc.malloc.hugetlb=0"}, LIBC, MADVISE),  # the user's choice
        ({}, "glibc 2.34", MADVISE),
        ({}, "glibc 1.99", MADVISE),
        ({}, "", MADVISE),  # musl
        ({}, "musl 2.40", MADVISE),
        ({}, LIBC, "[always] madvise never\n"),
        ({}, LIBC, "always madvise [never]\n"),
        ({}, LIBC, ""),
    ],
)
def test_nothing_is_changed_where_it_is_chosen_or_would_do_nothing(given: dict[str, str], libc: str, mode: str) -> None:
    assert environment_for_huge_pages(given, libc, mode) is None


def test_the_restarted_command_keeps_its_arguments_process_and_exit_status(tmp_path: Path) -> None:
    script = tmp_path / "upnext"
    script.write_text(COMMAND)
    arguments = ["run", "a b.yaml", "--set", "x='y'", "--", "--runner=Z", ""]
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, "-X", "utf8", str(script), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**environment, "STARTS": "0"}) as process:
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 7
    assert json.loads(printed) == [arguments, ["-X", "utf8"], process.pid, ["glibc.malloc.hugetlb=1", "0+1+1"]]


def test_without_the_system_s_consent_the_process_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(7, "Argument list too long")

    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(huge_pages, "_mode", lambda: MADVISE)
    monkeypatch.setattr(huge_pages, "_libc", lambda: LIBC)
    asked = []
    monkeypatch.setattr(os, "execve", lambda *command: (asked.append(command), refuse()))
    restart_with_huge_pages()
    assert [command[0] for command in asked] == [sys.executable]


def test_a_library_without_the_name_of_glibc_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> str:
        raise ValueError(f"unrecognized configuration name {name}")

    monkeypatch.setattr(os, "confstr", unknown)
    assert huge_pages._libc() == ""

"""What the command line says of an exception: one line, whatever was raised."""

import errno
import os
import traceback
from pathlib import Path

import pyarrow as pa

from features.errors import UpnextError

TRACEBACK = "UPNEXT_TRACEBACK"
"""Environment variable: where it is set, the traceback is shown too."""

_ROOT = Path(__file__).resolve().parents[1]
_ROOMS = ("features", "models", "serving", "pipeline", "benchmarks")
_OUT_OF_SPACE = os.strerror(errno.ENOSPC)
_OF_THE_SYSTEM = {
    errno.ENOSPC: "no space left; free some or choose another --workdir",
    errno.EDQUOT: "the disk quota is used up; free some or choose another --workdir",
    errno.EACCES: "permission denied; change its permissions or choose another --workdir",
    errno.EPERM: "permission denied; change its permissions or choose another --workdir",
    errno.EROFS: "the file system is read-only; choose another --workdir",
    errno.EMFILE: "too many open files; raise the limit (`ulimit -n`)",
}


def one_line(error: BaseException) -> str:
    """What was expected, what was found, where, what to do.

    Args:
      error: of Upnext, of the system, of a library, or a defect.
    """
    if isinstance(error, UpnextError):
        return _joined(error)
    if isinstance(error, OSError) and not isinstance(error, pa.ArrowException) and error.errno:
        where = f"{error.filename}: " if error.filename else ""
        return where + _OF_THE_SYSTEM.get(error.errno, error.strerror or _joined(error))
    if _OUT_OF_SPACE in str(error):  # what TensorFlow and Beam make of it has no error number
        return f"{_first(error)}: {_OF_THE_SYSTEM[errno.ENOSPC]}"
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        return f"out of memory ({_first(error)}); use a machine with more, or smaller batches, models or vocabularies"
    room = type(error).__module__.split(".")[0]
    if room in ("pyarrow", "tensorflow", "tf_keras", "apache_beam", "lightgbm"):
        return f"{room} failed {_place(error)}: {_first(error)}; set {TRACEBACK}=1 to see where"
    return f"unexpected {type(error).__name__} {_place(error)}: {_first(error)}; set {TRACEBACK}=1 to see where"


def _joined(error: BaseException) -> str:
    return " ".join(str(error).split())


def _first(error: BaseException) -> str:
    """The first line of the message that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


def _place(error: BaseException) -> str:
    """The innermost line of ours that was running."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(_ROOT) and path.relative_to(_ROOT).parts[0] in _ROOMS:
            return f"in {path.relative_to(_ROOT)}:{frame.lineno}"
    return "outside Upnext"

"""TensorFlow's start without the complaint that a machine without a GPU has no GPU."""

import os
import sys
import tempfile
from pathlib import Path

_NO_GPU = b"failed call to cuInit"


def find_devices() -> None:
    """Lets TensorFlow look for its devices; what it logs is passed on, except that there is no NVIDIA driver.

    TensorFlow logs this at the level of errors, so it cannot be left out by level. Where a driver's device files
    exist nothing is left out.
    """
    import tensorflow as tf

    if any(Path("/dev").glob("nvidia*")):
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as logged:
        stderr = os.dup(2)
        try:
            os.dup2(logged.fileno(), 2)
            tf.config.list_physical_devices()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            logged.seek(0)
            os.write(2, b"".join(line for line in logged if _NO_GPU not in line))

"""The papers' models, layers, losses and metrics. Imports features.

This is the one place that selects Keras 2 (`tf_keras`), which tensorflow-recommenders needs: it must happen before
TensorFlow is imported, so every module that uses TensorFlow is reached through this package or imports it first.
"""

import os
import sys

if "tensorflow" in sys.modules and os.environ.get("TF_USE_LEGACY_KERAS") != "1":
    raise ImportError(
        "tensorflow was imported before upnext's `models` package, so Keras 3 is active; "
        "import `models` first or set TF_USE_LEGACY_KERAS=1 in the environment"
    )
os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

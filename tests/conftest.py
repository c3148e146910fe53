"""Shared fixtures. `models` comes first: it selects Keras 2 before TensorFlow is imported."""

import models  # noqa: F401

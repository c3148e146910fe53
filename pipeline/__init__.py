"""Configuration, data sources, stages, training, evaluation, report, command line. Imports every other room."""

import models  # noqa: F401  selects Keras 2 before any module here imports TensorFlow

"""Configuration, data sources, stages, training, evaluation, report, command line. Imports every other room."""

import os

import models  # noqa: F401  selects Keras 2 before any module here imports TensorFlow

# LightGBM's threads would otherwise spin while they wait for one another: on a machine whose cores are shared, a
# training of half a second then takes a minute. OpenMP reads this when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

"""What is measured: commands that write a table, a plot, the machine and the date."""

import pipeline  # noqa: F401  selects Keras 2 before any module here imports TensorFlow

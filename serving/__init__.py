"""SavedModels, the index and the funnel. Imports features and models."""

import models  # noqa: F401  selects Keras 2 before any module here imports TensorFlow

"""SavedModels, the index and the funnel. Imports features and models."""

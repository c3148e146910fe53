"""Exported models: the index, the SavedModels, the funnel. Imports features and models."""

"""Peers of the candidate generators, one family per file.

Each file has a `...Config(Settings)` with the grid that is tried on validation, a `fit_...` function, and a fitted
object with `score(histories) -> float32 [n, videos]`. What they are fitted on and scored with is in `interactions.py`.
"""

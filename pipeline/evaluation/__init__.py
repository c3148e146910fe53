"""What the models are worth: metrics, intervals, peers and the best possible result. NumPy and SciPy only."""

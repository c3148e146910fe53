"""Configuration, data sources, stages, training, evaluation, report, command line. Imports every other room."""

"""What the models see: canonical tables, Beam jobs and feature definitions. Imports nothing of ours."""

"""What the models see: canonical tables, Beam jobs and feature definitions. Imports nothing of ours."""

import logging

# Apache Beam's import announces that Google's BigQuery client is absent; nothing here uses it.
logging.getLogger().addFilter(lambda record: "apitools not found" not in str(record.msg))

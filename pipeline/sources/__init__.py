"""Raw logs in, canonical tables out: one file per source."""

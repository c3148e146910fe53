"""Every error of Upnext, in one file. Each message is one line: what was expected, what was found, where, what to do.

UpnextError
├── ConfigError      the configuration cannot be used
├── DataError        the data that was read cannot be used
│   └── LeakageError     an example saw its own future
├── ArtifactError    a published folder is missing, damaged or of another version
└── ExportError      a model was refused at export
"""


class UpnextError(Exception):
    """Base of all errors a user can act on; the command line prints the message and exits with 1."""


class ConfigError(UpnextError):
    """The configuration cannot be used."""


class DataError(UpnextError):
    """The data that was read cannot be used."""


class LeakageError(DataError):
    """An example holds information from at or after its label's moment."""


class ArtifactError(UpnextError):
    """A published folder is missing, damaged or of another version."""


class ExportError(UpnextError):
    """A model was refused at export."""

"""The built-in configurations as `upnext configs` lists them; nothing is loaded here that takes seconds."""

from rich.table import Table

from features.settings import Settings
from pipeline import config_file


class About(Settings):
    """What a configuration is for, shown by `upnext configs`."""

    summary: str = ""
    paper: str = ""
    command: str = ""
    expected_time: str = ""
    expected_metrics: str = ""


def configurations_table() -> Table:
    """The built-in configurations with what they are for."""
    view = Table(title="Built-in configurations", title_justify="left", show_lines=True)
    for column in ("name", "what", "paper", "command", "expected time", "expected metrics"):
        view.add_column(column, overflow="fold")
    for name in config_file.builtin_names():
        about = About.model_validate(config_file.read_settings(name)[0]["about"])
        view.add_row(name, about.summary, about.paper, about.command, about.expected_time, about.expected_metrics)
    return view

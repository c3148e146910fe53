"""The process of the command `upnext`, also `python -m pipeline`."""

from pipeline.huge_pages import restart_with_huge_pages


def main() -> None:
    """Entry point: the command line, after a restart with huge pages where that is possible."""
    restart_with_huge_pages()
    # Imported here, so that nothing is imported twice.
    from pipeline import cli

    cli.main()


if __name__ == "__main__":
    main()

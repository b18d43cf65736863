"""What the command lines of this project have in common."""

import typer


def command_line(help_text: str | None) -> typer.Typer:
    """An empty command line: help without a command, Markdown in it, and plain tracebacks."""
    return typer.Typer(
        help=help_text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
    )

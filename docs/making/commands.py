"""The reference of the command line, read from the commands themselves."""

from __future__ import annotations

import click

from odn_hybrid.cli import cli

TOP = """# Command line

Data go to standard output, everything else to standard error. The exit status is 0, 1 (failed) or 2 (bad
arguments). This page is written from the commands; `odn --help` and `odn VERB --help` say the same.
"""


def commands_page() -> str:
    """A section for each verb, in the order of their names."""
    return TOP + "".join(_section(name, cli.commands[name]) for name in sorted(cli.commands))


def _section(name: str, command: click.Command) -> str:
    # With the settings of the whole: a command remembers its help option from the first context it is given.
    context = click.Context(command, info_name=f"odn {name}", **cli.context_settings)
    usage = command.get_usage(context).removeprefix("Usage: ")
    usage = " ".join(usage.split())
    example = (command.epilog or "").removeprefix("Example: ").strip()
    text = f"\n## odn {name}\n\n{(command.help or '').strip()}\n\n```console\n$ {usage}\n```\n\n"
    if isinstance(command, click.Group):
        return text + "".join(
            _section(f"{name} {sub}", command.commands[sub]) for sub in sorted(command.commands)
        )
    rows = [record for option in command.params if (record := option.get_help_record(context))]
    text += "| option | |\n| --- | --- |\n"
    text += "".join(f"| `{_cell(head)}` | {_prose(body)} |\n" for head, body in rows)
    text += "| `-h`, `--help` | Show this and exit. |\n"
    return text + (f"\nExample:\n\n```console\n$ {example}\n```\n" if example else "")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _prose(text: str) -> str:
    """Help text as Markdown: nothing in it is meant as a mark."""
    return _cell(text).replace("*", "\\*").replace("_", "\\_").replace("<", "\\<").replace("[", "\\[")

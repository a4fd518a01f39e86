"""Every `odn` command that a text tells somebody to type is one that the command line takes."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import click
import pytest

from odn_hybrid.cli import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in (ROOT / "README.md", *PAGES)}
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.S | re.M)


def typed(text: str) -> list[str]:
    """The `odn` commands of shell blocks, whole; a backslash continues a line."""
    blocks = [block for kind, block in FENCED.findall(text) if kind in ("bash", "console")]
    lines = [line.removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith("odn ") and "..." not in line]


def named(text: str) -> list[str]:
    """What prose names: a verb, with some of its options or none."""
    spans = re.findall(r"(?<!`)`(odn [^`\n]+)`(?!`)", FENCED.sub("", text))
    return [span for span in spans if re.match(r"odn [a-z]", span)]


TYPED = [(path, command) for path, text in TEXTS.items() for command in typed(text)]
NAMED = [(path, span) for path, text in TEXTS.items() for span in named(text)]
HELP = {"-h", "--help"}


def verb_of(command: str) -> tuple[click.Command, list[str]]:
    """The verb's command, and the words after it up to a pipe.

    Raises:
        click.UsageError: `odn` has no such verb.
    """
    words = shlex.split(command, comments=True)[1:]
    words = words[: words.index("|")] if "|" in words else words
    if words[0].startswith("-"):
        return cli, words
    if words[0] not in cli.commands:
        raise click.UsageError(f"no verb {words[0]!r}")
    return cli.commands[words[0]], words[1:]


def take(command: str) -> None:
    """Take the command apart as `odn` would, without running it.

    Raises:
        click.ClickException: `odn` would refuse it.
    """
    verb, words = verb_of(command)
    try:
        # Under its parent, as it is called: click keeps the options for help that it meets first.
        parent = None if verb is cli else click.Context(cli, info_name="odn", **cli.context_settings)
        verb.make_context(str(verb.name), list(words), parent=parent)
    except click.exceptions.Exit as done:  # --help and --version are answered at once
        assert done.exit_code == 0


def test_there_is_something_to_check():
    assert len(TYPED) > 15
    assert len(NAMED) > 40


@pytest.mark.parametrize(("path", "command"), TYPED, ids=range(len(TYPED)))
def test_a_command_to_type_is_taken(path, command):
    try:
        take(command)
    except click.ClickException as error:
        pytest.fail(f"{path}: {command}: {error.format_message()}")


@pytest.mark.parametrize(("path", "span"), NAMED, ids=range(len(NAMED)))
def test_options_that_prose_names_exist(path, span):
    verb, words = verb_of(span)
    known = HELP.union(*([*option.opts, *option.secondary_opts] for option in verb.params))
    assert {word.split("=")[0] for word in words if word.startswith("-")} <= known, path


@pytest.mark.parametrize(
    "command",
    [
        "odn fit resnet18 --data x --set optim.lr=0.1 data.image_size=96",
        "odn fit resnet18 --no-such 1",
        "odn shrink runs/mine",
        "odn certify",
    ],
)
def test_a_wrong_command_is_noticed(command):
    with pytest.raises(click.ClickException):
        take(command)


def test_modules_that_launchers_are_told_to_start_can_be_started() -> None:
    recipes = [path.read_text("utf-8") for path in sorted((ROOT / "configs").glob("*.yaml"))]
    told = {
        name for text in (*TEXTS.values(), *recipes) for name in re.findall(r"-m (odn_hybrid[\w.]*)", text)
    }
    assert told
    for name in told:
        assert importlib.util.find_spec(f"{name}.__main__"), f"python -m {name}"

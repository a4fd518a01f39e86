"""What README.md tells somebody with a folder of images to type, and what they are to read there."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
SECTION = "Your own images"
#: The verbs that the section has to tell, in this order.
VERBS = ("pip", "fit", "certify", "export", "compare", "report", "serve", "curl")


@dataclass(frozen=True)
class Told:
    """One command of the section, as written, and the lines that the text says it prints."""

    command: str
    prints: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        """The command as the shell takes it apart, without the comment."""
        return shlex.split(self.command, comments=True)

    @property
    def verb(self) -> str:
        """`fit` of `odn fit ...`, `curl` of `curl ...`."""
        words = self.words
        return words[1] if words[0] == "odn" else words[0]


def told(text: str | None = None) -> list[Told]:
    """The commands of the section's console blocks, in order; a backslash continues a line."""
    text = README.read_text(encoding="utf-8") if text is None else text
    section = re.search(rf"^## {SECTION}\n(.*?)(?=^## |\Z)", text, flags=re.S | re.M)
    if section is None:
        raise ValueError(f"README.md has no section {SECTION!r}")
    found: list[Told] = []
    for block in re.findall(r"^```console\n(.*?)^```", section[1], flags=re.S | re.M):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                found.append(Told(line[2:].strip(), ()))
            elif line.strip() and found:
                found[-1] = Told(found[-1].command, (*found[-1].prints, line.strip()))
    return found


def extras(commands: list[Told]) -> list[str]:
    """The extras that `pip install '...[extra,extra]'` names."""
    install = next(command for command in commands if command.verb == "pip")
    named = re.search(r"\[([a-z,]+)\]", install.words[-1])
    return named[1].split(",") if named else []

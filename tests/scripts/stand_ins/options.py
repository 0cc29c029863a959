"""What the real tools take, for the stand-ins that the tests put on PATH.

The JSON files beside this one hold every option of the tools' own references (`source` names them),
by kind: with a value, with one that may be left out, without.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path


def parse(family: str, command: str, argv: list[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Options and what stands behind them; an option that the tool does not have ends the program.

    Args:
      family: "slurm" or "docker", the file.
      command: "srun", "sbatch", "run", ...
      argv: its arguments. As with the real tools the first word that is no option ends them.

    Returns:
      (option, value) pairs in order, "" for a flag; the words that are left.
    """
    path = Path(__file__).with_name(f"{family}_options.json")
    kinds = {
        option: kind
        for kind, lines in json.loads(path.read_text())[command].items()
        for option in " ".join(lines).split()
    }
    found, rest = [], list(argv)
    while rest and re.match(r"-[-\w]", rest[0]):
        word = rest.pop(0)
        if word == "--":
            break
        option, given, value = word.partition("=")
        kind = kinds.get(option)
        if kind is None or (kind == "flag" and given):
            refuse(command, f"unrecognized option '{word}'")
        if kind == "value" and not given:
            if not rest:
                refuse(command, f"option '{option}' requires an argument")
            value = rest.pop(0)
        found.append((option, value))
    return found, rest


def refuse(command: str, message: str) -> None:
    """Ends the program as the real tool would."""
    print(f"{command}: {message}", file=sys.stderr)
    sys.exit(125)

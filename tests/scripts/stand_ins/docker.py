"""Stand-in of docker: checks the options of build, save, load and run, and notes the call."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from options import parse, refuse

if len(sys.argv) < 2 or sys.argv[1] not in ("build", "save", "load", "run"):
    refuse("docker", f"not understood: {sys.argv[1:]}")
options, rest = parse("docker", sys.argv[1], sys.argv[2:])
call = {"command": sys.argv[1], "options": options, "rest": rest}
with (Path(os.environ["STAND_IN_DIR"]) / "docker.jsonl").open("a") as log:
    log.write(json.dumps(call) + "\n")
if sys.argv[1] == "save":
    Path(dict(options)["--output"]).write_text("image")

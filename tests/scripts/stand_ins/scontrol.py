"""Stand-in of scontrol: `requeue JOB`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from options import refuse

place = Path(os.environ["STAND_IN_DIR"])
if sys.argv[1:] != ["requeue", (place / "job").read_text()]:
    refuse("scontrol", f"not understood: {sys.argv[1:]}")
(place / f"requeued-{sys.argv[2]}").touch()

"""What a compiled program holds."""

from __future__ import annotations

import math
import re

ARRAY = re.compile(r"\b(?:pred|bf16|[fsu]\d+)\[([\d,]+)\]")


def array_sizes(compiled):
    """Elements of all arrays that a compiled program names; those of one device under a mesh."""
    return {
        math.prod(int(n) for n in shape.split(",")) for shape in ARRAY.findall(compiled.as_text())
    }

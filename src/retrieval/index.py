"""Feature files: embeddings of videos and images with what made them, as .npz or .parquet.

Shapes: N rows, D features.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..cluster.feature_files import read_about, read_rows
from ..codec.config import SelectionConfig
from ..data.packing import PackOptions
from ..files import write_atomic
from ..models.encoder import Encoder

FORMATS = (".npz", ".parquet")
INDEX_VERSION = 1
_PACKING = ("num_frames", "sampling", "budget", "geometry", "size", "patch")


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """Embeddings of files.

    Attributes:
      features: float32 [N, D], as the encoder pools them (not of unit length).
      keys: N different names.
      paths: where each file lies; of a record, the folder of its record set.
      about: JSON values: `version`, `encoder` (as it was named), `encoder_sha256`, `packing` (what
        `packing_of` gives; None where all rows come from record sets).
    """

    features: np.ndarray
    keys: list[str]
    paths: list[str]
    about: dict[str, Any]

    @property
    def packing(self) -> PackOptions:
        """How a query has to be packed.

        Raises:
          ValueError: all rows come from record sets, which were packed elsewhere.
        """
        found = self.about["packing"]
        if found is None:
            raise ValueError(
                "the index holds record sets alone and does not know how files are packed: embed "
                "files, or query by --key"
            )
        selection = SelectionConfig(**found["selection"])
        numbers = {name: found[name] for name in _PACKING}
        return PackOptions(modes=(found["mode"],), selection=selection, **numbers)


def packing_of(options: PackOptions) -> dict[str, Any]:
    """How files become sequences, as JSON values."""
    (mode,) = options.modes
    found = {name: getattr(options, name) for name in _PACKING}
    return {**found, "mode": mode, "selection": dataclasses.asdict(options.selection)}


def encoder_hash(encoder: Encoder) -> str:
    """SHA-256 over sizes and parameters: it changes when an embedding could."""
    sizes = ("width", "depth", "num_heads", "mlp_dim", "patch", "rope_theta", "layer_norm_eps")
    text = json.dumps({name: getattr(encoder.config, name) for name in sizes}, sort_keys=True)
    digest = hashlib.sha256(text.encode())
    for path, leaf in sorted(
        (jax.tree_util.keystr(path), leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(encoder.params)[0]
    ):
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(np.asarray(leaf, np.float32)))
    return digest.hexdigest()


def write_index(path: Path, index: Index) -> None:
    """Writes a feature file, whole or not at all.

    Raises:
      ValueError: its ending is no format, or pyarrow is not installed.
    """
    require_format(path)
    write_atomic(path, _as_npz(index) if path.suffix == ".npz" else _as_parquet(index))


def require_format(path: Path) -> None:
    """Raises ValueError unless a feature file of this name can be written."""
    if path.suffix not in FORMATS:
        raise ValueError(f"{path}: the ending must be one of {', '.join(FORMATS)}")
    if path.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise ValueError(
                f"{path}: writing parquet needs pyarrow (pip install pyarrow), or give .npz"
            ) from error


def read_index(path: Path) -> Index:
    """Reads what `write_index` wrote.

    Raises:
      ValueError: the file is missing, damaged, or no index of ours.
    """
    require_format(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: `codecvit embed` makes it")
    keys, rows = read_rows(path)
    paths, text = read_about(path)
    about = json.loads(text)
    if about.get("version") != INDEX_VERSION:
        raise ValueError(
            f"{path} is an index of version {about.get('version')}, not {INDEX_VERSION}: run "
            "`codecvit embed` again"
        )
    return Index(np.asarray(rows, np.float32), list(keys or ()), paths, about)


def _as_npz(index: Index) -> bytes:
    file = io.BytesIO()
    np.savez(
        file,
        features=index.features,
        keys=np.array(index.keys, np.str_),
        paths=np.array(index.paths, np.str_),
        about=np.array(_as_text(index.about)),
    )
    return file.getvalue()


def _as_parquet(index: Index) -> bytes:
    import pyarrow
    from pyarrow import parquet

    N, D = index.features.shape
    flat = pyarrow.array(index.features.reshape(-1), pyarrow.float32())
    columns = {
        "key": pyarrow.array(index.keys, pyarrow.string()),
        "path": pyarrow.array(index.paths, pyarrow.string()),
        "feature": pyarrow.FixedSizeListArray.from_arrays(flat, D),
    }
    table = pyarrow.table(columns).replace_schema_metadata({"codecvit": _as_text(index.about)})
    file = io.BytesIO()
    parquet.write_table(table, file)
    return file.getvalue()


def _as_text(about: Mapping[str, Any]) -> str:
    return json.dumps(about, sort_keys=True)

"""Features that another program has computed, as rows of a record set.

The only way in which another model may supervise ours. Shapes: N records, D features.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..data.records import RecordSet
from .features import Features

_SHOWN = 3


def read_features(path: str | Path, record_set: RecordSet) -> Features:
    """The rows of a feature file that belong to a record set, in its order.

    Args:
      path: NAME.npy, float [rows, D], with NAME.keys.txt beside it, a record key per line; or
        NAME.parquet with the columns `key` and `feature` (a list of D floats), read with pyarrow;
        or what `codecvit embed` wrote.
      record_set: its records; other rows of the file are left out.

    Returns:
      Its features. Where a .npy file holds just these records in their order it stays
      memory-mapped.

    Raises:
      ValueError: the file is missing or of another kind, its keys repeat, or a record has none.
    """
    path = Path(path)
    keys, rows = read_rows(path)
    if keys is None:
        raise ValueError(
            f"--features {path} needs {_keys_file(path).name} beside it: the key of each row, one "
            "per line"
        )
    if len(keys) != len(rows):
        raise ValueError(f"--features {path} has {len(rows)} rows for {len(keys)} keys")
    readable = np.ones(len(record_set), bool)
    if list(keys) == record_set.keys:
        return Features(rows, readable)
    place = {key: number for number, key in enumerate(keys)}
    if len(place) != len(keys):
        raise ValueError(f"--features {path}: its keys are not unique")
    missing = [key for key in record_set.keys if key not in place]
    if missing:
        shown = ", ".join(missing[:_SHOWN])
        raise ValueError(
            f"--features {path} lacks {len(missing)} of the {len(record_set)} records of "
            f"{record_set.path}: {shown}{' ...' if len(missing) > _SHOWN else ''}"
        )
    return Features(rows[[place[key] for key in record_set.keys]], readable)


def read_rows(path: Path) -> tuple[Sequence[str] | None, np.ndarray]:
    """All rows of a feature file, and their keys if it has some.

    Raises:
      ValueError: the file is missing or of another kind.
    """
    if not path.is_file():
        raise ValueError(f"--features {path}: there is no such file")
    if path.suffix == ".npy":
        keys, rows = _read_npy(path)
    elif path.suffix == ".parquet":
        keys, rows = _read_parquet(path)
    elif path.suffix == ".npz":
        keys, rows = _read_npz(path)
    else:
        raise ValueError(f"--features {path}: the ending must be .npy, .npz or .parquet")
    if rows.ndim != 2 or rows.dtype.kind != "f":
        raise ValueError(
            f"--features {path} holds {rows.dtype} {list(rows.shape)}; give floats [rows, features]"
        )
    return keys, rows


def read_about(path: Path) -> tuple[list[str], str]:
    """What `codecvit embed` wrote beside rows and keys: the paths, and what made the rows (JSON).

    Raises:
      ValueError: another program wrote the file.
    """
    foreign = f"{path} was not written by `codecvit embed`"
    if path.suffix == ".npz":
        with _open_npz(path) as arrays:
            if not {"paths", "about"} <= set(arrays.files):
                raise ValueError(foreign)
            return arrays["paths"].tolist(), str(arrays["about"])
    from pyarrow import parquet

    about = (parquet.read_schema(path).metadata or {}).get(b"codecvit")
    if about is None:
        raise ValueError(foreign)
    return parquet.read_table(path, columns=["path"])["path"].to_pylist(), about.decode()


def _open_npz(path: Path) -> np.lib.npyio.NpzFile:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"--features {path} cannot be read: {error}") from error


def _read_npz(path: Path) -> tuple[Sequence[str], np.ndarray]:
    with _open_npz(path) as arrays:
        if not {"keys", "features"} <= set(arrays.files):
            raise ValueError(
                f"--features {path} must hold the arrays keys and features, found {arrays.files}"
            )
        return arrays["keys"].tolist(), arrays["features"]


def _keys_file(path: Path) -> Path:
    return path.with_suffix(".keys.txt")


def _read_npy(path: Path) -> tuple[Sequence[str] | None, np.ndarray]:
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"--features {path} cannot be read: {error}") from error
    names = _keys_file(path)
    keys = names.read_text(encoding="utf-8").splitlines() if names.is_file() else None
    return keys, rows


def _read_parquet(path: Path) -> tuple[Sequence[str], np.ndarray]:
    try:
        import pyarrow
        from pyarrow import compute, parquet, types
    except ImportError as error:
        raise ValueError(
            f"--features {path}: reading parquet needs pyarrow (pip install pyarrow), or give .npy"
        ) from error
    try:
        table = parquet.read_table(path, columns=["key", "feature"])
    except (pyarrow.ArrowInvalid, KeyError, OSError) as error:
        raise ValueError(f"--features {path} cannot be read: {error}") from error
    column = table["feature"]
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    if not any(is_kind(column.type) for is_kind in lists) or column.null_count:
        raise ValueError(
            f"--features {path}: the column feature is {column.type} with {column.null_count} "
            "nulls; give a list of floats in each row"
        )
    lengths = compute.list_value_length(column).unique().to_pylist()
    if len(lengths) != 1:
        raise ValueError(f"--features {path}: rows of different lengths {sorted(lengths)}")
    rows = compute.list_flatten(column).to_numpy().reshape(-1, lengths[0])
    return table["key"].to_pylist(), rows

"""Arrays in a NumPy .npz file: `inputs`, `targets`, and optionally `validation_inputs`, `validation_targets`.

The file comes from outside: sizes are read from the headers and checked before anything is allocated, and
pickled objects are refused.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping

import numpy as np
from numpy.lib import format as npy

from worker.data.dataset import Array, Dataset, Table, split
from worker.spec import ArraysData, Task
from worker.violations import SpecError, Violation

MAX_DATASET_BYTES = 8 << 30  # every worker holds a copy: a larger set would not fit beside the others
MAX_CLASSES = 1 << 20  # a stray large label must not make a layer of that width


def load(spec: ArraysData) -> Dataset:
    """The arrays of the file as float32 inputs and int64 or float32 targets. Raises SpecError, naming the array."""
    arrays = _read(spec.path)
    training = _samples(arrays, prefix="", path=spec.path)
    task = Task.CLASSIFICATION if training.targets.ndim == 1 else Task.REGRESSION
    if "validation_inputs" in arrays:
        validation = _samples(arrays, prefix="validation_", path=spec.path)
        shape = training.inputs.shape[1:]
        if validation.inputs.shape[1:] != shape or validation.targets.ndim != training.targets.ndim:
            got, expected = validation.inputs.shape, (len(validation), *shape)
            raise _fault(spec.path, f"validation_inputs: got shape {got}, expected {expected} as in inputs")
    elif len(training) < 2:
        raise _fault(spec.path, "inputs: got 1 row, expected at least 2, so that one can be held out")
    else:
        training, validation = split(training, fraction=spec.validation_fraction, seed=0)
    if task is Task.REGRESSION:
        num_outputs = training.targets.shape[1]
    else:
        num_outputs = 1 + max(int(training.targets.max()), int(validation.targets.max()))
    return Dataset(task, training, validation, input_shape=training.inputs.shape[1:], num_outputs=num_outputs)


def too_large(num_bytes: int) -> str:
    """What a data set beyond the limit is told."""
    return f"got {num_bytes} bytes of data, expected at most {MAX_DATASET_BYTES}"


def _fault(path: str, description: str) -> SpecError:
    return SpecError([Violation("data.arrays.path", f"{path}: {description}")])


def _read(path: str) -> Mapping[str, Array]:
    """The arrays of a .npz file by name, after their headers were found sound."""
    if not os.path.isabs(path):
        raise _fault(path, "got a relative path, expected an absolute one")
    if not os.path.exists(path):
        raise _fault(path, "no such file")
    if not os.path.isfile(path):
        raise _fault(path, "not a regular file")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            wanted = [name for name in _NAMES if name in members]
            for missing in [name for name in _NAMES[:2] if name not in members]:
                found = ", ".join(sorted(members)) or "nothing"
                raise _fault(path, f"has no array '{missing}'; found {found}")
            declared = sum(_declared_bytes(archive, members[name], path) for name in wanted)
            if declared > MAX_DATASET_BYTES:
                raise _fault(path, too_large(declared))
            arrays = {}
            for name in wanted:
                with archive.open(members[name]) as stream:
                    arrays[name] = npy.read_array(stream, allow_pickle=False)
            return arrays
    except PermissionError:
        raise _fault(path, "cannot be read: permission denied") from None
    except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
        if isinstance(error, SpecError):
            raise
        raise _fault(path, f"is not a sound .npz file ({' '.join(str(error).split())[:120]})") from None


_NAMES = ("inputs", "targets", "validation_inputs", "validation_targets")


def _declared_bytes(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: str) -> int:
    """Bytes of the array that a member's header declares, checked against those that the member has."""
    with archive.open(member) as stream:
        version = npy.read_magic(stream)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read_header(stream)
        if dtype.hasobject:
            raise _fault(path, f"{member.filename}: got Python objects, expected numbers")
        declared = dtype.itemsize
        for size in shape:
            declared *= size
        if stream.tell() + declared != member.file_size:
            present = member.file_size - stream.tell()
            raise _fault(path, f"{member.filename}: declares {declared} bytes of data but has {present}")
        return declared


def _samples(arrays: Mapping[str, Array], *, prefix: str, path: str) -> Table:
    inputs = _numbers(arrays, prefix + "inputs", path)
    targets = _numbers(arrays, prefix + "targets", path)
    if inputs.ndim < 2:
        raise _fault(path, f"{prefix}inputs: got shape {inputs.shape}, expected (rows, features)")
    if inputs.size == 0:
        raise _fault(path, f"{prefix}inputs: got no data (shape {inputs.shape}), expected at least one row")
    if len(inputs) != len(targets):
        raise _fault(path, f"{prefix}targets: got {len(targets)} rows, expected {len(inputs)} as in {prefix}inputs")
    return Table(inputs.astype(np.float32), _targets(targets, prefix, path))


def _targets(targets: Array, prefix: str, path: str) -> Array:
    if targets.dtype.kind in "iu":
        if targets.ndim != 1:
            raise _fault(path, f"{prefix}targets: got classes of shape {targets.shape}, expected (rows,)")
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= MAX_CLASSES:
            raise _fault(path, f"{prefix}targets: got classes {low} to {high}, expected 0 to {MAX_CLASSES - 1}")
        return targets.astype(np.int64)
    if targets.ndim > 2:
        raise _fault(path, f"{prefix}targets: got shape {targets.shape}, expected (rows, values)")
    return targets.reshape(len(targets), -1).astype(np.float32)


def _numbers(arrays: Mapping[str, Array], name: str, path: str) -> Array:
    if name not in arrays:
        raise _fault(path, f"has no array '{name}'")
    array = arrays[name]
    if array.dtype.kind not in "fiu":
        raise _fault(path, f"{name}: got {array.dtype}, expected numbers")
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            bad = np.argwhere(~np.isfinite(array.astype(np.float32, copy=False)))
        if len(bad):
            place = tuple(bad[0].tolist())
            value = array[place]
            raise _fault(path, f"{name}: got {value} at {list(place)}, expected numbers that float32 can hold")
    return array

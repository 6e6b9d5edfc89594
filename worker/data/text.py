"""Text: a file cut into tokens, the first part to train on, the last held out.

A window of as many tokens as the model takes is a sample; training windows start anywhere, held-out ones stand side
by side.
"""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import numpy as np

from worker.data.dataset import Dataset, Indices, Windows
from worker.spec import TextData, Tokenizer
from worker.violations import SpecError, Violation

MAX_TEXT_BYTES = 1 << 30  # tokens are held as 64-bit numbers by every worker
MAX_CHARACTERS = 65_536  # different ones: each is a row of the model's embedding
BYTES = tuple(chr(byte) for byte in range(256))


def load(spec: TextData, *, context: int) -> Dataset:
    """The text as windows of `context` tokens. Raises SpecError for a file that does not work."""
    text = _read(spec)
    vocabulary, tokens = _tokens(text, spec)
    held_out = int(len(tokens) * spec.validation_fraction)
    for name, size in (("training", len(tokens) - held_out), ("held-out", held_out)):
        if size <= context:
            raise _fault(
                spec.path,
                f"got {len(tokens)} tokens, of which {size} in the {name} part, expected more than the model's "
                f"context ({context}) in both parts",
            )
    training, validation = tokens[:-held_out], tokens[-held_out:]
    return Dataset(
        None,
        Windows(training, context, stride=1),
        Windows(validation, context, stride=context),
        input_shape=(context,),
        num_outputs=len(vocabulary),
        vocabulary=vocabulary,
    )


def _fault(path: str | None, description: str) -> SpecError:
    return SpecError([Violation("data.text.path", f"{path or 'the standard library'}: {description}")])


def _read(spec: TextData) -> bytes:
    """The bytes of the file, or of all files of a directory that match `pattern`, in the order of their paths."""
    path = spec.path or sysconfig.get_path("stdlib")
    if not os.path.isabs(path):
        raise _fault(path, "got a relative path, expected an absolute one")
    root = Path(path)
    if not root.exists():
        raise _fault(path, "no such file")
    files = sorted(file for file in root.glob(spec.pattern) if file.is_file()) if root.is_dir() else [root]
    if not files:
        raise _fault(path, f"has no file that matches {spec.pattern!r}")
    if not all(file.is_file() for file in files):
        raise _fault(path, "not a regular file")
    size = sum(file.stat().st_size for file in files)
    if size > MAX_TEXT_BYTES:
        raise _fault(path, f"got {size} bytes of text, expected at most {MAX_TEXT_BYTES}")
    try:
        return b"".join(file.read_bytes() for file in files)
    except PermissionError:
        raise _fault(path, "cannot be read: permission denied") from None


def _tokens(text: bytes, spec: TextData) -> tuple[tuple[str, ...], Indices]:
    """The vocabulary, and the text as places in it."""
    if spec.tokenizer is Tokenizer.BYTE:
        return BYTES, np.frombuffer(text, np.uint8).astype(np.int64)
    try:
        characters = text.decode()
    except UnicodeDecodeError as error:
        raise _fault(spec.path, f"is no UTF-8 text at byte {error.start}; use tokenizer: byte") from None
    points = np.frombuffer(characters.encode("utf-32-le"), np.uint32)
    found, places = np.unique(points, return_inverse=True)
    if len(found) > MAX_CHARACTERS:
        raise _fault(spec.path, f"got {len(found)} different characters, expected at most {MAX_CHARACTERS}")
    return tuple(map(chr, found.tolist())), places.astype(np.int64)

"""A trained model as one safetensors file: its parameters by name, and all that is needed to use them again.

The file's metadata has one entry, `backprop`: a JSON object with the model as the job spec has it, the shape of its
inputs, the number of its outputs and the vocabulary of its text. One entry, because the order of several is not
fixed, and equal models shall be equal files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from worker.models import build
from worker.nn import Module, init
from worker.spec import ModelSpec

KEY = "backprop"
Array = np.ndarray[tuple[int, ...], np.dtype[Any]]


@dataclass(frozen=True)
class Description:
    """What a model is, beside its weights."""

    model: ModelSpec
    input_shape: tuple[int, ...]
    num_outputs: int
    vocabulary: tuple[str, ...] = ()

    def to_json(self) -> str:
        """As it stands in the file."""
        return json.dumps(
            {
                "model": self.model.model_dump(mode="json"),
                "input_shape": self.input_shape,
                "num_outputs": self.num_outputs,
                "vocabulary": self.vocabulary,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Description:
        """What `to_json` wrote; raises ValueError for anything else."""
        document = json.loads(text)
        try:
            return cls(
                ModelSpec.model_validate(document["model"]),
                tuple(map(int, document["input_shape"])),
                int(document["num_outputs"]),
                tuple(map(str, document["vocabulary"])),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"got a description without {error}") from None


def encode(tensors: Mapping[str, Array], description: Description) -> bytes:
    """The file's content."""
    return save(dict(tensors), {KEY: description.to_json()})


def load(path: Path) -> tuple[Module, Description]:
    """The model of a file, ready to be evaluated. Raises ValueError where it is none of ours."""
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            if KEY not in metadata:
                raise ValueError(f"{path}: got a safetensors file of another program, expected a model of backprop")
            description = Description.from_json(metadata[KEY])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: is no sound safetensors file ({error})") from None
    model = build(
        description.model,
        input_shape=description.input_shape,
        num_outputs=description.num_outputs,
        generator=init.generator(0),
    )
    model.load_state_dict(state)
    return model.eval(), description

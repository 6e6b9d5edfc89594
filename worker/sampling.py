"""Text from a trained language model: it continues a prompt, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worker import model_file
from worker.data.text import BYTES
from worker.models import Gpt
from worker.nn import init


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; temperature 0 takes the most likely one."""

    num_tokens: int = 200
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0


def continue_text(path: Path, prompt: str, sampling: Sampling) -> str:
    """What the model of a file makes of a prompt, the prompt included. Raises ValueError, in words for the user."""
    model, description = model_file.load(path)
    if not isinstance(model, Gpt):
        raise ValueError(f"got a model of kind {description.model.kind}, expected gpt: no other writes text")
    vocabulary = description.vocabulary
    tokens = encode(prompt, vocabulary)
    continued = model.generate(
        tokens[None] if len(tokens) else np.zeros((1, 1), np.int64),
        sampling.num_tokens,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        generator=init.generator(sampling.seed),
    )
    return decode(continued[0] if len(tokens) else continued[0, 1:], vocabulary)


def encode(text: str, vocabulary: tuple[str, ...]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The places of a text's tokens in a vocabulary; raises ValueError for what is not in it."""
    if vocabulary == BYTES:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int64)
    places = {token: place for place, token in enumerate(vocabulary)}
    strange = sorted({character for character in text if character not in places})
    if strange:
        raise ValueError(f"prompt: got {''.join(strange)!r}, expected only characters that the training text has")
    return np.array([places[character] for character in text], np.int64)


def decode(tokens: np.ndarray[tuple[int], np.dtype[np.int64]], vocabulary: tuple[str, ...]) -> str:
    """The text of tokens."""
    if vocabulary == BYTES:
        return bytes(tokens.tolist()).decode(errors="replace")
    return "".join(vocabulary[token] for token in tokens)

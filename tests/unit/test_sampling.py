"""Model files and the text that a model writes."""

from pathlib import Path

import numpy as np
import pytest

from worker import model_file
from worker.data.text import BYTES
from worker.model_file import Description
from worker.models import build
from worker.nn import init
from worker.sampling import Sampling, continue_text, decode, encode
from worker.spec import GptModel, MlpModel, ModelSpec

GPT = ModelSpec(gpt=GptModel(layers=1, heads=2, width=8, context=6))


def save(path: Path, spec: ModelSpec, *, vocabulary: tuple[str, ...] = ("a", "b", "c")) -> Path:
    shape = (6,)
    model = build(spec, input_shape=shape, num_outputs=len(vocabulary), generator=init.generator(1))
    path.write_bytes(model_file.encode(model.state_dict(), Description(spec, shape, len(vocabulary), vocabulary)))
    return path


def test_a_model_comes_back_as_it_was(tmp_path: Path) -> None:
    path = save(tmp_path / "model.safetensors", GPT)
    model, description = model_file.load(path)
    assert description == Description(GPT, (6,), 3, ("a", "b", "c"))
    original = build(GPT, input_shape=(6,), num_outputs=3, generator=init.generator(1))
    assert {name: array.tobytes() for name, array in model.state_dict().items()} == {
        name: array.tobytes() for name, array in original.state_dict().items()
    }
    assert not model.training


def test_equal_models_are_equal_files(tmp_path: Path) -> None:
    assert len({save(tmp_path / str(i), GPT).read_bytes() for i in range(5)}) == 1


def test_text_goes_on_from_the_prompt_and_is_a_function_of_the_seed(tmp_path: Path) -> None:
    path = save(tmp_path / "model.safetensors", GPT)
    texts = [continue_text(path, "abc", Sampling(num_tokens=20, temperature=1.0, seed=seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith("abc")
    assert len(texts[0]) == 23
    assert len(continue_text(path, "", Sampling(num_tokens=20))) == 20


def test_what_the_model_never_saw_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "model.safetensors", GPT)
    with pytest.raises(ValueError, match="prompt: got 'xy', expected only characters"):
        continue_text(path, "yxa", Sampling())


def test_another_kind_of_model_does_not_write(tmp_path: Path) -> None:
    path = save(tmp_path / "model.safetensors", ModelSpec(mlp=MlpModel()))
    with pytest.raises(ValueError, match="got a model of kind mlp, expected gpt"):
        continue_text(path, "a", Sampling())


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_file_that_is_no_model_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match="x: "):
        model_file.load(tmp_path / "x")


@pytest.mark.parametrize("vocabulary", [BYTES, ("a", "b", "ä")])
def test_tokens_become_the_text_they_came_from(vocabulary: tuple[str, ...]) -> None:
    assert decode(encode("abäa", vocabulary), vocabulary) == "abäa"
    assert encode("", vocabulary).dtype == np.int64

"""Checkpoints: complete and verified, or not there."""

import json
import resource
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from worker import checkpoint
from worker.checkpoint import Tensors, TrainingState, newest, publish
from worker.model_file import Description
from worker.spec import MlpModel, ModelSpec

TENSORS = Tensors(("0.weight", "0.bias", "scale"), ((3, 4), (3,), ()))
DESCRIPTION = Description(ModelSpec(mlp=MlpModel()), (4,), 3)
JOB = {"spec_sha256": "abc"}


def state_of(step: int) -> TrainingState:
    random = np.random.default_rng(step)
    weights, m, v = random.standard_normal((3, 16)).astype(np.float32)
    return TrainingState(step, weights, {"m": m, "v": v})


def save(directory: Path, step: int, keep: int = 3) -> checkpoint.Published:
    return publish(directory, state_of(step), tensors=TENSORS, description=DESCRIPTION, job=JOB, keep=keep)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_what_was_published_comes_back_bit_for_bit(tmp_path: Path) -> None:
    published = save(tmp_path, 7)
    found = newest(tmp_path, TENSORS, job=JOB)
    assert found is not None
    assert found.step == 7
    assert found.weights.tobytes() == state_of(7).weights.tobytes()
    assert {name: vector.tobytes() for name, vector in found.optimizer.items()} == {
        name: vector.tobytes() for name, vector in state_of(7).optimizer.items()
    }
    assert published.weights_digest == checkpoint.weights_digest(state_of(7).weights)
    assert published.size_bytes == sum(path.stat().st_size for path in published.path.iterdir())


def test_averaged_weights_are_a_model_of_their_own(tmp_path: Path) -> None:
    state = state_of(7)
    averaged = TrainingState(7, state.weights, {"m": state.optimizer["m"], "ema": state.optimizer["v"]})
    published = publish(tmp_path, averaged, tensors=TENSORS, description=DESCRIPTION, job=JOB, keep=1)
    assert published.model == published.path / checkpoint.AVERAGE
    model = load_file(published.model)
    assert {name: array.tobytes() for name, array in model.items()} == {
        name: array.tobytes() for name, array in TENSORS.named(averaged.optimizer["ema"]).items()
    }
    assert set(load_file(published.path / checkpoint.OPTIMIZER)) == {"m"}
    assert published.weights_digest == checkpoint.weights_digest(state.weights)
    found = newest(tmp_path, TENSORS, job=JOB)
    assert found is not None
    assert {name: vector.tobytes() for name, vector in found.optimizer.items()} == {
        name: vector.tobytes() for name, vector in averaged.optimizer.items()
    }


def test_without_an_average_the_model_is_the_weights(tmp_path: Path) -> None:
    published = save(tmp_path, 7)
    assert published.model == published.path / checkpoint.WEIGHTS
    assert not (published.path / checkpoint.AVERAGE).exists()


def test_an_optimizer_without_state_is_fine(tmp_path: Path) -> None:
    publish(
        tmp_path, TrainingState(1, state_of(1).weights, {}), tensors=TENSORS, description=DESCRIPTION, job=JOB, keep=1
    )
    found = newest(tmp_path, TENSORS, job=JOB)
    assert found is not None
    assert found.optimizer == {}


def test_only_the_newest_are_kept_and_nothing_else_lies_about(tmp_path: Path) -> None:
    for step in (1, 2, 30, 4):
        save(tmp_path, step, keep=2)
    assert names(tmp_path) == ["step-0000000004", "step-0000000030"]


def test_a_step_can_be_published_again(tmp_path: Path) -> None:
    save(tmp_path, 5)
    save(tmp_path, 5)
    assert names(tmp_path) == ["step-0000000005"]


def test_no_directory_means_no_checkpoint(tmp_path: Path) -> None:
    assert newest(tmp_path / "none", TENSORS, job=JOB) is None


def test_files_are_for_the_owner_alone(tmp_path: Path) -> None:
    path = save(tmp_path, 1).path
    assert path.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o600}


def test_every_flipped_byte_is_found_and_the_one_before_is_used(tmp_path: Path) -> None:
    save(tmp_path, 1)
    good = save(tmp_path, 2).path
    flips = [(file, position) for file in sorted(good.iterdir()) for position in range(file.stat().st_size)]
    random = np.random.default_rng(0)
    for file, position in [flips[i] for i in random.choice(len(flips), 150, replace=False)]:
        content = bytearray(file.read_bytes())
        original = bytes(content)
        content[position] ^= 1 << int(random.integers(8))
        file.write_bytes(content)
        try:
            found = checkpoint.read(good, TENSORS, job=JOB)
        except checkpoint.CorruptCheckpointError:
            pass
        else:  # a flip in what decides nothing, such as white space, must still give the right state
            assert file.name == checkpoint.MANIFEST
            assert (found.step, found.weights.tobytes()) == (2, state_of(2).weights.tobytes())
        file.write_bytes(original)
    content = bytearray((good / checkpoint.WEIGHTS).read_bytes())
    content[-1] ^= 1
    (good / checkpoint.WEIGHTS).write_bytes(content)
    found_before = newest(tmp_path, TENSORS, job=JOB)
    assert found_before is not None
    assert found_before.step == 1
    assert [name.startswith(".corrupt-step-0000000002") for name in names(tmp_path)] == [True, False]


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.OPTIMIZER, checkpoint.MANIFEST])
@pytest.mark.parametrize("cut", [0, 1, -1])
def test_a_torn_file_is_found(name: str, cut: int, tmp_path: Path) -> None:
    file = save(tmp_path, 1).path / name
    file.write_bytes(file.read_bytes()[:cut])
    assert newest(tmp_path, TENSORS, job=JOB) is None


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.OPTIMIZER, checkpoint.MANIFEST])
def test_a_missing_file_is_found(name: str, tmp_path: Path) -> None:
    (save(tmp_path, 1).path / name).unlink()
    assert newest(tmp_path, TENSORS, job=JOB) is None


def test_another_jobs_checkpoint_is_not_taken(tmp_path: Path) -> None:
    save(tmp_path, 1)
    assert newest(tmp_path, TENSORS, job={"spec_sha256": "other"}) is None


def test_another_models_checkpoint_is_not_taken(tmp_path: Path) -> None:
    save(tmp_path, 1)
    assert newest(tmp_path, Tensors(TENSORS.names, ((4, 3), (3,), ())), job=JOB) is None


def test_a_full_disk_leaves_nothing_and_the_last_one_stays(tmp_path: Path) -> None:
    save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # every write beyond 100 bytes fails, as on a full disk
    try:
        with pytest.raises(OSError, match="too large"):
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["step-0000000001"]


def test_a_directory_that_cannot_be_written_raises_oserror(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        save(tmp_path / "file", 1)


def test_the_manifest_names_what_decides_the_bits(tmp_path: Path) -> None:
    manifest = json.loads((save(tmp_path, 1).path / checkpoint.MANIFEST).read_text())
    assert manifest["job"] == JOB
    assert manifest["fingerprint"]["numpy"] == np.__version__
    assert manifest["fingerprint"]["cpu_features"]

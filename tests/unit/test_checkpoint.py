"""Checkpoints: complete and verified, or not there."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.unit.checkpoints import (
    DESCRIPTION,
    ORIGIN,
    TENSORS,
    flips_found,
    rewrite_manifest,
    save,
    state_of,
    tensors_of,
)
from worker import checkpoint
from worker.checkpoint import AVERAGE, OPTIMIZER, WEIGHTS, Found, Tensors, TrainingState, beside, newest
from worker.checkpoint_store import MANIFEST, LocalStore, StoreUnreachableError, open_file, open_store
from worker.fingerprint import fingerprint

FILES = (WEIGHTS, OPTIMIZER, MANIFEST)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def find(directory: Path, tensors: Tensors = TENSORS, spec_sha256: str = ORIGIN.spec_sha256) -> Found:
    return newest(LocalStore(directory), tensors, spec_sha256=spec_sha256)


def step_of(found: Found) -> int | None:
    return None if found.state is None else found.state.step


def test_what_was_published_comes_back_bit_for_bit(tmp_path: Path) -> None:
    published = save(LocalStore(tmp_path), 7)
    found = find(tmp_path)
    assert found.state is not None
    assert (found.state.step, found.origin, found.corrupt) == (7, ORIGIN, ())
    assert tensors_of(found.state) == tensors_of(state_of(7))
    assert found.state.loss_scale == state_of(7).loss_scale
    assert published.weights_digest == checkpoint.weights_digest(state_of(7).weights)
    assert published.size_bytes == sum(path.stat().st_size for path in Path(published.location).iterdir())
    size, pieces = open_file(published.model)
    assert b"".join(pieces) == Path(published.location, WEIGHTS).read_bytes()
    assert size == Path(published.model).stat().st_size


def test_averaged_weights_are_a_model_of_their_own(tmp_path: Path) -> None:
    state = state_of(7)
    averaged = TrainingState(7, state.weights, {"m": state.optimizer["m"], "ema": state.optimizer["v"]})
    published = save(LocalStore(tmp_path), 7, state=averaged)
    assert published.model == f"{published.location}/{AVERAGE}"
    assert beside(published.model, WEIGHTS) == f"{published.location}/{WEIGHTS}"
    model = load_file(published.model)
    assert {name: array.tobytes() for name, array in model.items()} == {
        name: array.tobytes() for name, array in TENSORS.named(averaged.optimizer["ema"]).items()
    }
    assert set(load_file(Path(published.location, OPTIMIZER))) == {"m"}
    assert published.weights_digest == checkpoint.weights_digest(state.weights)
    found = find(tmp_path)
    assert found.state is not None
    assert tensors_of(found.state) == tensors_of(averaged)


def test_without_an_average_the_model_is_the_weights(tmp_path: Path) -> None:
    published = save(LocalStore(tmp_path), 7)
    assert published.model == f"{published.location}/{WEIGHTS}"
    assert not Path(published.location, AVERAGE).exists()


def test_an_optimizer_without_state_is_fine(tmp_path: Path) -> None:
    save(LocalStore(tmp_path), 1, state=TrainingState(1, state_of(1).weights, {}))
    found = find(tmp_path)
    assert found.state is not None
    assert found.state.optimizer == {}


def test_only_the_newest_are_kept_and_nothing_else_lies_about(tmp_path: Path) -> None:
    for step in (1, 2, 30, 4):
        save(LocalStore(tmp_path), step, keep=2)
    assert names(tmp_path) == ["step-0000000004", "step-0000000030"]


def test_what_was_just_written_is_never_removed(tmp_path: Path) -> None:
    for step in (5, 6, 3):
        save(LocalStore(tmp_path), step, keep=1)
    assert names(tmp_path) == ["step-0000000003", "step-0000000006"]


def test_the_same_step_again_is_the_same_checkpoint(tmp_path: Path) -> None:
    """A step redone after a restart must not replace what was acknowledged: not even for a moment."""
    before = os.stat(save(LocalStore(tmp_path), 5).location).st_ino
    assert os.stat(save(LocalStore(tmp_path), 5).location).st_ino == before
    assert names(tmp_path) == ["step-0000000005"]


def test_a_damaged_one_of_the_same_step_is_written_again(tmp_path: Path) -> None:
    (Path(save(LocalStore(tmp_path), 5).location) / WEIGHTS).write_bytes(b"no weights")
    save(LocalStore(tmp_path), 5)
    assert step_of(find(tmp_path)) == 5
    assert names(tmp_path) == ["step-0000000005"]


def test_no_directory_means_no_checkpoint(tmp_path: Path) -> None:
    assert find(tmp_path / "none") == Found()


def test_files_are_for_the_owner_alone(tmp_path: Path) -> None:
    path = Path(save(LocalStore(tmp_path / "new"), 1).location)
    assert path.stat().st_mode & 0o777 == path.parent.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o600}


def test_every_flipped_bit_is_found() -> None:
    assert flips_found(10_000, seed=0) == 10_000


def test_a_flip_sets_it_aside_and_the_one_before_is_used(tmp_path: Path) -> None:
    save(LocalStore(tmp_path), 1)
    file = Path(save(LocalStore(tmp_path), 2).location) / WEIGHTS
    file.write_bytes(file.read_bytes()[:-1] + b"\x55")
    found = find(tmp_path)
    assert step_of(found) == 1
    assert [name.startswith(".corrupt-step-0000000002") for name in names(tmp_path)] == [True, False]
    assert found.corrupt[0].location == str(tmp_path / names(tmp_path)[0])
    assert found.corrupt[0].reason.startswith(f"{WEIGHTS}: got ")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("cut", [0, 1, -1])
def test_a_torn_file_is_found(name: str, cut: int, tmp_path: Path) -> None:
    file = Path(save(LocalStore(tmp_path), 1).location) / name
    file.write_bytes(file.read_bytes()[:cut])
    found = find(tmp_path)
    assert (step_of(found), len(found.corrupt)) == (None, 1)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        lambda file: file.write_bytes(file.read_bytes() + b"\0"),
        lambda file: (file.unlink(), file.symlink_to("/etc/passwd")),
        lambda file: (file.unlink(), file.mkdir()),
    ],
    ids=["missing", "longer", "a link", "a directory"],
)
def test_a_file_that_is_not_what_it_was_is_found(name: str, damage: Callable[[Path], object], tmp_path: Path) -> None:
    save(LocalStore(tmp_path), 1)
    damage(Path(save(LocalStore(tmp_path), 2).location) / name)
    found = find(tmp_path)
    assert (step_of(found), len(found.corrupt)) == (1, 1)


def test_files_swapped_between_checkpoints_are_found(tmp_path: Path) -> None:
    first, second = (Path(save(LocalStore(tmp_path), step).location) for step in (1, 2))
    (second / OPTIMIZER).write_bytes((first / OPTIMIZER).read_bytes())
    assert step_of(find(tmp_path)) == 1


def test_a_renamed_checkpoint_is_found(tmp_path: Path) -> None:
    Path(save(LocalStore(tmp_path), 1).location).rename(tmp_path / "step-0000000009")
    found = find(tmp_path)
    assert (step_of(found), [corrupt.reason for corrupt in found.corrupt]) == (None, ["is of step 1"])


def test_an_extra_file_changes_nothing(tmp_path: Path) -> None:
    (Path(save(LocalStore(tmp_path), 1).location) / ".nfs0001").write_text("of the file system")
    assert step_of(find(tmp_path)) == 1


def test_other_things_in_the_directory_are_left_alone(tmp_path: Path) -> None:
    save(LocalStore(tmp_path), 1)
    (tmp_path / "notes.txt").write_text("mine")
    assert step_of(find(tmp_path)) == 1
    assert "notes.txt" in names(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 3},
        {"format": None},
        {"step": "1"},
        {"step": -1},
        {"weights_digest": "0" * 64},
        {"files": {}},
        {"files": []},
        {"files": {WEIGHTS: {}}},
        {"fingerprint": None, "files": None},
    ],
    ids=str,
)
def test_a_manifest_that_makes_no_sense_is_corrupt(changes: Mapping[str, object], tmp_path: Path) -> None:
    rewrite_manifest(Path(save(LocalStore(tmp_path), 1).location), lambda manifest: manifest.update(changes))
    found = find(tmp_path)
    assert (step_of(found), len(found.corrupt)) == (None, 1)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"format": 2}', b"null"])
def test_a_manifest_that_is_none_is_corrupt(content: bytes, tmp_path: Path) -> None:
    (Path(save(LocalStore(tmp_path), 1).location) / MANIFEST).write_bytes(content)
    assert step_of(find(tmp_path)) is None


def test_another_jobs_checkpoint_is_not_taken(tmp_path: Path) -> None:
    save(LocalStore(tmp_path), 1)
    assert step_of(find(tmp_path, spec_sha256="other")) is None


def test_another_models_checkpoint_is_not_taken(tmp_path: Path) -> None:
    save(LocalStore(tmp_path), 1)
    assert step_of(find(tmp_path, Tensors(TENSORS.names, ((4, 3), (3,), ())))) is None


def test_a_full_disk_leaves_nothing_and_the_last_one_stays(tmp_path: Path) -> None:
    save(LocalStore(tmp_path), 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # every write beyond 100 bytes fails, as on a full disk
    try:
        with pytest.raises(OSError, match="too large"):
            save(LocalStore(tmp_path), 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["step-0000000001"]


def test_a_directory_that_cannot_be_written_raises_oserror(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        save(LocalStore(tmp_path / "file"), 1)


def test_a_directory_that_cannot_be_read_is_not_an_empty_one(tmp_path: Path) -> None:
    """Otherwise the job would start from its first step, and nobody be told why."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnreachableError, match="file: Not a directory"):
        find(tmp_path / "file")


def test_what_dead_writers_left_is_removed(tmp_path: Path) -> None:
    save(LocalStore(tmp_path), 1)
    for name in (".tmp-step-0000000002-123", ".trash-step-0000000000-abc"):
        (tmp_path / name).mkdir()
        (tmp_path / name / WEIGHTS).write_bytes(b"half")
    find(tmp_path)
    assert names(tmp_path) == ["step-0000000001"]


def test_the_manifest_says_all_that_decides_the_next_bits(tmp_path: Path) -> None:
    manifest = json.loads((Path(save(LocalStore(tmp_path), 1).location) / MANIFEST).read_text())
    assert manifest["spec_sha256"] == ORIGIN.spec_sha256
    assert manifest["data_sha256"] == ORIGIN.data_sha256
    assert manifest["loss_scale"] == {"scale": 1024.0, "num_finite": 1}
    assert manifest["fingerprint"] == fingerprint()


def test_equal_states_are_equal_files(tmp_path: Path) -> None:
    paths = [Path(save(LocalStore(tmp_path / name), 1).location) for name in ("a", "b")]
    for file in FILES:
        assert (paths[0] / file).read_bytes() == (paths[1] / file).read_bytes()


def test_a_list_tells_sound_from_damaged_and_changes_nothing(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    published = [save(store, step) for step in (1, 2, 3)]
    (tmp_path / "step-0000000002" / WEIGHTS).write_bytes(b"damaged")
    (tmp_path / "step-0000000003" / MANIFEST).write_bytes(b"damaged")
    listed = checkpoint.listed(store, verify=True)
    assert [(found.step, found.is_verified, bool(found.problem)) for found in listed] == [
        (3, False, True),
        (2, False, True),
        (1, True, False),
    ]
    sound = listed[2]
    assert (sound.location, sound.weights_digest) == (published[0].location, published[0].weights_digest)
    assert sound.size_bytes == published[0].size_bytes
    assert [found.problem for found in checkpoint.listed(store, verify=False)][1:] == ["", ""]
    assert names(tmp_path) == [f"step-000000000{step}" for step in (1, 2, 3)]


def test_clearing_leaves_nothing(tmp_path: Path) -> None:
    save(LocalStore(tmp_path / "job"), 1)
    LocalStore(tmp_path / "job").clear()
    LocalStore(tmp_path / "job").clear()
    assert names(tmp_path) == []


@pytest.mark.parametrize("location", ["relative", "", "http://host/path", "memory:///", "s3://", "s3:///", "ftp://x/y"])
def test_a_location_that_is_none_is_refused(location: str) -> None:
    with pytest.raises(ValueError, match=r"expected a(n absolute)? path, file:///path"):
        open_store(location)


def test_a_file_url_is_a_directory(tmp_path: Path) -> None:
    save(open_store(f"file://{tmp_path}/x"), 1)
    assert names(tmp_path / "x") == ["step-0000000001"]
    assert DESCRIPTION.num_outputs == 3

"""Checkpoints in an object store: a local S3 server, on loopback, for as long as the tests run."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest
import pytest_asyncio
from moto.server import ThreadedMotoServer
from obstore.exceptions import GenericError
from obstore.store import MemoryStore

from service.checkpoints import CheckpointPolicy, checkpoints_at, model_of, prepare_store
from service.cli.export import model_of as model_at
from service.cli.failure import CommandError
from service.cluster import RayCluster
from service.directories import JobDirectories
from service.errors import StartError, Unavailable
from service.jobs import CheckpointCorrupt, CheckpointSaved, Job, JobState
from service.runs import RunLostError, RunStarted, RunSucceeded
from service.start_checkpoint import StartCheckpoint
from tests.clusters import local_cluster
from tests.integration.test_ray_training import Watcher, process_named, train
from tests.integration.test_ray_training import job as job_of
from tests.unit.checkpoints import ORIGIN, TENSORS, save, state_of, tensors_of
from worker import checkpoint, object_store
from worker.checkpoint import AVERAGE, WEIGHTS, Found, beside
from worker.checkpoint_store import MANIFEST, LocalStore, StoreUnreachableError, open_file, open_store
from worker.model_file import load
from worker.object_store import ObjectStore

BUCKET = "checkpoints"


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[str]:
    """Its endpoint; the environment leads everybody there."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    environment = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{BUCKET}", data=b"", method="PUT")).close()
        yield endpoint
    server.stop()


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    """A place of the test's own."""
    return f"s3://{BUCKET}/{abs(hash(request.node.nodeid))}/job"


def keys(url: str) -> list[str]:
    return sorted(part["path"] for parts in ObjectStore(url)._parts().values() for part in parts)


def find(url: str) -> Found:
    return checkpoint.newest(ObjectStore(url), TENSORS, spec_sha256=ORIGIN.spec_sha256)


def step_of(found: Found) -> int | None:
    return None if found.state is None else found.state.step


# --- The store ----------------------------------------------------------------------------------------------------


def test_what_was_published_comes_back_bit_for_bit(url: str) -> None:
    published = save(ObjectStore(url), 7)
    found = find(url)
    assert found.state is not None
    assert (found.state.step, found.origin) == (7, ORIGIN)
    assert tensors_of(found.state) == tensors_of(state_of(7))
    assert published.location == f"{url}/step-0000000007"


def test_the_files_are_those_of_a_directory(url: str, tmp_path: Path) -> None:
    there, here = save(ObjectStore(url), 7), save(LocalStore(tmp_path), 7)
    size, pieces = open_file(there.model)
    assert b"".join(pieces) == Path(here.model).read_bytes()
    assert size == Path(here.model).stat().st_size
    assert there.size_bytes == here.size_bytes
    assert there.weights_digest == here.weights_digest


def test_averaged_weights_are_the_model_and_the_others_lie_beside(url: str) -> None:
    state = state_of(7)
    averaged = checkpoint.TrainingState(7, state.weights, {"ema": state.optimizer["v"]})
    published = save(ObjectStore(url), 7, state=averaged)
    assert f"/{AVERAGE}." in published.model
    plain = save(ObjectStore(f"{url}-plain"), 7)
    contents = [b"".join(open_file(model)[1]) for model in (beside(published.model, WEIGHTS), plain.model)]
    assert contents[0] == contents[1]
    found = find(url)
    assert found.state is not None
    assert tensors_of(found.state) == tensors_of(averaged)


def test_only_the_newest_are_kept(url: str) -> None:
    for step in (1, 2, 3):
        save(ObjectStore(url), step, keep=2)
    assert [entry.name for entry in ObjectStore(url).entries()] == ["step-0000000002", "step-0000000003"]
    assert {key.partition("/")[0] for key in keys(url)} == {"step-0000000002", "step-0000000003"}


def test_the_same_step_again_writes_nothing(url: str) -> None:
    save(ObjectStore(url), 5)
    before = [entry.time for entry in ObjectStore(url).entries()], keys(url)
    save(ObjectStore(url), 5)
    assert ([entry.time for entry in ObjectStore(url).entries()], keys(url)) == before


def test_without_its_manifest_it_is_not_there(url: str) -> None:
    save(ObjectStore(url), 1)
    save(ObjectStore(url), 2)
    ObjectStore(url)._delete([f"step-0000000002/{MANIFEST}"])
    assert step_of(find(url)) == 1


def test_of_two_writers_of_a_step_one_wins(url: str) -> None:
    """The second finds the manifest of the first between its own files and its own manifest."""
    late, seen = ObjectStore(url), list[bool]()
    create = late._create

    def create_late(key: str, content: bytes) -> bool:
        if not seen:
            save(ObjectStore(url), 3)
        seen.append(create(key, content))
        return seen[-1]

    late._create = create_late  # type: ignore[method-assign]
    save(late, 3)
    assert seen == [False], "If-None-Match was honoured"
    assert step_of(find(url)) == 3


@pytest.mark.parametrize("damage", [b"", b"damaged", None])
def test_a_damaged_object_is_found_and_the_one_before_is_used(url: str, damage: bytes | None) -> None:
    save(ObjectStore(url), 1)
    save(ObjectStore(url), 2)
    (key,) = (key for key in keys(url) if key.startswith(f"step-0000000002/{WEIGHTS}"))
    obstore.delete(ObjectStore(url)._store, key)
    if damage is not None:
        obstore.put(ObjectStore(url)._store, key, damage)
    found = find(url)
    assert step_of(found) == 1
    assert found.corrupt[0].location.startswith(f"{url}/corrupt-step-0000000002-")
    assert {key.partition("/")[0].rpartition("-")[0] for key in keys(url)} == {"step", "corrupt-step-0000000002"}
    save(ObjectStore(url), 2)
    assert step_of(find(url)) == 2


def test_leftovers_of_a_dead_writer_are_removed_when_they_are_old(url: str) -> None:
    save(ObjectStore(url), 1)
    obstore.put(ObjectStore(url)._store, f"step-0000000002/{WEIGHTS}.abc", b"half a checkpoint")
    ObjectStore(url).sweep()
    assert len(keys(url)) == 4, "it may still be under way"
    ObjectStore(url, leftover_seconds=-2.0).sweep()
    assert {key.partition("/")[0] for key in keys(url)} == {"step-0000000001"}


def test_clearing_leaves_nothing(url: str) -> None:
    save(ObjectStore(url), 1)
    ObjectStore(url).clear()
    assert keys(url) == []


def test_a_list_tells_sound_from_damaged(url: str) -> None:
    published = [save(ObjectStore(url), step) for step in (1, 2)]
    (key,) = (key for key in keys(url) if key.startswith(f"step-0000000002/{WEIGHTS}"))
    obstore.put(ObjectStore(url)._store, key, b"damaged")
    listed = checkpoint.listed(ObjectStore(url), verify=True)
    assert [(found.step, found.is_verified, bool(found.problem)) for found in listed] == [
        (2, False, True),
        (1, True, False),
    ]
    assert (listed[1].location, listed[1].size_bytes) == (published[0].location, published[0].size_bytes)


def test_large_files_come_in_pieces(url: str) -> None:
    content = os.urandom(3 * (1 << 20) + 5)
    obstore.put(ObjectStore(url)._store, "large", content)
    size, pieces = open_file(f"{url}/large")
    parts = list(pieces)
    assert b"".join(parts) == content
    assert size == len(content)
    assert max(map(len, parts)) <= 1 << 20


def test_a_model_is_taken_from_its_url(url: str, tmp_path: Path) -> None:
    there, here = save(ObjectStore(url), 1), save(LocalStore(tmp_path), 1)
    with model_at(there.model, "127.0.0.1:1") as path:
        assert path.read_bytes() == Path(here.model).read_bytes()
    assert not path.exists()
    with pytest.raises(CommandError, match="cannot read s3://"), model_at(f"{url}/none", "127.0.0.1:1"):
        pass


# --- What goes wrong ------------------------------------------------------------------------------------------------


class Died(BaseException):
    """The process is gone: nothing of it is tidied up."""


class Line:
    """obstore on a line that is bad at the Nth request: it fails once, or its user dies there; half of them arrive."""

    def __init__(self, at: int, error: BaseException) -> None:
        self.at, self.error, self.count = at, error, 0

    def __getattr__(self, name: str) -> Any:
        def request(*arguments: Any, **keywords: Any) -> Any:
            self.count += 1
            has_died = isinstance(self.error, Died) and self.count > self.at
            if self.count != self.at and not has_died:
                return getattr(obstore, name)(*arguments, **keywords)
            if self.at % 2 and not has_died:
                getattr(obstore, name)(*arguments, **keywords)  # it was carried out, but no answer came
            raise self.error

        return request


def publish_two(url: str) -> None:
    for step in (1, 2):
        save(ObjectStore(url), step, keep=2)


def damage_two(url: str) -> None:
    publish_two(url)
    (key,) = (key for key in keys(url) if key.startswith(f"step-0000000002/{WEIGHTS}"))
    obstore.put(ObjectStore(url)._store, key, b"damaged")


@pytest.mark.parametrize("error", [GenericError("503"), Died()], ids=["fails", "dies"])
@pytest.mark.parametrize(
    ("prepare", "act", "before", "after"),
    [
        (publish_two, lambda url: save(ObjectStore(url), 3, keep=2), 2, 3),
        (damage_two, lambda url: save(ObjectStore(url), 2, keep=2), 1, 2),
        (damage_two, find, 1, 1),
    ],
    ids=["one more", "over a damaged one", "restore"],
)
def test_a_bad_line_breaks_no_promise(
    url: str,
    prepare: Callable[[str], None],
    act: Callable[[str], object],
    before: int,
    after: int,
    error: BaseException,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever request fails: what is visible is sound, what was acknowledged is there, and the next try works."""
    memory = MemoryStore()  # as obstore's others, and without a server's milliseconds
    monkeypatch.setattr(object_store, "_connect", lambda url: memory)
    for at in range(1, 100):
        prepare(url)
        acknowledged = before
        line = Line(at, error)
        with monkeypatch.context() as patch:
            patch.setattr(object_store, "obstore", line)
            with suppress(OSError, Died):
                act(url)
                acknowledged = after
        sound = [found.step for found in checkpoint.listed(ObjectStore(url), verify=True) if found.is_verified]
        visible = [found.step for found in checkpoint.listed(ObjectStore(url), verify=False)]
        assert set(visible) - set(sound) <= ({2} if prepare is damage_two else set()), at
        assert (step_of(find(url)) or 0) >= acknowledged, at
        act(url)
        assert step_of(find(url)) == max(after, before), at
        ObjectStore(url).clear()
        if line.count < at:
            assert at > 8, "the line was bad at every request there is"
            return
    raise AssertionError("it never ends")


@pytest.fixture
def nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(object_store, "RETRY", {"max_retries": 0})


async def test_a_store_that_does_not_answer_is_not_an_empty_one(url: str, nobody_there: None) -> None:
    with pytest.raises(StoreUnreachableError, match=url):
        find(url)
    with pytest.raises(OSError, match=url):
        save(ObjectStore(url), 1)
    with pytest.raises(Unavailable, match="the checkpoints cannot be read now"):
        await checkpoints_at(url, verify=False)


def test_a_service_refuses_a_store_that_it_cannot_write_to(
    nobody_there: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for location in (f"s3://{BUCKET}/x", "s3://", "ftp://host/x", str(tmp_path / "file"), "file://host/x"):
        with pytest.raises(StartError, match="--checkpoint-store: "):
            prepare_store(location)


def test_a_service_takes_a_bucket_or_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert prepare_store(f"s3://{BUCKET}/prepared") == f"s3://{BUCKET}/prepared"
    assert keys(f"s3://{BUCKET}/prepared") == []
    assert prepare_store("here") == prepare_store(f"file://{tmp_path}/here") == str(tmp_path / "here")


def test_a_bucket_that_is_not_there_is_refused() -> None:
    with pytest.raises(StartError, match="s3://no-such-bucket/x"):
        prepare_store("s3://no-such-bucket/x")


@pytest.mark.parametrize("location", ["gs://bucket/jobs", "az://account/container/jobs"])
def test_other_providers_urls_are_known(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
    assert open_store(location).location == location


# --- Jobs -----------------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(server: str) -> AsyncIterator[RayCluster]:
    async with local_cluster(worker_slots=2, policy=CheckpointPolicy(f"s3://{BUCKET}/jobs")) as cluster:
        yield cluster


@pytest.mark.ray
@pytest.mark.asyncio(loop_scope="module")
async def test_a_job_lives_in_a_bucket_from_its_first_checkpoint_to_its_deletion(
    cluster: RayCluster, tmp_path: Path
) -> None:
    spec, policy = job_of(400), CheckpointPolicy(f"s3://{BUCKET}/jobs")
    directories = JobDirectories(tmp_path, policy)
    location = directories.checkpoints(spec.job_id)
    directory = await directories.make(spec.job_id)
    watcher = Watcher(await cluster.launch(spec, 1, directory))
    await watcher.until(CheckpointSaved, 2)
    os.kill(await process_named("Coordinator"), signal.SIGKILL)
    with pytest.raises(RunLostError):
        await watcher.until(RunSucceeded)
    await watcher.run.close()

    damaged = max(entry.name for entry in ObjectStore(location).entries())
    (key,) = (key for key in keys(location) if key.startswith(f"{damaged}/{WEIGHTS}"))
    obstore.put(ObjectStore(location)._store, key, b"damaged")
    again = await train(cluster, spec, 2, directory)
    (corrupt,) = (report for report in again.reports if isinstance(report, CheckpointCorrupt))
    assert f"/corrupt-{damaged}-" in corrupt.path
    assert next(report.step for report in again.reports if isinstance(report, RunStarted)) >= 40

    (succeeded,) = (report for report in again.reports if isinstance(report, RunSucceeded))
    listed = await checkpoints_at(location, verify=True)
    assert [(found.step, found.is_verified) for found in listed] == [(400, True), (360, True), (320, True)]
    assert listed[0].weights_digest == succeeded.weights_digest

    trained = Job(spec.job_id, spec.spec, 0.0, JobState.SUCCEEDED, model_path=succeeded.model_path)
    parts = [part async for part in model_of(trained)]
    assert parts[0][0] == sum(len(piece) for _, piece in parts)
    model_file = tmp_path / "model.safetensors"
    model_file.write_bytes(b"".join(piece for _, piece in parts))
    model, _ = load(model_file)
    flat = np.concatenate([parameter.data.reshape(-1) for parameter in model.parameters()])
    assert checkpoint.weights_digest(flat) == again.digest

    alone = await train(cluster, Job("alone", spec.spec, 0.0), 2, tmp_path / "alone")
    assert alone.digest == again.digest

    assert not list(directory.iterdir()), "nothing lies on the disk"
    await directories.remove(await directories.hide(spec.job_id))
    assert keys(location) == []
    assert not directory.exists()
    assert keys(f"s3://{BUCKET}/jobs/alone"), "another job's are left alone"


async def nobody(job_id: str) -> bool:
    """There are no jobs."""
    return False


async def test_files_that_cannot_be_removed_now_are_removed_by_the_next_service(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directories = JobDirectories(tmp_path, CheckpointPolicy(url))
    save(ObjectStore(directories.checkpoints("one")), 1)
    await directories.make("one")
    hidden = await directories.hide("one")
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        patch.setattr(object_store, "RETRY", {"max_retries": 0})
        await directories.remove(hidden)
    assert keys(directories.checkpoints("one"))
    await directories.sweep(nobody)
    assert keys(directories.checkpoints("one")) == []
    assert list(tmp_path.iterdir()) == []


async def test_what_a_job_begins_with_is_copied_to_the_bucket_or_removed(url: str, tmp_path: Path) -> None:
    directories = JobDirectories(tmp_path, CheckpointPolicy(url))
    save(ObjectStore(directories.checkpoints("one")), 1)
    start = StartCheckpoint("one", 1)
    await directories.prepare("two", start)
    (copy,) = await checkpoints_at(directories.checkpoints("two"), verify=True)
    assert (copy.step, copy.is_verified) == (1, True)
    await directories.sweep(nobody)
    assert keys(directories.checkpoints("two")) == []
    assert keys(directories.checkpoints("one")), "the other job's are left alone"
    assert list(tmp_path.iterdir()) == []


async def test_asyncio_is_not_held_up(url: str) -> None:
    """The service's loop goes on while a store is read."""
    save(ObjectStore(url), 1)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    await checkpoints_at(url, verify=True)
    ticking.cancel()
    assert ticks > 1

"""Protobuf to domain and back, and answers as plain documents."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from service import jobs
from service.convert import (
    event_to_proto,
    job_to_proto,
    progress_to_proto,
    reason_to_proto,
    spec_from_proto,
    spec_to_proto,
    state_from_proto,
    state_to_proto,
)
from service.documents import document_of, to_json
from service.errors import InvalidJob
from service.pb.backprop.v1 import job_pb2, spec_pb2
from worker.spec import (
    Activation,
    AdamOptimizer,
    AdamwOptimizer,
    ArraysData,
    ConstantSchedule,
    CosineSchedule,
    DataSpec,
    DigitsData,
    JobSpec,
    LinearSchedule,
    MlpModel,
    ModelSpec,
    MomentumOptimizer,
    NonFinitePolicy,
    OptimizerSpec,
    ScheduleSpec,
    SgdOptimizer,
    SyntheticData,
    Task,
    parse_spec,
)

VALID: dict[str, Any] = {"model": {"mlp": {}}, "data": {"digits": {}}}
JOB = jobs.Job("test-abcdef", parse_spec(VALID), create_time=1_700_000_000.25)

# --- Job specs ----------------------------------------------------------------------------------------------------

positive = st.floats(min_value=1e-9, max_value=10.0, allow_nan=False)
decays = st.floats(min_value=0.0, max_value=0.999)
fractions = st.floats(min_value=0.01, max_value=0.99)
rates = {"learning_rate": positive, "weight_decay": decays}
adam = {**rates, "beta1": decays, "beta2": decays, "epsilon": positive}
data_specs = st.one_of(
    st.builds(DigitsData, validation_fraction=fractions).map(lambda part: DataSpec(digits=part)),
    st.builds(ArraysData, path=st.text(min_size=1, max_size=20), validation_fraction=fractions).map(
        lambda part: DataSpec(arrays=part)
    ),
    st.builds(
        SyntheticData, task=st.sampled_from(Task), samples=st.integers(2, 10**8), seed=st.integers(0, 2**63 - 1)
    ).map(lambda part: DataSpec(synthetic=part)),
)
optimizer_specs = st.one_of(
    st.builds(SgdOptimizer, **rates).map(lambda part: OptimizerSpec(sgd=part)),
    st.builds(MomentumOptimizer, **rates, momentum=decays).map(lambda part: OptimizerSpec(momentum=part)),
    st.builds(AdamOptimizer, **adam).map(lambda part: OptimizerSpec(adam=part)),
    st.builds(AdamwOptimizer, **adam).map(lambda part: OptimizerSpec(adamw=part)),
)
schedule_specs = st.one_of(
    st.just(ScheduleSpec(constant=ConstantSchedule())),
    st.builds(LinearSchedule, warmup_steps=st.integers(0, 9), min_ratio=decays).map(
        lambda part: ScheduleSpec(linear=part)
    ),
    st.builds(CosineSchedule, warmup_steps=st.integers(0, 9), min_ratio=decays).map(
        lambda part: ScheduleSpec(cosine=part)
    ),
)
model_specs = st.builds(
    MlpModel, hidden=st.lists(st.integers(1, 1 << 20), max_size=4).map(tuple), activation=st.sampled_from(Activation)
).map(lambda part: ModelSpec(mlp=part))
trainings = st.fixed_dictionaries(
    {"global_batch_size": st.just(96), "max_steps": st.integers(10, 10**9)},
    optional={
        "shards": st.sampled_from([8, 12, 96]),
        "clip_norm": positive,
        "seed": st.integers(0, 2**63 - 1),
        "gradient_checkpointing": st.booleans(),
        "on_non_finite": st.sampled_from([policy.value for policy in NonFinitePolicy]),
    },
)
specs = st.builds(
    lambda model, data, optimizer, schedule, training: JobSpec.model_validate(
        {
            "model": model,
            "data": data,
            "optimizer": optimizer,
            "schedule": schedule,
            "training": training,
            "workers": {"min": 2, "max": 8},
        }
    ),
    model_specs,
    data_specs,
    optimizer_specs,
    schedule_specs,
    trainings,
)


@given(specs)
def test_a_spec_survives_the_wire(spec: JobSpec) -> None:
    message = spec_pb2.JobSpec.FromString(spec_to_proto(spec).SerializeToString())
    assert spec_from_proto(message) == spec


def test_the_messages_have_exactly_the_fields_of_the_spec() -> None:
    def check(descriptor: Any, part: Any) -> None:
        assert {field.name for field in descriptor.fields} == set(part.model_fields), descriptor.full_name
        for field in descriptor.fields:
            if field.message_type is not None:
                annotation = part.model_fields[field.name].annotation
                inner = [
                    kind for kind in getattr(annotation, "__args__", [annotation]) if hasattr(kind, "model_fields")
                ]
                check(field.message_type, inner[0])

    check(spec_pb2.JobSpec.DESCRIPTOR, JobSpec)


def test_the_enums_have_exactly_the_words_of_the_domain() -> None:
    def words(enum: Any, prefix: str) -> set[str]:
        return {value.name.removeprefix(prefix).lower() for value in enum.DESCRIPTOR.values} - {"unspecified"}

    assert words(job_pb2.JobState, "JOB_STATE_") == set(jobs.JobState)
    assert words(job_pb2.StateReason, "STATE_REASON_") == set(jobs.StateReason) - {"unspecified"}
    assert words(spec_pb2.Activation, "ACTIVATION_") == set(Activation)
    assert words(spec_pb2.Task, "TASK_") == set(Task)
    assert words(spec_pb2.NonFinitePolicy, "NON_FINITE_POLICY_") == set(NonFinitePolicy)


def test_what_is_not_set_takes_its_default() -> None:
    message = spec_pb2.JobSpec(model={"mlp": {}}, data={"digits": {}})
    assert spec_from_proto(message) == parse_spec(VALID)


def test_a_zero_that_was_set_is_not_mistaken_for_a_default() -> None:
    message = spec_pb2.JobSpec(model={"mlp": {}}, data={"digits": {}}, optimizer={"adam": {"learning_rate": 0.0}})
    with pytest.raises(InvalidJob, match=r"optimizer.adam.learning_rate: got 0.0, expected a number > 0"):
        spec_from_proto(message)


@pytest.mark.parametrize(
    ("message", "violation"),
    [
        (spec_pb2.JobSpec(), "model: missing, expected one of mlp"),
        (
            spec_pb2.JobSpec(model={}, data={"digits": {}}),
            "model: got none, expected exactly one of mlp, cnn, gpt, bert",
        ),
        (
            spec_pb2.JobSpec(model={"mlp": {"activation": 77}}, data={"digits": {}}),
            "model.mlp.activation: got 77, expected one of",
        ),
        (
            spec_pb2.JobSpec.FromString(b"\xf8\x07\x01"),
            "#127: this service is too old for it: the field is unknown",
        ),
    ],
)
def test_a_bad_message_names_the_field(message: spec_pb2.JobSpec, violation: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        spec_from_proto(message)
    assert violation in str(caught.value)


# --- Jobs and events ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", jobs.JobState)
def test_every_state_has_its_number(state: jobs.JobState) -> None:
    number = job_pb2.JobState.Value(state_to_proto(state))
    assert state_from_proto(number) is state


@pytest.mark.parametrize("number", [0, 11, 99])
def test_a_number_without_a_state_stands_for_none(number: int) -> None:
    assert state_from_proto(number) is None


@pytest.mark.parametrize("reason", jobs.StateReason)
def test_every_reason_is_known_to_the_api(reason: jobs.StateReason) -> None:
    assert reason_to_proto(reason) in job_pb2.StateReason.keys()  # noqa: SIM118


def test_a_job_that_has_not_started_has_nothing_to_show() -> None:
    message = job_to_proto(JOB)
    for name in ("start_time", "end_time", "loss", "samples_per_second", "estimated_remaining", "evaluation"):
        assert not message.HasField(name)
    assert message.create_time.ToJsonString() == "2023-11-14T22:13:20.250Z"
    assert message.total_steps == 1000


def test_a_nan_loss_survives_the_wire() -> None:
    progress = jobs.Progress(1, math.nan, math.inf, math.inf, 2)
    message = job_pb2.Job.FromString(job_to_proto(replace(JOB, progress=progress)).SerializeToString())
    assert math.isnan(message.loss)
    assert message.samples_per_second == math.inf
    assert not message.HasField("estimated_remaining"), "an endless time to wait is none"


@pytest.mark.parametrize(
    "happening",
    [
        jobs.StateChanged(jobs.JobState.FAILED, jobs.StateReason.NON_FINITE, "why"),
        jobs.Evaluation(5, 0.5, 0.25),
        jobs.Evaluation(5, 0.5),
        jobs.CheckpointSaved(5, "/c", "ab", 3, 0.1),
        jobs.CheckpointFailed(5, "disk full"),
        jobs.WorkerLost(1, 5, "killed", "forward"),
        jobs.WorkersChanged(3, 5, "worker 2 joined"),
        jobs.WorkersWanted(3, "scaled by the user"),
        jobs.WorkerSlow(1, 5, 4.5, 2),
        jobs.CompilationStarted(1),
        jobs.CompilationFinished(14, 9.5),
        jobs.CheckpointCorrupt("/c", "torn"),
        jobs.ExactnessLost(5, "numpy is 3, was 2"),
    ],
    ids=lambda happening: type(happening).__name__,
)
def test_every_kind_of_event_is_sent(happening: jobs.Happening) -> None:
    message = event_to_proto(jobs.JobEvent("test-abcdef", 3, 1.5, happening))
    kind = message.WhichOneof("kind")
    assert kind is not None
    sent = document_of(getattr(message, kind))
    kept = {field: getattr(happening, field) for field in sent}
    assert {**sent, "state": "", "reason": ""} == {**kept, "state": "", "reason": ""} or sent == kept
    assert (message.event_id, message.job_id, message.time.seconds) == (3, "test-abcdef", 1)


# --- Documents ------------------------------------------------------------------------------------------------------


def test_a_document_has_every_field_and_null_for_what_is_not_known() -> None:
    document = document_of(job_to_proto(JOB))
    assert list(document) == [field.name for field in job_pb2.Job.DESCRIPTOR.fields]
    assert document["state"] == "QUEUED"
    assert document["loss"] is None
    assert document["evaluation"] is None
    assert document["steps_completed"] == 0


def test_a_document_has_numbers_where_protobuf_has_text() -> None:
    progress = jobs.Progress(5, 0.5, 100.0, 2.5, 2)
    document = document_of(job_to_proto(replace(JOB, progress=progress)))
    assert (document["steps_completed"], document["total_steps"]) == (5, 1000)
    assert document["estimated_remaining"] == 2.5
    assert document["create_time"] == "2023-11-14T22:13:20.250Z"


def test_a_spec_in_a_document_can_be_submitted_again() -> None:
    spec = parse_spec(VALID | {"model": {"mlp": {"hidden": [3], "activation": "gelu"}}, "workers": {"min": 2}})
    assert parse_spec(document_of(job_to_proto(replace(JOB, spec=spec)))["spec"]) == spec


def test_a_choice_shows_what_was_chosen_only() -> None:
    event = document_of(event_to_proto(jobs.JobEvent("test-abcdef", 3, 1.5, jobs.WorkerLost(1, 5, "killed", "data"))))
    assert event == {
        "event_id": 3,
        "job_id": "test-abcdef",
        "time": "1970-01-01T00:00:01.500Z",
        "worker_lost": {"rank": 1, "step": 5, "reason": "killed", "phase": "data"},
    }


def test_json_is_strict_even_with_a_nan_in_it() -> None:
    text = to_json(progress_to_proto(replace(JOB, progress=jobs.Progress(1, math.nan, math.inf)), now=2.0))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    document = json.loads(text, parse_constant=refuse)
    assert (document["progress"]["loss"], document["progress"]["samples_per_second"]) == ("NaN", "Infinity")
    assert "\n" not in text


def test_documents_agree_with_protobufs_own_json_where_both_can() -> None:
    message = job_to_proto(replace(JOB, progress=jobs.Progress(5, 0.5, 100.0, None, 2)))
    theirs = json_format.MessageToDict(message, preserving_proto_field_name=True)
    ours = document_of(message)
    for name in ("job_id", "loss", "samples_per_second", "current_workers", "create_time"):
        assert ours[name] == theirs[name]

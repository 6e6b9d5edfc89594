"""Answers of the service as plain documents: what `--output json` prints.

Field names are those of the protos, 64-bit integers are numbers (protobuf's own JSON makes them strings), times are
RFC 3339, durations are seconds, and every field is there: null stands for what is not known. An enum value is its
name without the prefix; inside a job spec, which is written like a job file, it is in lower case and only what is set
is there. JSON has no NaN: it becomes the string "NaN".
"""

from __future__ import annotations

import json
import math
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from service.pb.backprop.v1 import spec_pb2


def document_of(message: Message) -> dict[str, Any]:
    """A message as a document."""
    is_spec = message.DESCRIPTOR.file is spec_pb2.DESCRIPTOR
    present = {field.name for field, _ in message.ListFields()}
    document: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        is_absent = field.has_presence and field.name not in present
        if is_absent and (is_spec or is_choice(field)):
            continue
        value = getattr(message, field.name)
        if is_absent:
            document[field.name] = None
        elif field.is_repeated:
            document[field.name] = [_plain(field, item) for item in value]
        else:
            document[field.name] = _plain(field, value)
    return document


def is_choice(field: Any) -> bool:
    """Whether a field is one of several of which only one can be there."""
    oneof = field.containing_oneof
    return oneof is not None and not oneof.name.startswith("_")  # protobuf makes a oneof _x of each `optional x`


def _plain(field: Any, value: Any) -> Any:
    if isinstance(value, Timestamp):
        return value.ToJsonString()
    if isinstance(value, Duration):
        return value.ToTimedelta().total_seconds()
    if isinstance(value, Message):
        return document_of(value)
    if field.enum_type is not None:
        return enum_name(field.enum_type, value)
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def enum_name(enum: Any, number: int) -> str:
    """An enum value without its prefix, such as RUNNING; the number as text where it has no name here."""
    value = enum.values_by_number.get(number)
    if value is None:
        return str(number)
    name: str = value.name.removeprefix(enum.values[0].name.removesuffix("UNSPECIFIED"))
    return name.lower() if enum.file is spec_pb2.DESCRIPTOR else name


def to_json(message: Message) -> str:
    """A message as one line of JSON."""
    return json.dumps(document_of(message), allow_nan=False, ensure_ascii=False)

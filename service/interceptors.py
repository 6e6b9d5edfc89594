"""What happens at the service's border to every call: errors become gRPC statuses, and calls are counted.

A ServiceError becomes its status with google.rpc.ErrorInfo and, where fields are at fault, BadRequest. Anything
unforeseen is logged with its traceback under a reference, and the caller is told the reference alone.
"""

from __future__ import annotations

import functools
import inspect
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from service import errors
from service.metrics import CallMetrics
from worker.violations import Violation

log = logging.getLogger(__name__)

DOMAIN = "backprop"
CODES: Mapping[type[errors.ServiceError], int] = {
    errors.InvalidRequest: code_pb2.INVALID_ARGUMENT,
    errors.NotFound: code_pb2.NOT_FOUND,
    errors.AlreadyExists: code_pb2.ALREADY_EXISTS,
    errors.FailedPrecondition: code_pb2.FAILED_PRECONDITION,
    errors.ResourceExhausted: code_pb2.RESOURCE_EXHAUSTED,
    errors.DataLoss: code_pb2.DATA_LOSS,
    errors.Unavailable: code_pb2.UNAVAILABLE,
}
# Text, for only the types of gRPC can be subscripted, not its classes.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"


@dataclass(frozen=True)
class Undecodable:
    """Stands for a request whose bytes are no message."""

    error: str


def status_of(error: errors.ServiceError) -> status_pb2.Status:
    """A service error as a rich gRPC status."""
    code = next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), code_pb2.INTERNAL)
    details = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)]
    if error.violations:
        violations = [
            error_details_pb2.BadRequest.FieldViolation(field=violation.field, description=violation.description)
            for violation in error.violations
        ]
        details.append(error_details_pb2.BadRequest(field_violations=violations))
    status = status_pb2.Status(code=code, message=str(error))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def internal_error(error: Exception) -> errors.ServiceError:
    """An unforeseen exception, logged under a reference; the caller learns the reference alone."""
    reference = secrets.token_hex(4)
    log.error("internal error, reference %s", reference, exc_info=error)
    return errors.ServiceError(f"internal error, reference {reference}; the service's log has more", reason="INTERNAL")


@asynccontextmanager
async def translated(request: Any, context: Context) -> AsyncIterator[None]:
    """Ends the call with a rich status when its request is undecodable or the block raises."""
    try:
        check_decoded(request)
        yield
    except grpc.aio.AbortError:
        raise
    except errors.ServiceError as error:
        await context.abort_with_status(rpc_status.to_status(status_of(error)))
    except Exception as error:
        await context.abort_with_status(rpc_status.to_status(status_of(internal_error(error))))


def check_decoded(request: Any) -> None:
    """Raises InvalidRequest for a request that could not be decoded."""
    if isinstance(request, Undecodable):
        raise errors.InvalidRequest([Violation("", f"the request is no protobuf message: {request.error}")])


def decoder(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """A decoder that gives Undecodable instead of raising, so that the caller gets a proper status."""

    def decode_or_explain(data: bytes) -> Any:
        try:
            return decode(data)
        except DecodeError as error:
            return Undecodable(str(error))

    return decode_or_explain


def around(handler: Any, guard: Callable[[Any, Context], AbstractAsyncContextManager[None]]) -> Handler:
    """A handler whose behaviour runs inside `guard`. Streams of requests (reflection has one) pass as they are."""
    if handler is None or handler.request_streaming:
        return handler  # type: ignore[no-any-return]  # grpc's handlers are untyped inside
    behaviour = handler.unary_stream if handler.response_streaming else handler.unary_unary

    async def answer(request: Any, context: Context) -> Any:
        async with guard(request, context):
            return await behaviour(request, context)

    async def answers(request: Any, context: Context) -> AsyncIterator[Any]:
        async with guard(request, context), aclosing(behaviour(request, context)) as stream:
            async for part in stream:
                yield part

    make = grpc.unary_stream_rpc_method_handler if handler.response_streaming else grpc.unary_unary_rpc_method_handler
    return make(
        answers if inspect.isasyncgenfunction(behaviour) else answer,
        request_deserializer=decoder(handler.request_deserializer),
        response_serializer=handler.response_serializer,
    )


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns exceptions into statuses."""

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Any:
        """See grpc.aio.ServerInterceptor."""
        return around(await continuation(details), translated)


class MetricsInterceptor(grpc.aio.ServerInterceptor):
    """Counts calls and their durations; outermost, so that it sees the status that the caller sees."""

    def __init__(self, metrics: CallMetrics, *, clock: Callable[[], float]) -> None:
        self._metrics, self._clock = metrics, clock

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Any:
        """See grpc.aio.ServerInterceptor."""
        return around(await continuation(details), functools.partial(self._timed, details.method.rpartition("/")[2]))

    @asynccontextmanager
    async def _timed(self, method: str, request: Any, context: Context) -> AsyncIterator[None]:
        start, code = self._clock(), "OK"
        try:
            yield
        except grpc.aio.AbortError:
            code = code_name(context.code())
            raise
        except BaseException:  # the client went away, or its deadline has passed
            code = "CANCELLED"
            raise
        finally:
            self._metrics.observe(method, code=code, seconds=self._clock() - start)


def code_name(code: Any) -> str:
    """A status code's name; a context has it as a number or as a grpc.StatusCode."""
    number = code.value[0] if isinstance(code, grpc.StatusCode) else int(code or 0)
    return str(code_pb2.Code.Name(number))

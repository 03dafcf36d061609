"""One publish to the queue's stream, which counts only once JetStream has confirmed it, and its errors."""

from __future__ import annotations

from ..nats.connection import AnswerTimeoutError, Connection, NoRespondersError
from ..nats.jetstream import JetStream
from ..nats.wire import ApiError, ErrorCode
from ..ports import BrokerUnavailableError
from .claims import publish_once
from .message import Message


class MessageTooLargeError(Exception):
    """The message, headers and base64 included, exceeds a limit of the server or of the stream."""


class UnconfirmedError(BrokerUnavailableError):
    """The message was sent, and not confirmed in time: it may be stored."""


class NotStoredError(BrokerUnavailableError):
    """The message was certainly not stored."""


async def publish(connection: Connection, stream: str, message: Message, payload: bytes, digest: str) -> bool:
    """Store *message*, encoded as *payload*, on *stream*; return whether the stream had it already.

    *digest* is the hash of the request.

    Raises:
        MessageTooLargeError: the message cannot be stored.
        BrokerUnavailableError: the message is not confirmed. Published again with the same call id, it is stored once.
    """
    headers = {"Nats-Msg-Id": f"{message.key()}.{digest}", "Nats-Expected-Stream": stream}
    try:
        return (await publish_once(JetStream(connection), message.subject, payload, headers)).duplicate
    except NoRespondersError:
        raise no_stream(stream, message) from None
    except AnswerTimeoutError as error:
        raise unconfirmed(connection, stream, error) from None
    except ApiError as error:
        if error.err_code == ErrorCode.STREAM_MESSAGE_EXCEEDS_MAXIMUM:
            text = f"stream {stream} has a limit of its own for a message: {error.description}"
            raise MessageTooLargeError(text) from None
        if error.err_code == ErrorCode.STREAM_NOT_MATCH:
            text = f"another stream than {stream} takes the subject {message.subject}: check nats_stream and queue_name"
        else:
            text = f"stream {stream} refuses: {error.description or 'no reason given'}"
        raise NotStoredError(text) from None


def no_stream(stream: str, message: Message) -> NotStoredError:
    """Return the error for a queue whose subject no stream takes."""
    return NotStoredError(
        f"no stream takes the subject {message.subject}: start a worker, which makes the stream {stream},"
        " or see that JetStream runs and the stream's subjects cover the queue's"
    )


def unconfirmed(connection: Connection, stream: str, error: AnswerTimeoutError) -> UnconfirmedError:
    """Return the error for a stream that did not confirm in time."""
    detail = f" ({connection.failure})" if connection.failure else ""
    return UnconfirmedError(f"stream {stream} did not confirm within {error.seconds:g} s{detail}")

"""Every error that Engine Room raises on purpose, drawn once.

::

    EngineRoomError                 http  code                    exit
      ConfigError                    400  invalid_config            78
      ModelInvalid                   422  model_invalid             65
      NoEngineFits                   507  no_engine_fits            69
      EngineMissing                  503  engine_missing            69
      PullFailed                     503  pull_failed               69
      AlreadyRunning                 409  already_running           75
      PortTaken                      409  port_taken                75
      Conflict                       409  conflict                  75
      LaunchFailed                   503  launch_failed             70
        InsufficientMemory           503  insufficient_memory       70
      ControlUnavailable             503  control_unavailable       69
      TargetUnreachable              503  target_unreachable        69
      TargetRefused                  502  target_refused            77
      RequestError
        BadRequest                   400  invalid_request
        UnsupportedParameter         400  unsupported_parameter
        ContextLengthExceeded        400  context_length_exceeded
        Unauthorized                 401  invalid_api_key
          KeyExpired                 401  api_key_expired
        WrongHost                    403  host_not_allowed
        UnknownModel                 404  model_not_found
        NotFound                     404  not_found
        MethodNotAllowed             405  method_not_allowed
        RequestTimeout               408  request_timeout
        BodyTooLarge                 413  body_too_large
        WrongContentType             415  unsupported_media_type
        PoisonRequest                422  poison_request
        QueueFull                    429  queue_full             Retry-After
        HeadTooLarge                 431  head_too_large
        TooManyRequests              429  requests_per_minute    Retry-After
        TooManyTokens                429  tokens_per_minute      Retry-After
        TooManyAtOnce                429  concurrent_requests    Retry-After
        TooManyFailures              429  too_many_failures      Retry-After
        UpstreamBroken               502  engine_died
        UpstreamInvalid              502  upstream_invalid
        EngineError                  502  engine_error
        EngineBusy                   503  engine_busy            Retry-After
        GatewayBusy                  503  gateway_busy           Retry-After
        ModelUnavailable             503  model_unavailable      Retry-After
        Draining                     503  draining               Retry-After
        ShuttingDown                 503  shutting_down
        UpstreamTimeout              504  engine_stalled
        DeadlineExceeded             504  deadline_exceeded

Each class carries its HTTP status, a code that a program can branch on, and the exit code of the
command line (after BSD's sysexits). `retryable`: whether the same request can succeed later.
"""

from __future__ import annotations


class EngineRoomError(Exception):
    """Root of the tree, and a fault of ours; `str(error)` is one clear sentence."""

    http_status = 500
    code = "internal_error"
    exit_code = 70
    kind = "server_error"
    retryable = False

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after: float | None = None

    def envelope(self) -> dict[str, object]:
        """The OpenAI error object, with `retryable` beside the usual fields."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
                "retryable": self.retryable,
            }
        }


class ConfigError(EngineRoomError):
    """A setting is unknown, out of range, contradictory, or not supported yet."""

    http_status, code, exit_code, kind = 400, "invalid_config", 78, "invalid_request_error"


class ModelInvalid(EngineRoomError):
    """A model cannot be served: missing, truncated, or not a model at all."""

    http_status, code, exit_code, kind = 422, "model_invalid", 65, "invalid_request_error"


class NoEngineFits(EngineRoomError):
    """Every engine was considered and refused; the message carries the reasons."""

    http_status, code, exit_code = 507, "no_engine_fits", 69


class EngineMissing(EngineRoomError):
    """An engine cannot be installed or started for want of something on this machine."""

    http_status, code, exit_code = 503, "engine_missing", 69


class PullFailed(EngineRoomError):
    """A model could not be fetched: no hub, no access, no space, or not what was promised."""

    http_status, code, exit_code = 503, "pull_failed", 69


class AlreadyRunning(EngineRoomError):
    """Another supervisor owns this data directory."""

    http_status, code, exit_code = 409, "already_running", 75


class PortTaken(EngineRoomError):
    """A port that we must listen on is in use by somebody else."""

    http_status, code, exit_code = 409, "port_taken", 75


class Conflict(EngineRoomError):
    """The order cannot be followed while another one works."""

    http_status, code, exit_code = 409, "conflict", 75


class LaunchFailed(EngineRoomError):
    """A process could not be started at all."""

    http_status, code = 503, "launch_failed"


class InsufficientMemory(LaunchFailed):
    """The machine has no room for an engine; the message has the numbers and who holds it."""

    code = "insufficient_memory"


class ControlUnavailable(EngineRoomError):
    """The admin API does not answer: nothing runs, or it runs elsewhere."""

    http_status, code, exit_code = 503, "control_unavailable", 69


class TargetUnreachable(EngineRoomError):
    """The server to be measured does not answer, or says that it takes nothing now."""

    http_status, code, exit_code = 503, "target_unreachable", 69


class TargetRefused(EngineRoomError):
    """The server to be measured refused the trial request: key, model or a field."""

    http_status, code, exit_code = 502, "target_refused", 77


class RequestError(EngineRoomError):
    """Root of what a client of the gateway or the admin API can be told."""

    kind = "invalid_request_error"


class BadRequest(RequestError):
    """The body is not what the path takes; `param` names the field."""

    http_status, code = 400, "invalid_request"


class UnsupportedParameter(RequestError):
    """A field is unknown, or the model's engine does not take it; `param` names it."""

    http_status, code = 400, "unsupported_parameter"


class ContextLengthExceeded(RequestError):
    """The prompt leaves no room for an answer in the model's context."""

    http_status, code = 400, "context_length_exceeded"


class Unauthorized(RequestError):
    """The API key or the admin token is missing or wrong."""

    http_status, code, kind = 401, "invalid_api_key", "authentication_error"


class KeyExpired(Unauthorized):
    """The API key was good and its time is over."""

    code = "api_key_expired"


class WrongHost(RequestError):
    """The request's Host is not one of `allowed_hosts`."""

    http_status, code, kind = 403, "host_not_allowed", "permission_error"


class UnknownModel(RequestError):
    """No model of that name is served."""

    http_status, code = 404, "model_not_found"


class NotFound(RequestError):
    """No such path, engine or record."""

    http_status, code = 404, "not_found"


class MethodNotAllowed(RequestError):
    """The path exists and takes another method."""

    http_status, code = 405, "method_not_allowed"


class RequestTimeout(RequestError):
    """The body did not arrive in time."""

    http_status, code, retryable = 408, "request_timeout", True


class BodyTooLarge(RequestError):
    """The body has more bytes than `max_body_bytes`."""

    http_status, code = 413, "body_too_large"


class HeadTooLarge(RequestError):
    """The request's line and header fields are too many or too long."""

    http_status, code = 431, "head_too_large"


class WrongContentType(RequestError):
    """The body is not sent as plain `application/json`."""

    http_status, code = 415, "unsupported_media_type"


class PoisonRequest(RequestError):
    """The same body ended two engines; it is refused for ten minutes."""

    http_status, code = 422, "poison_request"


class _Busy(RequestError):
    """A request that can succeed later; `retry_after` is in seconds."""

    retryable = True

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueFull(_Busy):
    """`max_queue` requests wait already, or the engine's own queue is full; see Retry-After."""

    http_status, code, kind = 429, "queue_full", "rate_limit_error"


class TooManyRequests(_Busy):
    """The key has used up its requests per minute; see Retry-After."""

    http_status, code, kind = 429, "requests_per_minute", "rate_limit_error"


class TooManyTokens(_Busy):
    """The key has used up its tokens per minute; see Retry-After."""

    http_status, code, kind = 429, "tokens_per_minute", "rate_limit_error"


class TooManyAtOnce(_Busy):
    """The key has as many requests under way as it may have at once."""

    http_status, code, kind = 429, "concurrent_requests", "rate_limit_error"


class TooManyFailures(_Busy):
    """This address gave too many wrong keys; a good one is let in all the same."""

    http_status, code, kind = 429, "too_many_failures", "rate_limit_error"


class EngineBusy(_Busy):
    """The engine lives and says that it takes nothing now."""

    http_status, code, kind = 503, "engine_busy", "server_error"


class GatewayBusy(_Busy):
    """The gateway has no file descriptors left for another request."""

    http_status, code, kind = 503, "gateway_busy", "server_error"


class ModelUnavailable(_Busy):
    """The model is stopped, has failed, or was not ready within `queue_timeout_s`."""

    http_status, code, kind = 503, "model_unavailable", "server_error"


class Draining(_Busy):
    """The server shuts down and takes nothing new."""

    http_status, code, kind = 503, "draining", "server_error"


class UpstreamBroken(RequestError):
    """The engine's connection broke, before or during an answer."""

    http_status, code, kind, retryable = 502, "engine_died", "server_error", True


class UpstreamInvalid(RequestError):
    """The engine answered something that is not a legal answer."""

    http_status, code, kind, retryable = 502, "upstream_invalid", "server_error", True


class EngineError(RequestError):
    """The engine lives and answered with an error of its own; the same request would again."""

    http_status, code, kind = 502, "engine_error", "server_error"


class UpstreamTimeout(RequestError):
    """The engine sent nothing for longer than the stall limit."""

    http_status, code, kind, retryable = 504, "engine_stalled", "server_error", True


class DeadlineExceeded(RequestError):
    """The time that the request itself gave (`timeout`) was over before its answer."""

    http_status, code, kind, retryable = 504, "deadline_exceeded", "server_error", True


class ShuttingDown(RequestError):
    """The gateway process ended before the answer was complete."""

    http_status, code, kind, retryable = 503, "shutting_down", "server_error", True

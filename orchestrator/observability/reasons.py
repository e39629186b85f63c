"""The closed sets of error codes that label series: what was refused, and what an engine did."""

from __future__ import annotations

from orchestrator import errors as e

OTHER = "other"
"""The label of what is not known: a model that nobody serves, a code that is in no set."""

REFUSED_MODEL = frozenset(
    cls.code
    for cls in (
        e.BadRequest, e.UnsupportedParameter, e.ContextLengthExceeded, e.PoisonRequest,
        e.QueueFull, e.TooManyRequests, e.TooManyTokens, e.TooManyAtOnce, e.ModelUnavailable,
        e.DeadlineExceeded, e.Draining, e.GatewayBusy, e.NotFound,
    )
)  # fmt: skip
"""Why a request for a known model gets no engine."""

REFUSED_ANYWAY = frozenset(
    cls.code
    for cls in (
        e.BadRequest, e.Unauthorized, e.KeyExpired, e.WrongHost, e.UnknownModel, e.RequestTimeout,
        e.BodyTooLarge, e.WrongContentType, e.HeadTooLarge, e.TooManyFailures, e.GatewayBusy,
        e.UnsupportedParameter,
    )
)  # fmt: skip
"""Why one is refused before it is known what it is for."""

REFUSALS = REFUSED_MODEL | REFUSED_ANYWAY

UPSTREAM = frozenset(
    cls.code
    for cls in (
        e.UpstreamBroken, e.UpstreamInvalid, e.UpstreamTimeout, e.EngineError, e.EngineBusy,
    )
)  # fmt: skip
"""What an engine does wrong."""

RETRIED = UPSTREAM | {e.QueueFull.code}
"""What may be tried again elsewhere; an engine has a queue of its own, which may be full."""

BROKEN = UPSTREAM | {e.ShuttingDown.code, e.DeadlineExceeded.code}
"""How an answer ends that had begun."""

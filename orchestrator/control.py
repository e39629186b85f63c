"""The wire between the planes: the only thing that supervisor and gateway share.

Newline-delimited JSON over a Unix stream socket that the supervisor listens on. The gateway dials,
says `Hello`, and gets a whole `KeyTable` and a whole `RouteTable` at once, and each again after
every change: there are no deltas, so a lost connection needs no repair. The gateway sends `Report`
after every table it applied and whenever its counts matter, and `Failed` when an engine broke under
a request.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from engine_launchers.base import CrashCause, Quirks, Served
from orchestrator.access import KeyGrant

LINE_LIMIT = 4 * 1024 * 1024
Routing = Literal["auto", "least", "prefix", "p2c"]
ON_DEMAND = frozenset({"unloaded", "sleeping"})  # states of models that a request loads or wakes


class Message(BaseModel):
    """Base of the wire's messages: frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Replica(Message):
    """One engine that may be leased. `generation` grows with every launch of the same engine.

    `vouched`: it was seen to work after the last doubt; what rests because of a failure may go on.
    """

    id: str
    generation: int
    base_url: str
    accepting: bool
    vouched: bool = True
    max_concurrency: int


class ModelCard(Message):
    """What a model is, for clients that list models; sizes in bytes.

    `memory_bytes` is what its engine was planned to take, of which `gpu_bytes` on GPUs.
    """

    format: str = ""
    architecture: str = ""
    quantization: str = ""
    params: int = 0
    weight_bytes: int = 0
    memory_bytes: int = 0
    gpu_bytes: int = 0


class ModelRoute(Message):
    """One model as clients see it.

    `state` is the lifecycle state in lower case; `why` says in words what keeps the model from
    serving. `expected` tells whether waiting makes sense: False for a model that somebody stopped
    or that failed. `routes` is the allow-list of upstream paths. `served` holds every name that
    clients may give, `name` first; empty means just that one. `lost` tells of replicas whose last
    engine crashed what the crash was: it may have been a request's doing. `routing` is how the
    replica of a request is chosen. `defaults` are parameters of requests that say nothing.
    """

    name: str
    state: str
    why: str = ""
    expected: bool = True
    engine: str
    context: int
    created: int
    card: ModelCard = ModelCard()
    routes: frozenset[str]
    quirks: Quirks
    served: tuple[Served, ...] = ()
    chat_template: str | None = None
    bos_token: str | None = None
    eos_token: str | None = None
    replicas: tuple[Replica, ...] = ()
    lost: dict[str, CrashCause] = Field(default_factory=dict)
    routing: Routing = "auto"
    defaults: dict[str, int | float] = Field(default_factory=dict)

    @property
    def names(self) -> tuple[Served, ...]:
        """`served`, or the one name that an empty tuple means."""
        return self.served or (Served(name=self.name, model=self.name),)


class RouteTable(Message):
    """All that a gateway has to know. `draining`: finish what runs, take nothing new."""

    type: Literal["routes"] = "routes"
    version: int
    draining: bool = False
    models: tuple[ModelRoute, ...] = ()


class GatewayConfig(Message):
    """All that a gateway process is started with; sizes in bytes, times in seconds.

    `version` is the program that wrote it: a gateway of another version is replaced, not adopted.
    `key_hashes` are SHA-256 of the accepted API keys, empty for everybody. `control_socket` is None
    for a gateway that has no supervisor, and goes by `table`. `stream_comment_s` 0: no comments.
    `workers` are processes that share the port. `upstream_key` is given to the engines: one that is
    alone is told it in a file without a name. At its end answers under way have `end_s`.
    `otlp_endpoint` None: no traces are made.
    """

    version: str
    name: str
    host: str
    port: int
    workers: int = Field(1, ge=1, le=64)
    control_socket: str | None
    tls_cert: str | None = None
    tls_key: str | None = None
    key_hashes: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_queue: int
    max_queue_tokens: int = 1 << 20
    queue_timeout_s: float
    max_body_bytes: int
    stall_timeout_s: float
    write_timeout_s: float
    stream_comment_s: float = 15.0
    head_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    end_s: float = 3.0
    log_level: str
    log_format: Literal["text", "json"] = "text"
    log_requests: bool = False
    otlp_endpoint: str | None = None
    trace_share: float = 1.0
    upstream_key: str | None = None
    table: RouteTable | None = None
    keys: tuple[KeyGrant, ...] = ()


class KeyTable(Message):
    """All API keys beside those of the gateway's own config, by their hashes."""

    type: Literal["keys"] = "keys"
    keys: tuple[KeyGrant, ...] = ()


class Hello(Message):
    """First line of a gateway."""

    type: Literal["hello"] = "hello"
    gateway: str
    pid: int


class Dealings(Message):
    """What one gateway has had with one generation of a replica.

    `owed`: requests that wait for the engine's next word. `relayed` events and `answered` requests
    only grow, and so do the tokens that streams were given which had the engine to themselves, and
    the seconds of their decode.
    """

    generation: int
    owed: int
    relayed: int
    answered: int
    solo_tokens: int = 0
    solo_s: float = 0.0


class Wish(Message):
    """How long a client wants a model kept, in seconds (-1: for ever), and the monotonic clock at
    which it said so: the last wish counts, whichever gateway heard it."""

    seconds: float
    at: float


class Report(Message):
    """What one gateway sees, as of table `version`.

    Requests in flight per replica id; per model the requests that wait, the leases it gave since it
    started, and the last `keep_alive` that a client asked for.
    `dealings` are by replica id. While anything is in flight a report comes every half second.
    """

    type: Literal["report"] = "report"
    version: int
    in_flight: dict[str, int]
    waiting: dict[str, int]
    served: dict[str, int] = Field(default_factory=dict)
    keep_alive: dict[str, Wish] = Field(default_factory=dict)
    dealings: dict[str, Dealings] = Field(default_factory=dict)


class Failed(Message):
    """A request broke on this replica in a way that is the engine's fault."""

    type: Literal["failed"] = "failed"
    replica: str
    generation: int
    why: str


Wire = RouteTable | KeyTable | Hello | Report | Failed
_ADAPTER: TypeAdapter[Wire] = TypeAdapter(Annotated[Wire, Field(discriminator="type")])


def encode(message: Message) -> bytes:
    """One line of the wire."""
    return message.model_dump_json().encode() + b"\n"


def decode(line: bytes) -> Wire:
    """The message in one line; raises pydantic.ValidationError for anything else."""
    return _ADAPTER.validate_json(line)


async def receive(reader: asyncio.StreamReader) -> Wire | None:
    """The next message, or None at the end of the connection."""
    try:
        line = await reader.readline()
    except (ConnectionError, ValueError):
        return None
    return decode(line) if line.endswith(b"\n") else None

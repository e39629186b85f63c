"""Every setting, from four places: flags > environment > file > defaults.

An unknown key, a misspelt `ENGINEROOM_…` variable and a value out of range are errors that name the
key, its place and what would be right. The variables of the requirement documents (`BASE_MODEL`,
`HOST`, …) are names of the same fields. `configs/engineroom.yaml` shows every key.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from orchestrator.config_file import read_config_file
from orchestrator.errors import ConfigError
from orchestrator.model_settings import ModelEntry, ModelSettings
from orchestrator.observability_settings import ObservabilitySettings
from orchestrator.resources import default_data_dir
from orchestrator.setting_types import Hosts, Origins, Port, PositiveSeconds, Seconds, entries

PREFIX = "ENGINEROOM_"

# Names that the requirement documents promise, beside ENGINEROOM_<FIELD>.
DOCUMENT_VARIABLES: dict[str, str] = {
    "BASE_MODEL": "model",
    "ADAPTER_PATH": "adapter_path",
    "QUANTIZATION": "quantization",
    "HOST": "host",
    "PORT": "port",
    "FORCE_BACKEND": "force_backend",
    "TENSOR_PARALLEL_SIZE": "tensor_parallel_size",
    "ENABLE_COMPILE": "enable_compile",
    "ALLOW_ANONYMOUS": "allow_anonymous",
}

# Too much for a variable.
FILE_ONLY = frozenset({"models", "defaults"})

# Variables with our prefix that are not settings: they choose the file, or belong to the Makefile.
_NOT_SETTINGS = {"ENGINEROOM_CONFIG"}


class Settings(ObservabilitySettings, ModelSettings, BaseSettings):
    """One validated set of settings. Frozen: a change is a new start."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, validate_default=False)

    models: Annotated[tuple[ModelEntry, ...], BeforeValidator(entries)] = Field(
        (),
        description="Several models, each with keys of its own; they replace `model`, and what an "
        "entry does not say the keys of this file say for all.",
    )

    host: str = Field("127.0.0.1", min_length=1, description="Address of the gateway.")
    port: Port = Field(8001, description="Port of the gateway; 0 takes any free one.")
    allow_anonymous: bool = Field(
        False, description="Allow a non-loopback gateway without API keys."
    )
    api_keys: SecretStr | None = Field(
        None, description="Accepted API keys, separated by commas (environment rather than file)."
    )
    api_keys_file: Path | None = Field(
        None, description="File with one API key a line; readable by its owner only."
    )
    upstream_key: SecretStr | None = Field(
        None,
        description="Key that `engineroom gateway` gives its upstream (environment, not file).",
    )
    tls_cert: Path | None = Field(
        None, description="Certificate chain of the gateway (PEM): it speaks HTTPS then."
    )
    tls_key: Path | None = Field(
        None, description="The certificate's private key (PEM); readable by its owner only."
    )
    keys_file: Path | None = Field(
        None, description="Keys made by `engineroom keys`; unset: keys.json in the data directory."
    )
    allowed_hosts: Hosts = Field(
        (), description="Names by which clients may call the gateway (Host header); none: any."
    )
    cors_origins: Origins = Field(
        (), description="Web pages' origins that browsers let read answers; none: no CORS."
    )
    admin_host: str = Field("127.0.0.1", min_length=1, description="Address of the admin API.")
    admin_port: Port = Field(8002, description="Port of the admin API; 0 takes any free one.")
    open_metrics: bool = Field(
        False, description="GET /metrics of the admin API needs no token: for a network of its own."
    )
    engine_host: str = Field(
        "127.0.0.1", min_length=1,
        description="Address of the engines that are processes: loopback, or of a network that "
        "only gateways are on, since engines ask for no key. 0.0.0.0 and public ones are refused.",
    )  # fmt: skip
    control_socket: Path | None = Field(
        None, description="Gateways run elsewhere and dial this socket; unset: one is started here."
    )
    data_dir: Path | None = Field(
        None, description="State and logs; unset takes ~/.local/share/engineroom."
    )
    engines_dir: Path | None = Field(
        None, description="Installed engines; unset takes `envs` in the data directory."
    )

    docker_network: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$",
        description="Internal network for engines in containers; unset: one of its own.",
    )  # fmt: skip
    gateway_workers: int | None = Field(
        None, ge=1, le=64,
        description="Gateway processes that share the port; one per four processors if not said.",
    )  # fmt: skip
    max_queue: int = Field(
        64, ge=0, le=100_000, description="Requests that may wait per model; more get 429."
    )
    max_queue_tokens: int = Field(
        1 << 20, ge=1, le=1 << 40, description="Prompt tokens that may wait per model; then 429."
    )
    queue_timeout_s: PositiveSeconds = Field(
        120.0, description="Longest wait in the queue, seconds; then 503."
    )
    max_body_bytes: int = Field(
        4 * 1024 * 1024, ge=1024, le=1 << 30, description="Largest request body, bytes."
    )
    head_timeout_s: PositiveSeconds = Field(
        10.0, description="A request's head is waited for no longer, seconds."
    )
    body_timeout_s: PositiveSeconds = Field(
        30.0, description="A request's body is waited for no longer, seconds."
    )
    stall_timeout_s: PositiveSeconds = Field(
        60.0, description="Longest silence of an engine that owes a token, seconds."
    )
    write_timeout_s: PositiveSeconds = Field(
        60.0, description="A client that takes nothing for so long is cut off, seconds."
    )
    stream_comment_s: Seconds = Field(
        15.0,
        description="A stream on which nothing was sent for so long gets a comment, seconds; 0 "
        "sends none. The first one commits the status: errors are an event of the stream then.",
    )
    max_ram_bytes: int | None = Field(
        None, ge=1 << 20, le=1 << 50, description="RAM for all engines together; unset: no limit."
    )
    memory_wait_s: Seconds = Field(
        30.0, description="How long a launch waits for memory that is coming back, seconds."
    )
    drain_s: Seconds = Field(30.0, description="Time for requests in flight at a stop, seconds.")
    stop_grace_s: PositiveSeconds = Field(
        10.0, description="Time between TERM and KILL for an engine, seconds."
    )
    start_stall_s: PositiveSeconds = Field(
        300.0,
        ge=0.5,
        description="A start in which nothing grows for so long is given up, seconds.",
    )
    hang_timeout_s: PositiveSeconds = Field(
        45.0, ge=0.5, description="An engine that hangs under work is found within this, seconds."
    )
    lease_s: PositiveSeconds = Field(
        120.0, description="How long engines outlive a vanished supervisor, seconds."
    )
    probe_interval_s: PositiveSeconds = Field(5.0, description="Between liveness probes, seconds.")
    probe_timeout_s: PositiveSeconds = Field(5.0, description="Limit of one probe, seconds.")
    restart_limit: int = Field(
        5, ge=0, le=1000, description="Restarts after crashes within the window, then FAILED."
    )
    restart_window_s: PositiveSeconds = Field(600.0, description="That window, seconds.")
    backoff_max_s: Seconds = Field(60.0, description="Longest pause before a restart, seconds.")
    stable_s: PositiveSeconds = Field(
        60.0, description="A start that served for so long has held: its plan is learned, seconds."
    )
    request_limit: int = Field(
        5, ge=1, le=1000, description="Requests broken in a row, then a canary judges the engine."
    )
    half_open_s: PositiveSeconds = Field(
        300.0, description="A FAILED engine is tried again after this, seconds."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load_settings` hands over: it has merged the places in their order."""
        return (init_settings,)

    def each(self) -> tuple[Settings, ...]:
        """The settings of every model: an entry's own keys beat those for all."""
        return tuple(
            self.model_copy(update={**entry.own(), "models": (entry,)}) for entry in self.models
        ) or (self,)

    @property
    def listed(self) -> bool:
        """Whether this is the entry of a list of models."""
        return bool(self.models)

    @property
    def data(self) -> Path:
        """The data directory, absolute."""
        chosen = self.data_dir or default_data_dir(os.environ)
        return chosen.expanduser().absolute()

    @property
    def control(self) -> Path | None:
        """`control_socket`, absolute."""
        return self.control_socket.expanduser().absolute() if self.control_socket else None

    @property
    def cache(self) -> Path:
        """What may be deleted at any time, absolute: `$XDG_CACHE_HOME/engineroom` or ~/.cache."""
        base = os.environ.get("XDG_CACHE_HOME")
        return (Path(base) if base else Path.home() / ".cache") / "engineroom"

    @property
    def engines(self) -> Path:
        """Where the engines' own environments lie, absolute."""
        chosen = self.engines_dir.expanduser() if self.engines_dir else self.data / "envs"
        return chosen.absolute()

    @property
    def run(self) -> Path:
        """Folder of sockets: short, since a Unix socket's path holds at most 107 bytes."""
        digest = hashlib.sha256(str(self.data).encode()).hexdigest()[:10]
        base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
        if len(base) > 40:
            base = "/tmp"  # noqa: S108 - the folder is made 0700 and its owner checked
        return Path(base) / f"engineroom-{os.getuid()}-{digest}"


class _EnvironmentSource(PydanticBaseSettingsSource):
    """Reads `ENGINEROOM_<FIELD>` and the documents' variables; empty counts as unset."""

    def __init__(self, settings_cls: type[BaseSettings], env: Mapping[str, str]) -> None:
        super().__init__(settings_cls)
        self._env = env
        self.names: dict[str, str] = {}

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """The value of one field, the variable it came from, and False: nothing is JSON."""
        own = PREFIX + field_name.upper()
        for name in (own, *(k for k, v in DOCUMENT_VARIABLES.items() if v == field_name)):
            if self._env.get(name):
                return self._env[name], name, False
        return None, own, False

    def __call__(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for field_name, field in self.settings_cls.model_fields.items():
            if field_name in FILE_ONLY:
                continue
            value, name, _ = self.get_field_value(field, field_name)
            if value is not None:
                values[field_name] = value
                self.names[field_name] = name
        return values


def chosen_file(file: Path | None, env: Mapping[str, str] | None = None) -> Path | None:
    """The settings file: `file`, else the one that `$ENGINEROOM_CONFIG` names, if any."""
    named = (os.environ if env is None else env).get("ENGINEROOM_CONFIG")
    return file or (Path(named) if named else None)


def _as_flag(field: str) -> str:
    return f"flag --{field.replace('_', '-')}"


def load_settings(
    flags: Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
    file: Path | None = None,
    said: Callable[[str], str] = _as_flag,
) -> Settings:
    """Merge the four places and validate.

    `flags` holds field names with None for "not given", `said` what to call one of them in an error
    message. `file` falls back to `$ENGINEROOM_CONFIG`.
    Raises ConfigError: one sentence that names the key and where it was set.
    """
    environment = os.environ if env is None else env
    chosen = chosen_file(file, environment)
    from_file = read_config_file(chosen) if chosen else {}
    if chosen and from_file.get("api_keys") and chosen.stat().st_mode & 0o077:
        raise ConfigError(
            f"{chosen}: holds api_keys and others may read it; run: chmod 600 {chosen}"
        )
    source = _EnvironmentSource(Settings, environment)
    from_env = source()
    from_flags = {key: value for key, value in (flags or {}).items() if value is not None}
    _refuse_unknown_variables(environment)

    def place(field: str) -> str:
        if field in from_flags:
            return said(field)
        if field in from_env:
            return f"environment variable {source.names[field]}"
        return f"{chosen}: {field}" if field in from_file else field

    merged = {**from_file, **from_env, **from_flags}
    for field, value in merged.items():
        if "\0" in str(value):
            raise ConfigError(f"{place(field)}: must not contain NUL characters")
    try:
        return Settings(**merged)
    except ValidationError as error:
        raise ConfigError(sentence(error, place)) from None


def _refuse_unknown_variables(env: Mapping[str, str]) -> None:
    settings = Settings.model_fields.keys() - FILE_ONLY
    known = {PREFIX + name.upper() for name in settings} | _NOT_SETTINGS
    for name in env:
        if name.startswith(PREFIX) and name not in known:
            raise ConfigError(f"unknown environment variable {name}{_hint(name, known)}")


def _hint(name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.75)
    return f"; did you mean {near[0]}?" if near else ""


def sentence(error: ValidationError, place: Callable[[str], str]) -> str:
    """The first thing that is wrong, in words; `place` says where a field was set."""
    first = error.errors(include_url=False)[0]
    field, *inner = first["loc"] or ("settings",)
    where = place(str(field)) + "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in inner
    )
    if first["type"] == "extra_forbidden":
        known = set(ModelEntry.model_fields if inner else Settings.model_fields)
        key = str(first["loc"][-1])
        return f"{where}: unknown key {key!r}{_hint(key, known)}"
    given = first.get("input")
    shown = "" if field in ("api_keys", "upstream_key") else f" (given: {given!r})"
    message = str(first["msg"]).removeprefix("Value error, ")
    return f"{where}: {message[:1].lower()}{message[1:]}{shown}"

"""What a person asked of the server: what goes into the file as it was said, what cannot."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from orchestrator.errors import ConfigError
from orchestrator.settings import PREFIX, Settings

# Settings of the model that are handed on as they were given.
HANDED_ON = (
    "aliases", "quantization", "engine_version", "engine_args", "enable_compile", "users", "goal",
    "gpu_memory_utilization", "gpu_layers", "threads", "preload", "ttl_s", "sleep_level", "pin",
    "priority", "group", "exclusive", "routing", "max_concurrency",
)  # fmt: skip
_ALWAYS = ("drain_s", "stop_grace_s")  # the time that a stop may take is reckoned from them
LEFT_OUT = {
    "models": "a generated file serves one model: say which, and leave the list out",
    "defaults": "only a settings file can say them, and the container has none",
    "engine_path": "a program of this machine, which the container does not have",
    "engine_url": "that server runs already, and no container is needed for it",
    "replicas": "a generated file has the memory and the GPUs of one engine",
    "runtime": "in a generated file engines run in the container itself, not in others beside it",
    "engine_image": "engines run in the container that --image names",
}
_AS_UNSAID = {"replicas": 1}
# Where a flag's value is a secret. Parsers take what a long one begins with, too.
_SECRET = ("--api-key", "--hf-token")
_SECRET_SHORT = ("-hft",)
_SECRET_END = re.compile(r".*-(key|keys|token|password|passwd|secret|credentials)")
_WITH_PASSWORD = re.compile(r"://[^/\s]*@")
_PART = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_REGISTRY = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(?::[0-9]+)?/"
_IMAGE = re.compile(
    rf"(?:{_REGISTRY})?{_PART}(?:/{_PART})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?"
    r"(?:@sha256:[0-9a-f]{64})?"
)


def image_of(given: str) -> str:
    """A container image's name. Raises ConfigError for anything else."""
    if len(given) > 512 or not _IMAGE.fullmatch(given):
        raise ConfigError(
            f"--image {given[:80]!r}: no name of an image; give one like "
            "registry.example.org/own/name:1.0, in small letters"
        )
    return given


def refuse_left_out(settings: Settings) -> None:
    """Raise ConfigError for what was asked of the server and no file can hand on."""
    for field, why in LEFT_OUT.items():
        unsaid = Settings.model_fields[field].get_default(call_default_factory=True)
        if getattr(settings, field) not in (unsaid, _AS_UNSAID.get(field, unsaid)):
            raise ConfigError(f"{field}: {why}")
    for word in settings.engine_args:
        if _WITH_PASSWORD.search(word):
            raise ConfigError(
                "engine_args: an address with a password, which everybody who reads the file would "
                "see: leave it out"
            )
        flag = word.split("=")[0]
        if _keeps_a_secret(flag):
            raise ConfigError(
                f"engine_args: {flag} carries a secret, which everybody who reads the file would "
                "see: leave it out; keys of clients are made with `engineroom keys`"
            )


def handed_on(settings: Settings) -> dict[str, str]:
    """Variables that say over there what was said here."""
    return {PREFIX + field.upper(): text for field, text in _said(settings) if text}


def _said(settings: Settings) -> Iterator[tuple[str, str]]:
    for field in HANDED_ON:
        value = getattr(settings, field)
        if field in settings.model_fields_set and value is not None:
            yield field, _text(field, value)
    for field in _ALWAYS:
        yield field, _text(field, getattr(settings, field))


def _text(field: str, value: object) -> str:
    """A setting as a variable says it."""
    if isinstance(value, tuple):
        return shlex.join(value) if field == "engine_args" else ",".join(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _keeps_a_secret(word: str) -> bool:
    """Whether an engine's parser may take `word` for a flag whose value is a secret."""
    if not word.startswith("-"):
        return False
    flag = word.lower().replace("_", "-")
    short = len(flag) > 4 and any(known.startswith(flag) for known in _SECRET)
    long = any(flag.startswith(known) for known in _SECRET)
    return flag in _SECRET_SHORT or short or long or bool(_SECRET_END.fullmatch(flag))

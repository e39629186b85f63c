"""The model hub as this machine sees it: where its cache is, what lies there, what it offers.

`huggingface_hub` is imported only when a hub or its cache is really asked: it takes half a second.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.errors import ModelInvalid, PullFailed
from orchestrator.models.safetensors import folder_files

_TRUE = {"1", "ON", "YES", "TRUE"}
_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository: `sha256` where the hub vouches for the content (large files)."""

    name: str
    size: int
    sha256: str | None


@dataclass(frozen=True)
class Listing:
    """A repository at one commit."""

    repository: str
    commit: str
    files: tuple[RemoteFile, ...]

    @property
    def weights(self) -> tuple[RemoteFile, ...]:
        """The safetensors of the model itself: not a second copy in its maker's own layout."""
        top = [f for f in self.files if f.name.endswith(".safetensors") and "/" not in f.name]
        return tuple(f for f in top if f.name.startswith("model")) or tuple(top)


@dataclass(frozen=True)
class Hub:
    """The hub that HF_ENDPOINT names and the cache below HF_HOME; the token is never shown."""

    cache: Path
    endpoint: str = "https://huggingface.co"
    offline: bool = False
    token: str | None = field(default=None, repr=False)

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Hub:
        """Read HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN (or its file).

        Raises PullFailed for a token's file that is there and cannot be read.
        """
        env = os.environ if env is None else env
        base = env.get("XDG_CACHE_HOME") or str(
            Path(env.get("HOME") or "~").expanduser() / ".cache"
        )
        home = Path(env.get("HF_HOME") or Path(base) / "huggingface").expanduser()
        cache = Path(env.get("HF_HUB_CACHE") or home / "hub").expanduser()
        offline = any(
            env.get(name, "").upper() in _TRUE
            for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
        )
        token = env.get("HF_TOKEN") or _token_file(Path(env.get("HF_TOKEN_PATH") or home / "token"))
        endpoint = (env.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        return cls(cache, endpoint, offline, token)

    def repository_dir(self, repository: str) -> Path:
        """Where the cache keeps `repository`."""
        return self.cache / f"models--{repository.replace('/', '--')}"

    def local_file(self, repository: str, name: str) -> Path | None:
        """A file of the newest cached commit, None where it is not here."""
        if not self.repository_dir(repository).is_dir():
            return None
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(repository, name, cache_dir=self.cache)
        return Path(found) if isinstance(found, str) and Path(found).exists() else None

    def local_folder(self, repository: str) -> Path | None:
        """The cached folder of a safetensors model, None where it is not here or not complete."""
        config = self.local_file(repository, "config.json")
        if config is None:
            return None
        try:
            folder_files(config.parent)
        except ModelInvalid:  # incomplete: to be pulled, not to be served
            return None
        return config.parent

    def listing(self, repository: str) -> Listing:
        """What the hub offers there. Raises PullFailed, or ModelInvalid where there is nothing."""
        from huggingface_hub import HfApi

        self.must_be_online(repository)
        api = HfApi(endpoint=self.endpoint, token=self.token or False)
        with self.explained(repository):
            info = api.model_info(repository, files_metadata=True, timeout=_TIMEOUT_S)
        files = tuple(
            RemoteFile(each.rfilename, each.size or 0, each.lfs.sha256 if each.lfs else None)
            for each in info.siblings or ()
        )
        return Listing(repository, info.sha or "main", files)

    def small_file(self, listing: Listing, name: str) -> Path:
        """Fetch a file that needs no resuming into the cache, or link what lies there."""
        from huggingface_hub import hf_hub_download

        with self.explained(listing.repository):
            return Path(
                hf_hub_download(
                    listing.repository,
                    name,
                    revision=listing.commit,
                    cache_dir=self.cache,
                    endpoint=self.endpoint,
                    token=self.token or False,
                )
            )

    def must_be_online(self, what: str) -> None:
        """Raise PullFailed where the environment forbids the network."""
        if self.offline:
            raise PullFailed(f"{what}: HF_HUB_OFFLINE is set: unset it, or give a local path")

    @contextmanager
    def explained(self, repository: str) -> Iterator[None]:
        """Turn the library's errors into one sentence each."""
        import httpx
        from huggingface_hub import errors

        try:
            yield
        except errors.GatedRepoError as error:
            raise PullFailed(
                f"{repository}: access has to be granted on its page at {self.endpoint}; then set "
                "HF_TOKEN to a token of that account"
            ) from error
        except (errors.RepositoryNotFoundError, errors.EntryNotFoundError) as error:
            more = "" if self.token else " (or it is private: then set HF_TOKEN)"
            raise ModelInvalid(f"{repository}: {self.endpoint} has no such model{more}") from error
        except errors.HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else "an error"
            hint = ": check HF_TOKEN" if status in (401, 403) else "; try again later"
            raise PullFailed(f"{repository}: {self.endpoint} answered {status}{hint}") from error
        except (httpx.HTTPError, errors.LocalEntryNotFoundError) as error:
            raise PullFailed(
                f"{repository}: {self.endpoint} cannot be reached; check the network or "
                "HF_ENDPOINT, or give a local path"
            ) from error
        except OSError as error:
            raise PullFailed(
                f"{repository}: {error.filename or self.cache}: {error.strerror or error}"
            ) from error


def _token_file(path: Path) -> str | None:
    try:
        return path.expanduser().read_text().strip() or None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise PullFailed(
            f"the hub's token in {path} cannot be read ({error}): let this user read it, or name "
            "another file with HF_TOKEN_PATH"
        ) from error

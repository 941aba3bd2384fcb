"""Where in S3, or in a server that speaks its language, blobs lie.

    blobs=s3://bucket/prefix&endpoint=https://host:9000&region=eu-central-1

Options of the store's URL: ``endpoint`` (AWS's own by default; buckets are in its path),
``region``, ``access_key_id``, ``secret_access_key``, ``session_token``, and ``blobs_timeout_s``,
how long a server may be silent. What is not given is taken from the variables that AWS names
(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL, web identity) or from the
host's role; ``~/.aws`` is not read. Rights needed: GetObject, PutObject, DeleteObject,
AbortMultipartUpload and ListBucket, without which what is not stored looks forbidden.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from statestore.blobs.objects import ObjectBlobs
from statestore.errors import SettingsError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config

SCHEME: Final = "s3://"
OPTIONS: Final = (
    "access_key_id",
    "blobs_timeout_s",
    "endpoint",
    "region",
    "secret_access_key",
    "session_token",
)

_TIMEOUT_S: Final = 5.0  # of silence
_MAX_TIMEOUT_S: Final = 600.0
_CONNECT_S: Final = 2.0
_TRICKLE: Final = 6  # a request may take this many times the silence that is allowed
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")
_SEGMENT: Final = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9!_.*'()=-]+")


@dataclass(frozen=True, slots=True)
class S3Place:
    """A bucket, a prefix in it, and how to get there."""

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    region: str = ""
    access_key_id: str = field(default="", repr=False)
    secret_access_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    timeout_s: float = _TIMEOUT_S

    @classmethod
    def parse(cls, url: str, options: Mapping[str, str]) -> S3Place:
        """The place that ``s3://bucket/prefix`` and `options` name.

        Raises:
            SettingsError: one of them is malformed. No secret is shown.
        """
        bucket, _, path = url.removeprefix(SCHEME).partition("/")
        segments = path.strip("/").split("/") if path.strip("/") else []
        if not _BUCKET.fullmatch(bucket) or not all(map(_SEGMENT.fullmatch, segments)):
            raise SettingsError(
                "blobs names no bucket, of 2 to 63 letters, digits, dots and hyphens: "
                "write for example blobs=s3://bucket/prefix"
            )
        secrets = {name: options.get(name, "") for name in OPTIONS if _is_secret(name)}
        if bool(secrets["access_key_id"]) != bool(secrets["secret_access_key"]):
            raise SettingsError("access_key_id and secret_access_key go together")
        return cls(
            bucket,
            "/".join(segments),
            _endpoint(options.get("endpoint", "")),
            options.get("region", ""),
            **{name: value.replace(" ", "+") for name, value in secrets.items()},
            timeout_s=_seconds(options.get("blobs_timeout_s", str(_TIMEOUT_S))),
        )

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def options(self) -> dict[str, str]:
        """What to add to a store's URL so that it names this place again, without secrets."""
        given = {"blobs": str(self), "endpoint": self.endpoint, "region": self.region}
        if self.timeout_s != _TIMEOUT_S:
            given["blobs_timeout_s"] = f"{self.timeout_s:g}"
        return {name: value for name, value in given.items() if value}

    def open(self) -> ObjectBlobs:
        """The blobs there; asks for one, so that what is wrong shows at once.

        Raises:
            SettingsError: the driver is missing, or refuses a setting.
            UnavailableError: the server or the bucket is not there, or forbids it.
        """
        try:
            from obstore.exceptions import BaseError
            from obstore.store import S3Store
        except ModuleNotFoundError as error:
            raise SettingsError(
                f"blobs={self} needs {error.name}: pip install 'rwkv-statestore[s3]'"
            ) from error
        shown = f"{self} at {self.endpoint}" if self.endpoint else str(self)
        connect = partial(
            S3Store,
            self.bucket,
            prefix=self.prefix or None,
            config=self._config(),
            client_options=self._client(),
            retry_config=self._retries(),
        )
        try:
            store = connect()
        except (BaseError, ValueError) as error:
            raise SettingsError(f"blobs={shown}: {str(error).partition(chr(10))[0]}") from None
        blobs = ObjectBlobs(store, shown, connect)
        blobs.require()
        return blobs

    def _config(self) -> S3Config:
        # Single deletes: many servers lack the bulk form, and a state is one object.
        config: S3Config = {"disable_bulk_delete": True}
        if self.endpoint:
            config["endpoint"] = self.endpoint
        if self.region:
            config["region"] = self.region
        if self.access_key_id:
            config["access_key_id"] = self.access_key_id
            config["secret_access_key"] = self.secret_access_key
        if self.session_token:
            config["session_token"] = self.session_token
        return config

    def _client(self) -> ClientConfig:
        """Bounds on connecting, on silence and on one whole request."""
        return {
            "allow_http": self.endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=min(_CONNECT_S, self.timeout_s)),
            "read_timeout": timedelta(seconds=self.timeout_s),
            "timeout": timedelta(seconds=_TRICKLE * self.timeout_s),
        }

    def _retries(self) -> RetryConfig:
        """One more try for what failed at once; none for what has taken its time already."""
        return {
            "max_retries": 1,
            "retry_timeout": timedelta(seconds=self.timeout_s / 2),
            "backoff": {
                "init_backoff": timedelta(milliseconds=50),
                "max_backoff": timedelta(milliseconds=200),
                "base": 2,
            },
        }


def _is_secret(option: str) -> bool:
    return option in ("access_key_id", "secret_access_key", "session_token")


def _endpoint(text: str) -> str:
    """``http(s)://host[:port]``, or nothing."""
    if not text:
        return ""
    try:
        parts = urlsplit(text)
        lawful = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        lawful = False
    if not lawful or parts.username or parts.password or parts.query or parts.fragment:
        raise SettingsError("endpoint is to be like https://host:9000, and holds no secret")
    return text.rstrip("/")


def _seconds(text: str) -> float:
    seconds = math.nan
    with suppress(ValueError):
        seconds = float(text)
    if not 0.05 <= seconds <= _MAX_TIMEOUT_S:
        raise SettingsError(
            f"blobs_timeout_s={text!r} is to be seconds, from 0.05 to {_MAX_TIMEOUT_S:g}"
        )
    return seconds

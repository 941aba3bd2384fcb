"""Redis over TLS, behind an authority of one's own: one server and a Cluster, with and without
certificates of clients."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from statestore.errors import SettingsError, UnavailableError
from tests.places.backend_places import a_blob, an_entry, publish
from tests.places.redis_places import open_url
from tests.places.redis_servers import free_port, running, wait_until

LARGE = 3_000_000  # bytes: several parts
PATIENT = "connect_timeout_s=30&timeout_s=30"  # a loaded machine is no dead place


def openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an authority, ca.pem, and what it has signed."""
    root = tmp_path_factory.mktemp("tls")
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *new, "-subj", "/CN=Authority",
            "-keyout", root / "ca.key", "-out", root / "ca.pem")  # fmt: skip
    for name, extension in (
        ("server", "subjectAltName=IP:127.0.0.1"),
        ("elsewhere", "subjectAltName=DNS:elsewhere.example"),
        ("client", "extendedKeyUsage=clientAuth"),
    ):
        (root / "extension").write_text(extension)
        openssl("req", *new, "-subj", f"/CN={name}",
                "-keyout", root / f"{name}.key", "-out", root / "request")  # fmt: skip
        openssl("x509", "-req", "-in", root / "request", "-CA", root / "ca.pem",
                "-CAkey", root / "ca.key", "-CAcreateserial",
                "-extfile", root / "extension", "-out", root / f"{name}.pem")  # fmt: skip
    return root


def certified(authority: Path, name: str, clients: str = "no") -> tuple[str, ...]:
    """Options of a server that shows this certificate."""
    files = {"cert-file": f"{name}.pem", "key-file": f"{name}.key", "ca-cert-file": "ca.pem"}
    given = [(f"--tls-{option}", str(authority / file)) for option, file in files.items()]
    return (*(word for pair in given for word in pair), "--tls-auth-clients", clients)


@contextmanager
def over_tls(authority: Path, name: str = "server", clients: str = "no") -> Iterator[str]:
    """The URL of a server, which takes more options."""
    port = free_port()
    with running("--tls-port", str(port), *certified(authority, name, clients)):
        yield f"rediss://127.0.0.1:{port}?{PATIENT}"


def serves(url: str) -> None:
    """It keeps a state and gives it back."""
    with closing(open_url(url)) as backend:
        entry = an_entry(0, blob_bytes=LARGE)
        assert publish(backend, entry)
        assert backend.longest([entry.key], entry.created_at) == entry
        assert backend.read(entry) == a_blob(entry.key, LARGE)


def refused(url: str, message: str) -> None:
    with closing(open_url(url)) as backend, pytest.raises(UnavailableError, match=message):
        backend.usage()


def test_an_authority_of_ones_own(authority: Path) -> None:
    with over_tls(authority) as url:
        serves(f"{url}&ssl_ca_certs={authority}/ca.pem")
        refused(url, "certificate verify failed.*ssl_ca_certs=/path.pem names who signed it")
        with closing(open_url(f"{url}&ssl_cert_reqs=none")) as careless:
            assert careless.usage().entries == 1


def test_a_certificate_of_another_host(authority: Path) -> None:
    with over_tls(authority, "elsewhere") as url:
        refused(f"{url}&ssl_ca_certs={authority}/ca.pem", "mismatch.*a host that it is of")


def test_certificates_of_clients(authority: Path) -> None:
    with over_tls(authority, clients="yes") as url:
        url += f"&ssl_ca_certs={authority}/ca.pem"
        serves(f"{url}&ssl_certfile={authority}/client.pem&ssl_keyfile={authority}/client.key")
        refused(url, "rediss://127.0.0.1")


def test_a_cluster(authority: Path) -> None:
    with ExitStack() as stack:
        ports = []
        for _ in range(3):
            ports.append(free_port())
            stack.enter_context(
                running("--tls-port", str(ports[-1]), "--tls-cluster", "yes", "--cluster-enabled",
                        "yes", "--cluster-port", str(free_port()),
                        *certified(authority, "server"))
            )  # fmt: skip
        tls = ("--tls", "--cacert", str(authority / "ca.pem"))
        nodes = [f"127.0.0.1:{port}" for port in ports]
        subprocess.run(
            ["redis-cli", *tls, "--cluster", "create", *nodes, "--cluster-yes"],
            check=True,
            capture_output=True,
        )

        def ready() -> bool:
            info = ("redis-cli", *tls, "-p")
            told = [
                subprocess.check_output([*info, str(port), "cluster", "info"]) for port in ports
            ]
            return all(b"cluster_state:ok" in state for state in told)

        wait_until(ready, "the Cluster")
        url = f"rediss+cluster://{nodes[0]}?{PATIENT}"
        serves(f"{url}&ssl_ca_certs={authority}/ca.pem")
        refused(url, "ssl_ca_certs=/path.pem names who signed it")


@pytest.mark.parametrize("name", ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile"])
def test_a_file_that_is_not_there_is_named_at_once(name: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"{name}: {tmp_path}/none.pem: No such file"):
        open_url(f"rediss://127.0.0.1?{name}={tmp_path}/none.pem")


def test_a_plain_url_for_a_server_over_tls(authority: Path) -> None:
    with over_tls(authority) as url:
        refused(url.replace("rediss", "redis"), "is the URL right")

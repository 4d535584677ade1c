"""A server that asks for a client certificate."""

import ssl
import subprocess

import pytest

from django_moe_personalize.exceptions import TransportError
from django_moe_personalize.moengage.transport import RequestsTransport
from tests.loopback import Exchange, Loopback
from tests.moengage.test_connections import send, tunnel
from tests.wire import echo


@pytest.fixture
def demanding(tls_ends, tmp_path):
    """Give the TLS context of a server that asks for a client certificate, and the certificate and key as files."""
    certificate = tls_ends.authority.issue_cert("site@example.com")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    context = tls_ends.build_context("127.0.0.1")
    context.verify_mode = ssl.CERT_REQUIRED
    tls_ends.authority.configure_trust(context)
    return context, tmp_path


@pytest.mark.parametrize("names", ["both.pem", ["cert.pem", "key.pem"]])
@pytest.mark.parametrize("scheme", ["", "http", "https"])
def test_client_certificate(names, scheme, demanding, tls_ends):
    """``cert`` is one file or two. A proxy doesn't get the certificate."""
    context, folder = demanding
    cert = str(folder / names) if isinstance(names, str) else [str(folder / name) for name in names]
    options = {"verify": str(tls_ends.ca_file), "cert": cert}
    curious = tls_ends.build_context("127.0.0.1")
    curious.verify_mode = ssl.CERT_OPTIONAL
    tls_ends.authority.configure_trust(curious)
    shown: list[object] = []

    def behave(exchange: Exchange) -> None:
        shown.append(scheme == "https" and exchange.connection.getpeercert())
        tunnel(exchange)

    with Loopback(echo, tls=context) as server, Loopback(behave, tls=curious if scheme == "https" else None) as proxy:
        if scheme:
            options["proxies"] = {"https": f"{scheme}://127.0.0.1:{proxy.port}"}
        assert send(server.url, **options).status == 200
        assert not any(shown)
        with pytest.raises(TransportError):
            send(server.url, **options | {"cert": None})


@pytest.mark.parametrize("problem", ["no-key", "password"])
def test_unusable_client_certificate(problem, demanding, tls_ends):
    """The constructor raises ValueError. OpenSSL doesn't ask for the key's password on the terminal."""
    _, folder = demanding
    cert = [str(folder / "cert.pem")]
    if problem == "password":
        key = ["openssl", "pkey", "-in", folder / "key.pem", "-aes128", "-passout", "pass:x", "-out", folder / "locked"]
        subprocess.run(key, check=True)
        cert.append(str(folder / "locked"))
    with pytest.raises(ValueError, match="the key must have no password"):
        RequestsTransport("https://127.0.0.1", verify=str(tls_ends.ca_file), cert=cert)

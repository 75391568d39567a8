"""A certificate authority of a test's own, and the certificates that it gives."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.servers.environments import server_python

# Run by LocalStack's interpreter, which has the package `cryptography`.
_MAKE = """\
import datetime, ipaddress, sys
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

folder, *names = sys.argv[1:]
now = datetime.datetime.now(datetime.timezone.utc)


def certificate(subject, public_key, issuer, issuer_key, authority, more=()):
    issuer_id = x509.SubjectKeyIdentifier.from_public_key(issuer_key.public_key())
    builder = x509.CertificateBuilder(issuer, subject, public_key, x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=30))
    usage = x509.KeyUsage(True, False, False, False, False, authority, authority, False, False)
    extensions = [
        (x509.BasicConstraints(authority, None), True),
        (usage, True),
        (x509.SubjectKeyIdentifier.from_public_key(public_key), False),
        (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_id), False),
        *more,
    ]
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer_key, hashes.SHA256())


def named(text):
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def of_host(text):
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def write(name, *blocks):
    with open(f"{folder}/{name}", "wb") as file:
        file.write(b"".join(blocks))


root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
root = certificate(named("Authority of a test"), root_key.public_key(), named("Authority of a test"), root_key, True)
hosts = (x509.SubjectAlternativeName([of_host(name) for name in names]), False)
leaf = certificate(named("a server"), key.public_key(), root.subject, root_key, False, [hosts])
pem = serialization.Encoding.PEM
secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
write("authority.pem", root.public_bytes(pem))
write("server.pem", secret, leaf.public_bytes(pem))
"""


class Authority:
    """`bundle` is what a client has to trust; `server` the key and certificate of a server with those names."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        command = [str(server_python("localstack")), "-I", "-c", _MAKE, str(folder), *names]
        made = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert made.returncode == 0, made.stderr
        self.bundle = folder / "authority.pem"
        self.server = folder / "server.pem"

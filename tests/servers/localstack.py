"""LocalStack's S3: keeps no state, but has AWS's semantics for CRC64NVME and object attributes."""

import subprocess
from typing import ClassVar

from tests.servers.environments import server_python
from tests.servers.s3server import S3Server, ServerError

# LocalStack loads a certificate even for plain HTTP. Its own way to make one fails with today's pyOpenSSL,
# and otherwise it would download one.
_MAKE_CERTIFICATE = """\
import datetime, sys
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
key = ec.generate_private_key(ec.SECP256R1())
name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
now = datetime.datetime.now(datetime.timezone.utc)
builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
builder = builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=30))
secret = key.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)
with open(sys.argv[1], "wb") as file:
    file.write(secret + builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
"""

# Objects lie in a constant place below /tmp, which several servers, or several users, cannot share.
_MAIN = """\
import sys
from localstack.services.s3 import provider
provider.DEFAULT_S3_TMP_DIR = sys.argv.pop(1)
from localstack.runtime.main import main
main()
"""


class LocalStack(S3Server):
    """LocalStack 4.12.0 with S3 alone; takes any key and secret, and forgets everything when it ends."""

    name: ClassVar[str] = "localstack"

    def prepare(self) -> None:
        self._python = server_python(self.name)
        self._certificate = self.state / "server.pem"
        command = [str(self._python), "-I", "-c", _MAKE_CERTIFICATE, str(self._certificate)]
        made = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        if made.returncode != 0:
            raise ServerError(f"LocalStack's certificate cannot be made:\n{made.stderr}")

    def commands(self) -> dict[str, list[str]]:
        return {self.name: [str(self._python), "-I", "-c", _MAIN, str(self.data / "objects")]}

    def variables(self) -> dict[str, str]:
        return {
            "FILESYSTEM_ROOT": str(self.data),
            "GATEWAY_LISTEN": f"127.0.0.1:{self.ports[0]}",
            "GATEWAY_SERVER": "hypercorn",  # the default one listens on every interface
            "SERVICES": "s3",
            "STRICT_SERVICE_LOADING": "1",
            "EAGER_SERVICE_LOADING": "1",
            # Nothing leaves the machine: no name server, no usage events, no download.
            "DNS_ADDRESS": "0",
            "DISABLE_EVENTS": "1",
            "SKIP_SSL_CERT_DOWNLOAD": "1",
            "CUSTOM_SSL_CERT_PATH": str(self._certificate),
        }

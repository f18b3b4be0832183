"""The certificates of one cluster, made with openssl when it is created.

One authority signs everything: servers prove themselves to Python's strict verification
(key usage, subject and authority key identifiers), clients carry their Kubernetes user as the
common name and their groups as organizations. Keys are P-256, which takes milliseconds.
They live ten years; a cluster lives hours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from devcluster.commands import run

_DAYS = "3650"


@dataclass(frozen=True)
class Identity:
    """One certificate: who it is for.

    With `addresses` it is a server's (and may act as a client as well), without a client's.
    """

    file: str
    user: str
    group: str = ""
    addresses: Sequence[str] = ()


def issue(folder: Path, identities: Sequence[Identity]) -> None:
    """Make an authority (`ca.crt`, `ca.key`), the service account key, and every identity.

    Args:
        folder: where `<file>.crt` and `<file>.key` go; only root can read it afterwards.
        identities: the certificates to sign.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    _key(folder / "ca.key")
    _key(folder / "service-accounts.key")
    _openssl(
        ["req", "-x509", "-new", "-sha256", "-subj", "/CN=devcluster-ca", "-days", _DAYS],
        {"-key": folder / "ca.key", "-out": folder / "ca.crt", "-config": "/dev/stdin"},
        stdin=_section(
            "basicConstraints=critical,CA:TRUE",
            "keyUsage=critical,keyCertSign,cRLSign,digitalSignature",
            "subjectKeyIdentifier=hash",
            request=True,
        ),
    )
    for identity in identities:
        _sign(folder, identity)


def _sign(folder: Path, identity: Identity) -> None:
    key, request = folder / f"{identity.file}.key", folder / f"{identity.file}.csr"
    _key(key)
    subject = f"/O={identity.group}" if identity.group else ""
    _openssl(
        ["req", "-new", "-subj", f"{subject}/CN={identity.user}"],
        {"-key": key, "-out": request, "-config": "/dev/stdin"},
        stdin=_section(request=True),
    )
    lines = [
        "basicConstraints=critical,CA:FALSE",
        "keyUsage=critical,digitalSignature",
        "subjectKeyIdentifier=hash",
        "authorityKeyIdentifier=keyid",
        f"extendedKeyUsage=clientAuth{',serverAuth' if identity.addresses else ''}",
    ]
    if identity.addresses:
        names = [f"{'IP' if _is_ip(a) else 'DNS'}:{a}" for a in identity.addresses]
        lines.append(f"subjectAltName={','.join(names)}")
    _openssl(
        ["x509", "-req", "-sha256", "-days", _DAYS, "-extensions", "made", "-CAcreateserial"],
        {
            "-in": request,
            "-out": folder / f"{identity.file}.crt",
            "-CA": folder / "ca.crt",
            "-CAkey": folder / "ca.key",
            "-extfile": "/dev/stdin",
        },
        stdin=_section(*lines),
    )
    request.unlink()


def _key(path: Path) -> None:
    _openssl(["ecparam", "-name", "prime256v1", "-genkey", "-noout"], {"-out": path})
    path.chmod(0o600)


def _openssl(
    command: Sequence[str], files: Mapping[str, str | Path], stdin: str | None = None
) -> None:
    pairs = [str(word) for pair in files.items() for word in pair]
    run(["openssl", *command, *pairs], stdin=stdin)


def _is_ip(address: str) -> bool:
    return address.replace(".", "").isdigit()


def _section(*lines: str, request: bool = False) -> str:
    head = "[req]\nprompt=no\ndistinguished_name=name\n" if request else ""
    if request and lines:
        head += "x509_extensions=made\n"
    return head + "[name]\n[made]\n" + "\n".join(lines) + "\n"

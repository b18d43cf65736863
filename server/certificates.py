"""The consortium's own authority: it vouches for the centre to the sites, and for sites to SiteWatch.

EC P-384. Extensions are complete, so that strict verifiers (Python 3.13, gRPC, OpenSSL 3) accept the chain.
"""

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dsan_daemon.files import PRIVATE, write_atomically

AUTHORITY_YEARS, CERTIFICATE_YEARS = 10, 5
CLOCK_SKEW = timedelta(days=1)  # a site's clock may be behind
_SHA = hashes.SHA384()


@dataclass(frozen=True)
class Authority:
    """The key that signs, and its own certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


def found_authority(tls: Path, host: str) -> None:
    """Write a new authority, the server's key and certificate, and an empty list of revoked ones."""
    tls.mkdir(mode=0o700)
    key = ec.generate_private_key(ec.SECP384R1())
    authority = _self_signed(key, _name(f"dsan-federated CA of {host}"[:64]))
    server_key = ec.generate_private_key(ec.SECP384R1())
    server = issue_server_certificate(authority, server_key.public_key(), host)
    write_atomically(tls / "ca.key", _key_pem(authority.key), PRIVATE)
    write_atomically(tls / "ca.crt", certificate_pem(authority.certificate))
    write_atomically(tls / "server.key", _key_pem(server_key), PRIVATE)
    write_atomically(tls / "server.crt", certificate_pem(server))
    write_atomically(tls / "crl.pem", _revocation_list(authority, []))


def renew_authority(tls: Path) -> Authority:
    """Its certificate from now on, with the same key and name: what it signed before stays good."""
    old = load_authority(tls)
    authority = _self_signed(old.key, old.certificate.subject)
    revoked = list(x509.load_pem_x509_crl((tls / "crl.pem").read_bytes()))
    write_atomically(tls / "ca.crt", certificate_pem(authority.certificate))
    write_atomically(tls / "crl.pem", _revocation_list(authority, revoked))
    return authority


def renew_server_certificate(tls: Path, host: str) -> x509.Certificate:
    """A new certificate for the server's key."""
    key = _load_key(tls / "server.key")
    certificate = issue_server_certificate(load_authority(tls), key.public_key(), host)
    write_atomically(tls / "server.crt", certificate_pem(certificate))
    return certificate


def load_authority(tls: Path) -> Authority:
    """The authority of a centre's folder."""
    certificate = x509.load_pem_x509_certificate((tls / "ca.crt").read_bytes())
    return Authority(_load_key(tls / "ca.key"), certificate)


def issue_server_certificate(
    authority: Authority, key: ec.EllipticCurvePublicKey, host: str
) -> x509.Certificate:
    """The certificate with which the centre proves its name (DNS or IP address) to sites."""
    names = x509.SubjectAlternativeName([_alternative_name(host)])
    builder = _leaf(authority, key, host, ExtendedKeyUsageOID.SERVER_AUTH)
    return builder.add_extension(names, critical=False).sign(authority.key, _SHA)


def issue_client_certificate(
    authority: Authority, key: ec.EllipticCurvePublicKey, site: str
) -> x509.Certificate:
    """The certificate with which a site proves its name to SiteWatch."""
    return _leaf(authority, key, site, ExtendedKeyUsageOID.CLIENT_AUTH).sign(authority.key, _SHA)


def revoke_certificate(tls: Path, serial: int) -> None:
    """Add a certificate to the list of revoked ones; one that is there already changes nothing."""
    current = x509.load_pem_x509_crl((tls / "crl.pem").read_bytes())
    if current.get_revoked_certificate_by_serial_number(serial) is None:
        now = datetime.now(UTC)
        revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        content = _revocation_list(load_authority(tls), [*current, revoked])
        write_atomically(tls / "crl.pem", content)


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """A certificate as text."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def _self_signed(key: ec.EllipticCurvePrivateKey, name: x509.Name) -> Authority:
    usage = _key_usage(key_cert_sign=True, crl_sign=True)
    builder = (
        _builder(name, name, key.public_key(), _years_from_now(AUTHORITY_YEARS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return Authority(key, builder.sign(key, _SHA))


def _leaf(
    authority: Authority, key: ec.EllipticCurvePublicKey, name: str, purpose: x509.ObjectIdentifier
) -> x509.CertificateBuilder:
    identifier = authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    issuer = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
    ends = min(_years_from_now(CERTIFICATE_YEARS), authority.certificate.not_valid_after_utc)
    return (
        _builder(_name(name[:64]), authority.certificate.subject, key, ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(issuer, critical=False)
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, ends: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - CLOCK_SKEW)
        .not_valid_after(ends)
    )


def _years_from_now(years: int) -> datetime:
    return datetime.now(UTC) + timedelta(days=365 * years)


def _revocation_list(authority: Authority, revoked: list[x509.RevokedCertificate]) -> bytes:
    """Valid as long as the authority: the proxy would refuse everybody by a list that has run out."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(datetime.now(UTC) - CLOCK_SKEW)
        .next_update(authority.certificate.not_valid_after_utc)
    )
    for certificate in revoked:
        builder = builder.add_revoked_certificate(certificate)
    return builder.sign(authority.key, _SHA).public_bytes(serialization.Encoding.PEM)


def _key_usage(
    digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )

"""An instance of sigstore of our own, without its servers: a certificate authority, a log of certificates, a log of signatures,
and the file that says to trust them. What it signs is made as those servers make it."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from pathlib import Path

ISSUER = "https://accounts.example"
_ISSUER_OIDS = ("1.3.6.1.4.1.57264.1.1", "1.3.6.1.4.1.57264.1.8")
_TIMESTAMPS_OID = "1.3.6.1.4.1.11129.2.4.2"
_LOG = "log.example"
_SIGNED = ec.ECDSA(hashes.SHA256())


class Sigstore:
    """``root`` is the trusted root's file."""

    def __init__(self, folder: Path) -> None:
        self._authority, self._certificates, self._signatures = (
            ec.generate_private_key(ec.SECP256R1()) for _ in range(3)
        )
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority")])
        self._certificate = self._root_certificate()
        self.root = folder / "trusted_root.json"
        self.root.write_text(json.dumps(self._trusted_root()))

    def sign(self, data: bytes, identity: str, issuer: str = ISSUER) -> bytes:
        """The bundle."""
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = self._leaf(key.public_key(), identity, issuer)
        signature = key.sign(data, _SIGNED)
        digest = hashlib.sha256(data)
        pem = leaf.public_bytes(serialization.Encoding.PEM)
        body = _canonical(
            {
                "apiVersion": "0.0.1",
                "kind": "hashedrekord",
                "spec": {
                    "data": {"hash": {"algorithm": "sha256", "value": digest.hexdigest()}},
                    "signature": {"content": _base64(signature), "publicKey": {"content": _base64(pem)}},
                },
            }
        )
        bundle = {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {
                "certificate": {"rawBytes": _base64(leaf.public_bytes(serialization.Encoding.DER))},
                "tlogEntries": [self._entry(body)],
            },
            "messageSignature": {
                "messageDigest": {"algorithm": "SHA2_256", "digest": _base64(digest.digest())},
                "signature": _base64(signature),
            },
        }
        return json.dumps(bundle).encode()

    # --- the authority, and its log -----------------------------------------------------------------------------

    def _root_certificate(self) -> x509.Certificate:
        public = self._authority.public_key()
        return (
            _dated(x509.CertificateBuilder(), timedelta(days=365))
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(public)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_usage(certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(self._authority, hashes.SHA256())
        )

    def _leaf(self, public: ec.EllipticCurvePublicKey, identity: str, issuer: str) -> x509.Certificate:
        """Of ten minutes, with the log's word that it has it: over the same without that word."""
        name: x509.GeneralName = x509.RFC822Name(identity)
        if "://" in identity:
            name = x509.UniformResourceIdentifier(identity)
        old, new = _ISSUER_OIDS
        builder = (
            _dated(x509.CertificateBuilder(), timedelta(minutes=10))
            .subject_name(x509.Name([]))
            .issuer_name(self._name)
            .public_key(public)
            .add_extension(_usage(certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._authority.public_key()), critical=False
            )
            .add_extension(x509.SubjectAlternativeName([name]), critical=True)
            .add_extension(_other(old, issuer.encode()), critical=False)
            .add_extension(_other(new, _der(0x0C, issuer.encode())), critical=False)
        )
        logged = builder.sign(self._authority, hashes.SHA256()).tbs_certificate_bytes
        moment = struct.pack("!Q", int(datetime.now(timezone.utc).timestamp() * 1000))
        said = b"\0\0" + moment + b"\0\1" + _id(self._authority) + struct.pack("!I", len(logged))[1:] + logged + b"\0\0"
        signature = self._certificates.sign(said, _SIGNED)
        word = (
            b"\0" + _id(self._certificates) + moment + b"\0\0" + b"\4\3" + struct.pack("!H", len(signature)) + signature
        )
        words = struct.pack("!HH", len(word) + 2, len(word)) + word
        return builder.add_extension(_other(_TIMESTAMPS_OID, _der(4, words)), critical=False).sign(
            self._authority, hashes.SHA256()
        )

    # --- the log of signatures ----------------------------------------------------------------------------------

    def _entry(self, body: bytes) -> dict[str, Any]:
        """The first of a log that has no other."""
        key = self._signatures
        moment = int(datetime.now(timezone.utc).timestamp())
        promised = {"body": _base64(body), "integratedTime": moment, "logID": _id(key).hex(), "logIndex": 0}
        root = hashlib.sha256(b"\0" + body).digest()
        note = f"{_LOG} - 1\n1\n{_base64(root)}\n"
        signed = _base64(_id(key)[:4] + key.sign(note.encode(), _SIGNED))
        return {
            "logIndex": "0",
            "logId": {"keyId": _base64(_id(key))},
            "kindVersion": {"kind": "hashedrekord", "version": "0.0.1"},
            "integratedTime": str(moment),
            "inclusionPromise": {"signedEntryTimestamp": _base64(key.sign(_canonical(promised), _SIGNED))},
            "inclusionProof": {
                "logIndex": "0",
                "rootHash": _base64(root),
                "treeSize": "1",
                "hashes": [],
                "checkpoint": {"envelope": f"{note}\n\N{EM DASH} {_LOG} {signed}\n"},
            },
            "canonicalizedBody": _base64(body),
        }

    # --- whom to trust ------------------------------------------------------------------------------------------

    def _trusted_root(self) -> dict[str, Any]:
        since = {"start": "2020-01-01T00:00:00Z"}

        def log(key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
            return {
                "baseUrl": f"https://{_LOG}",
                "hashAlgorithm": "SHA2_256",
                "publicKey": {
                    "rawBytes": _base64(_public(key)),
                    "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                    "validFor": since,
                },
                "logId": {"keyId": _base64(_id(key))},
            }

        certificate = _base64(self._certificate.public_bytes(serialization.Encoding.DER))
        return {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [log(self._signatures)],
            "ctlogs": [log(self._certificates)],
            "certificateAuthorities": [
                {
                    "subject": {"organization": "example", "commonName": "an authority"},
                    "uri": "https://authority.example",
                    "certChain": {"certificates": [{"rawBytes": certificate}]},
                    "validFor": since,
                }
            ],
            "timestampAuthorities": [],
        }


def _dated(builder: x509.CertificateBuilder, length: timedelta) -> x509.CertificateBuilder:
    now = datetime.now(timezone.utc)
    return (
        builder.serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + length)
    )


def _usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates, key_cert_sign=certificates, crl_sign=certificates, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _other(oid: str, value: bytes) -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)


def _der(tag: int, value: bytes) -> bytes:
    length = len(value)
    if length < 0x80:
        return bytes([tag, length]) + value
    digits = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(digits)]) + digits + value


def _public(key: ec.EllipticCurvePrivateKey) -> bytes:
    public = key.public_key()
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _id(key: ec.EllipticCurvePrivateKey) -> bytes:
    return hashlib.sha256(_public(key)).digest()


def _canonical(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()

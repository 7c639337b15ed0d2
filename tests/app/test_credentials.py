"""Signatures of content credentials, verified by c2pa-python on files that the same package signed."""

import datetime
import io
import socket

import pytest

from aidet.app import credentials, metadata

c2pa = pytest.importorskip("c2pa", reason="c2pa-python is not installed")


def certificate(name, key, issuer=None, issuer_key=None):
    """A certificate of ``key``: of an authority, or for signing if there is an issuer."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    subject = x509.Name([x509.NameAttribute(n, name) for n in (NameOID.ORGANIZATION_NAME, NameOID.COMMON_NAME)])
    authority = issuer is None
    usage = dict.fromkeys(
        "content_commitment key_encipherment data_encipherment key_agreement encipher_only decipher_only".split(), False
    )
    usage.update(digital_signature=not authority, key_cert_sign=authority, crl_sign=authority)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if authority else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime(2024, 1, 1))
        .not_valid_after(datetime.datetime(2049, 1, 1))
        .add_extension(x509.BasicConstraints(authority, None), True)
        .add_extension(x509.KeyUsage(**usage), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key((issuer_key or key).public_key()), False)
    )
    if not authority:
        made = made.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)
    return made.sign(issuer_key or key, hashes.SHA256())


@pytest.fixture(scope="module")
def signed(tmp_path_factory):
    """Bytes of a signed JPEG, and the path of its authority's certificate."""
    import numpy as np
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from PIL import Image

    pem = serialization.Encoding.PEM
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = certificate("Test Authority", root_key)
    chain = certificate("Test Pictures Ltd", key, root, root_key).public_bytes(pem) + root.public_bytes(pem)
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    source = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    action = {"action": "c2pa.created", "digitalSourceType": source, "softwareAgent": {"name": "Example Diffusion"}}
    manifest = {
        "claim_generator_info": [{"name": "Example Painter", "version": "3.1"}],
        "format": "image/jpeg",
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}],
    }
    plain, out = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(plain, "JPEG")
    plain.seek(0)
    info = c2pa.C2paSignerInfo(alg=b"es256", sign_cert=chain, private_key=private, ta_url=None)
    context = c2pa.Context.from_dict(credentials._OFFLINE)
    with c2pa.Signer.from_info(info) as signer, c2pa.Builder(manifest, context) as builder:
        builder.sign(signer, "image/jpeg", plain, out)
    path = tmp_path_factory.mktemp("trust") / "root.pem"
    path.write_bytes(root.public_bytes(pem))
    return out.getvalue(), str(path)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.delenv(credentials.TRUST, raising=False)


def changed(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def said(data):
    return {f.name: f.text for f in metadata.read(data)}


def test_a_signature_is_valid_and_its_signer_trusted_or_not(signed, monkeypatch):
    data, root = signed
    assert credentials.verify(data) == credentials.Signature("valid", "", "Test Pictures Ltd")
    assert credentials.verify(data, root) == credentials.Signature("trusted", "", "Test Pictures Ltd")
    text = "manifest present, made with Example Painter 3.1, signed by Test Pictures Ltd; its signature is valid"
    found = said(data)
    assert found["C2PA"] == f"{text}, the signer is in no list of trusted ones"
    assert found["C2PA c2pa.created"] == "trainedAlgorithmicMedia by Example Diffusion"
    monkeypatch.setenv(credentials.TRUST, root)
    assert said(data)["C2PA"] == f"{text} and the signer trusted"


def test_a_changed_image_or_manifest_is_not_valid(signed):
    data, root = signed
    pixels, claim = changed(data, data.rfind(b"\xff\xda") + 40), changed(data, data.find(b"Example Painter") + 14)
    for broken, what in ((pixels, "image"), (claim, "manifest")):
        signature = credentials.verify(broken, root)
        assert (signature.state, signature.signer) == ("invalid", "")
        assert signature.reason == f"the {what} was changed after it was signed"
        assert f"its signature is NOT VALID: the {what} was changed" in said(broken)["C2PA"]
        assert said(broken)["C2PA c2pa.created"].endswith("(in a manifest that is not valid)")


def test_what_cannot_be_verified_says_why(signed, tmp_path, monkeypatch):
    data, _ = signed
    assert "cannot be read" in credentials.verify(data, str(tmp_path / "none.pem")).reason
    assert credentials.verify(data[:700]).state == "" and credentials.verify(data[:700]).reason
    assert credentials.verify(b"text").state == ""
    (tmp_path / "a.jpg").write_bytes(data)
    large = {f.name: f.text for f in metadata.read(tmp_path / "a.jpg", limit=len(data) - 1)}
    assert large["C2PA"].endswith("its signature was not verified: the file is too large")
    monkeypatch.setattr(credentials, "_installed", lambda: False)
    assert said(data)["C2PA"].endswith("its signature was not verified: pip install 'aidet[c2pa]' verifies it")


def test_damaged_files_are_never_valid(signed):
    import numpy as np

    data, root = signed
    rng = np.random.default_rng(0)
    for _ in range(150):
        broken = bytearray(data[: int(rng.integers(300, len(data) + 1))])
        for place in rng.integers(0, len(broken), 4):
            broken[place] ^= int(rng.integers(1, 256))
        assert credentials.verify(bytes(broken), root).state in ("", "invalid")

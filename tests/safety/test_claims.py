"""Claims of origin: what a signed file says is read, what cannot be read is not taken for nothing, and nothing is fetched."""

import builtins
import subprocess

import numpy as np
import pytest

from sora.safety.claims import NO_CLAIMS, claims_of, read_manifests
from sora.video.files import write

c2pa = pytest.importorskip("c2pa")
MADE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
SHOT = "http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture"
KEYS = """
openssl ecparam -name prime256v1 -genkey -noout -out ca.key
openssl req -x509 -new -key ca.key -sha256 -days 3650 -subj "/C=XX/O=Lab/CN=CA" -addext basicConstraints=critical,CA:TRUE -out ca.pem \
  -addext keyUsage=critical,keyCertSign,cRLSign
openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out leaf.key
openssl req -new -key leaf.key -subj "/C=XX/O=Lab/CN=signer" -out leaf.csr
printf 'basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=critical,emailProtection\n' > ext.cnf
printf 'subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n' >> ext.cnf
openssl x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 3650 -sha256 -extfile ext.cnf -out leaf.pem
cat leaf.pem ca.pem > chain.pem
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    subprocess.run(["bash", "-e", "-c", KEYS], cwd=folder, check=True, capture_output=True)
    write(folder / "plain.mp4", np.random.default_rng(0).integers(0, 255, (6, 32, 48, 3), dtype=np.uint8), 8, lossless=False)
    return folder


def signed(lab, name, *, source=SHOT, **uses):
    info = c2pa.C2paSignerInfo(
        alg=b"es256", sign_cert=(lab / "chain.pem").read_bytes(), private_key=(lab / "leaf.key").read_bytes(), ta_url=None
    )
    entries = {f"cawg.{name}": {"use": use} for name, use in uses.items()}
    assertions = [{"label": "c2pa.actions.v2", "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": source}]}}]
    assertions += [{"label": "cawg.training-mining", "data": {"entries": entries}}] if entries else []
    manifest = {"claim_generator_info": [{"name": "lab", "version": "1"}], "title": "x", "assertions": assertions}
    path = lab / f"{name}.mp4"
    path.unlink(missing_ok=True)
    c2pa.Builder(manifest).sign_file(str(lab / "plain.mp4"), str(path), c2pa.Signer.from_info(info))
    return path


def test_a_file_without_a_manifest_claims_nothing(lab):
    assert claims_of(lab / "plain.mp4") == NO_CLAIMS


@pytest.mark.parametrize(
    ("uses", "said"),
    [
        ({"ai_training": "allowed"}, "allowed"),
        ({"ai_training": "allowed", "ai_generative_training": "constrained"}, "constrained"),
        ({"ai_training": "constrained", "ai_generative_training": "notAllowed"}, "notAllowed"),
        ({"data_mining": "notAllowed"}, ""),  # reading is not training
        ({}, ""),
    ],
)
def test_the_strictest_entry_for_training_counts(lab, uses, said):
    claims = claims_of(signed(lab, "signed", **uses))
    assert (claims.state, claims.training, claims.synthetic) == ("valid", said, False)


def test_what_a_model_made_is_known(lab):
    assert claims_of(signed(lab, "made", source=MADE)).synthetic


def test_a_byte_that_changed_makes_the_manifest_invalid_but_its_claims_hold(lab):
    path = signed(lab, "flipped", ai_training="notAllowed")
    content = bytearray(path.read_bytes())
    content[content.index(b"mdat") + 60] ^= 1
    path.write_bytes(content)
    claims = claims_of(path)
    assert (claims.state, claims.training) == ("invalid", "notAllowed")


def test_a_damaged_manifest_and_a_missing_reader_are_unread_and_not_none(lab, monkeypatch):
    path = signed(lab, "cut", ai_training="notAllowed")
    (lab / "half.mp4").write_bytes(path.read_bytes()[:2500])
    assert claims_of(lab / "half.mp4").state == "unread"
    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "c2pa":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    claims = claims_of(path)
    assert claims.state == "unread" and "pip install" in claims.why
    assert claims_of(lab / "plain.mp4") == NO_CLAIMS  # which needs no reader


def test_words_of_a_later_standard_are_taken_for_the_strictest():
    data = {"entries": {"cawg.ai_training": {"use": "perhaps"}}}
    assert read_manifests({"manifests": {"a": {"assertions": [{"label": "cawg.training-mining", "data": data}]}}}).training == "notAllowed"


def test_ingredients_count_with_the_whole():
    part = {"assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [{"digitalSourceType": MADE}]}}]}
    assert read_manifests({"manifests": {"whole": {"assertions": []}, "part": part}, "validation_state": "Valid"}).synthetic


@pytest.mark.parametrize("manifest", [{"assertions": None}, {"assertions": [{"label": 3, "data": "x"}]}, {}, {"assertions": [{}]}])
def test_odd_manifests_claim_nothing(manifest):
    assert not read_manifests({"manifests": {"a": manifest}}).training

"""Many small objects of S3 at the same time: the same bytes as one by one, or nothing."""

import datetime
import ipaddress
import ssl
import time

import pytest
import s3_servers

import torchslip as ts
from torchslip.storage import open_folder
from torchslip.storage._s3_sign import Signer

NAMES = [f"{number:03}.bin" for number in range(100)]
CONTENT = {name: name.encode() * (1 + 97 * number) for number, name in enumerate(NAMES)}
SIZES = [len(CONTENT[name]) for name in NAMES]


@pytest.fixture
def objects(bucket):
    """The URL of a folder with objects."""
    folder = open_folder(f"{bucket}/objects")
    for name, data in CONTENT.items():
        folder.write(name, data)
    return str(folder)


def read(url, **retry):
    return open_folder(url, retry={"first_pause_seconds": 0.01, **retry}).read_many(NAMES, SIZES)


def test_they_are_what_they_are_one_by_one(objects):
    folder = open_folder(objects)
    found = folder.read_many(NAMES, SIZES)
    assert [data for data, _ in found] == list(CONTENT.values())
    for name, (data, stat) in zip(NAMES[::30], found[::30], strict=True):
        whole, of_whole = folder.read_whole(name)
        assert (data, stat.bytes, stat.etag) == (whole, of_whole.bytes, of_whole.etag)


@pytest.mark.parametrize(
    "faults",
    [{"status_every": 3}, {"reset_every": 3}, {"short_every": 3}, {"lie_every": 3}, {"status_every": 1}],
    ids=lambda faults: "-".join(faults),
)
def test_an_answer_that_is_not_whole_is_none(proxy, objects, faults):
    proxy.set(**faults)
    found = read(objects)
    assert all(each is None or each[0] == CONTENT[name] for name, each in zip(NAMES, found, strict=True))
    assert (None in found) and (any(found) == (3 in faults.values()))


def test_all_of_them_arrive_in_batches_from_a_server_that_fails_now_and_then(proxy, objects, tmp_path):
    dataset = ts.BytesDataset(objects, batch_size=10, store=tmp_path)
    proxy.set(status_every=7, reset_every=5, short_every=6, lie_every=11)
    samples = {i: bytes(batch.sample(row)) for batch in dataset for row, i in enumerate(batch.sample_ids)}
    assert [samples[i] for i in range(100)] == list(CONTENT.values())


def test_an_object_of_another_size_is_none(objects):
    sizes = [size + (number == 7) - (number == 8) for number, size in enumerate(SIZES)]
    found = open_folder(objects).read_many(NAMES, sizes)
    assert [number for number, each in enumerate(found) if each is None] == [7, 8]


def test_a_large_object_and_a_strange_name_are_left_to_be_read_one_by_one(objects):
    folder = open_folder(objects)
    folder.write("large.bin", bytes((1 << 20) + 1))
    assert folder.read_many(["large.bin", "000.bin"], [(1 << 20) + 1, SIZES[0]])[0] is None
    assert folder.read_many(["../objects/000.bin", "000.bin"], [SIZES[0]] * 2) == [None, None]


def test_a_connection_that_the_server_has_closed_meanwhile_is_no_failure(proxy, objects, monkeypatch):
    monkeypatch.setattr(proxy._server.RequestHandlerClass, "timeout", 0.3)
    folder = open_folder(objects)
    for _ in range(3):
        assert None not in folder.read_many(NAMES, SIZES)
        time.sleep(0.5)


def test_connections_are_kept(proxy, objects):
    folder = open_folder(objects)
    folder.read_many(NAMES, SIZES)
    made = []
    inner = proxy._server.process_request
    proxy._server.process_request = lambda *arguments: (made.append(1), inner(*arguments))
    try:
        assert None not in folder.read_many(NAMES, SIZES)
    finally:
        proxy._server.process_request = inner
    assert made == []


def test_a_server_that_says_nothing_is_not_waited_for_longer_than_a_quarter_of_the_deadline(proxy, objects):
    proxy.set(slow_every=1, slow_seconds=8)
    began = time.monotonic()
    assert read(objects, deadline_seconds=4) == [None] * 100
    assert time.monotonic() - began < 6


def test_a_server_that_is_not_there_is_none_at_once(s3_keys, monkeypatch):
    monkeypatch.setenv("S3_ENDPOINT_URL", "http://127.0.0.1:9")
    began = time.monotonic()
    assert read("s3://bucket/prefix") == [None] * 100
    assert time.monotonic() - began < 10


@pytest.fixture
def secure_proxy(bucket, moto_url, tmp_path, monkeypatch):
    """A server that is reached by https, with a certificate of its own, which AWS_CA_BUNDLE names."""
    proxy = s3_servers.FaultyProxy(moto_url)
    key, certificate = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    proxy._server.socket = context.wrap_socket(proxy._server.socket, server_side=True, do_handshake_on_connect=False)
    monkeypatch.setenv("S3_ENDPOINT_URL", proxy.url.replace("http:", "https:"))
    yield proxy, certificate
    proxy.close()


def make_certificate(folder):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - datetime.timedelta(1))
    builder = builder.not_valid_after(now + datetime.timedelta(1)).add_extension(names, critical=False)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(private)
    certificate = builder.sign(key, hashes.SHA256())
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return folder / "key.pem", folder / "certificate.pem"


def test_they_come_over_tls_from_a_server_that_is_trusted_and_from_no_other(objects, secure_proxy, monkeypatch):
    proxy, certificate = secure_proxy
    assert read(objects) == [None] * 100
    assert proxy.faults.seen == []
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    for _ in range(2):
        assert [each and each[0] for each in read(objects)] == list(CONTENT.values())


@pytest.mark.parametrize("token", [None, "token/of+the=session"])
@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("path", ["/b/a.bin", "/a%20b/%C3%A9+(1)~_-%25.jpg", "/b//x/%3D%26%3F"])
def test_the_signature_is_that_of_botocore(token, checksum, path, monkeypatch):
    import botocore.auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    now = datetime.datetime(2026, 11, 21, 13, 45, 7, tzinfo=datetime.timezone.utc)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *_, **__: now.replace(tzinfo=None), raising=False)
    credentials = Credentials("AKID", "secret/key+", token)
    headers = {"x-amz-checksum-mode": "ENABLED"} if checksum else {}
    request = AWSRequest("GET", f"http://localhost:9000{path}", headers=headers)
    botocore.auth.S3SigV4Auth(credentials, "s3", "eu-north-1").add_auth(request)
    signer = Signer(credentials, "eu-north-1", "localhost:9000")
    assert signer.headers(path, checksum=checksum, now=now)["Authorization"] == request.headers["Authorization"]

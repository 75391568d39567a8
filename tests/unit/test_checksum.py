"""Checksums against values from elsewhere, and what counts as proof."""

from __future__ import annotations

import base64
import hashlib
import zlib
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_dashd.core.checksum import (
    Digest,
    Digester,
    combine,
    composite_etag,
    digest,
    encode_crc,
    has_part,
    part_etag,
    proves,
)
from ml_dashd.core.model import Algorithm, Evidence, SentPart

CHECK = b"123456789"
"""The input for which CRC catalogues state their check values."""
CRC64NVME = 0xAE8B14860A799888
CRC32C = 0xE3069283
MD5 = "25f9e794323b453885f5181f1b624d0b"

every_algorithm = pytest.mark.parametrize("algorithm", Algorithm)


def of(data: bytes, algorithm: Algorithm) -> Digest:
    return digest(memoryview(data), algorithm)


def md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def base64_of(digits: str) -> str:
    return base64.b64encode(bytes.fromhex(digits)).decode()


# ---- values


@pytest.mark.parametrize(
    ("algorithm", "proof"),
    [
        (Algorithm.CRC64NVME, "rosUhgp5mIg="),
        (Algorithm.CRC32C, "4waSgw=="),
        (Algorithm.MD5, base64_of(MD5)),
        (Algorithm.NONE, None),
    ],
)
def test_known_values(algorithm: Algorithm, proof: str | None):
    assert of(CHECK, algorithm) == Digest(9, CRC64NVME, algorithm, proof)


@pytest.mark.parametrize(
    ("algorithm", "proof"),
    [
        (Algorithm.CRC64NVME, "AAAAAAAAAAA="),
        (Algorithm.CRC32C, "AAAAAA=="),
        (Algorithm.MD5, "1B2M2Y8AsgTpgAmY7PhCfg=="),
        (Algorithm.NONE, None),
    ],
)
def test_no_bytes(algorithm: Algorithm, proof: str | None):
    assert of(b"", algorithm) == Digest(0, 0, algorithm, proof)
    assert Digester(algorithm).digest() == of(b"", algorithm)


def test_crc32c_of_thirty_two_zeros():
    assert of(bytes(32), Algorithm.CRC32C).proof == encode_crc(0x8A9136AA, 4)  # RFC 3720, B.4


def test_a_crc_is_written_big_endian_with_its_leading_zeros():
    assert encode_crc(1, 4) == base64.b64encode(b"\0\0\0\1").decode()
    assert encode_crc(1, 8) == base64.b64encode(b"\0\0\0\0\0\0\0\1").decode()
    assert encode_crc(zlib.crc32(CHECK), 4) == "y/Q5Jg=="


@every_algorithm
def test_the_digest_so_far(algorithm: Algorithm):
    digester = Digester(algorithm)
    digester.update(memoryview(b"1234"))
    assert digester.digest() == of(b"1234", algorithm)
    digester.update(memoryview(b"56789"))
    assert digester.digest() == of(CHECK, algorithm)


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(Algorithm), st.lists(st.binary(max_size=200), max_size=8))
def test_bytes_in_pieces_have_the_digest_of_the_whole(algorithm: Algorithm, pieces: list[bytes]):
    digester = Digester(algorithm)
    for piece in pieces:
        digester.update(memoryview(piece))
    assert digester.digest() == of(b"".join(pieces), algorithm)


# ---- combining


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from([Algorithm.CRC64NVME, Algorithm.CRC32C, Algorithm.NONE]),
    st.binary(max_size=300),
    st.lists(st.integers(0, 300), max_size=8),
)
def test_parts_combine_into_the_digest_of_the_whole(algorithm: Algorithm, data: bytes, cuts: list[int]):
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    digests = [of(data[start:end], algorithm) for start, end in pairwise(places)]
    assert combine(digests, algorithm) == of(data, algorithm)


def test_large_parts_combine():
    data = bytes(range(256)) * 40_960
    for algorithm in (Algorithm.CRC64NVME, Algorithm.CRC32C):
        assert combine([of(data, algorithm)] * 3, algorithm) == of(data * 3, algorithm)


def test_the_order_of_parts_matters():
    one, two = of(b"one", Algorithm.CRC64NVME), of(b"two", Algorithm.CRC64NVME)
    assert combine([one, two], Algorithm.CRC64NVME) != combine([two, one], Algorithm.CRC64NVME)


def test_md5s_combine_into_the_composite_etag():
    digests = [of(b"hello ", Algorithm.MD5), of(b"world", Algorithm.MD5)]
    joined = md5(b"hello ") + md5(b"world")
    etag = md5(joined).hex() + "-2"
    assert composite_etag(digests) == etag == "e09e4fd6265b36115fe3db32df945d84-2"
    combined = combine(digests, Algorithm.MD5)
    assert combined == Digest(11, of(b"hello world", Algorithm.NONE).crc64nvme, Algorithm.MD5, etag)


def test_the_etag_of_one_part():
    assert part_etag(base64_of(MD5)) == MD5


# ---- proof

SENT = {algorithm: of(CHECK, algorithm) for algorithm in Algorithm}
COMPOSITE = combine([of(b"1234", Algorithm.MD5), of(b"56789", Algorithm.MD5)], Algorithm.MD5)
NO_MD5 = Digest(9, CRC64NVME, Algorithm.MD5, None)


@pytest.mark.parametrize(
    ("sent", "evidence", "proven"),
    [
        (SENT[Algorithm.CRC64NVME], Evidence(9, "any", "rosUhgp5mIg="), True),
        (SENT[Algorithm.CRC64NVME], Evidence(9, "any", "AAAAAAAAAAA="), False),
        (SENT[Algorithm.CRC64NVME], Evidence(9, MD5), None),
        (SENT[Algorithm.CRC64NVME], Evidence(8, "any", "rosUhgp5mIg="), False),
        (SENT[Algorithm.CRC32C], Evidence(9, "any", "4waSgw=="), True),
        (SENT[Algorithm.CRC32C], Evidence(9, "any", "AAAAAA=="), False),
        (SENT[Algorithm.CRC32C], Evidence(9, "any"), None),
        (SENT[Algorithm.CRC32C], Evidence(10, "any", "4waSgw=="), False),
        (SENT[Algorithm.MD5], Evidence(9, MD5), True),
        (SENT[Algorithm.MD5], Evidence(9, "0" * 32), None),
        (SENT[Algorithm.MD5], Evidence(9, base64_of(MD5)), None),
        (SENT[Algorithm.MD5], Evidence(8, MD5), False),
        (COMPOSITE, Evidence(9, COMPOSITE.proof), True),
        (COMPOSITE, Evidence(9, MD5), None),
        (COMPOSITE, Evidence(9, COMPOSITE.proof[:-1] + "3"), None),
        (NO_MD5, Evidence(9, MD5), None),
        (SENT[Algorithm.NONE], Evidence(9, MD5, "rosUhgp5mIg="), None),
        (SENT[Algorithm.NONE], Evidence(8, MD5), False),
    ],
)
def test_what_proves_an_object(sent: Digest, evidence: Evidence, proven: bool | None):
    assert proves(evidence, sent) is proven


def listed(size: int = 9, etag: str = "kms", checksum: str | None = None) -> SentPart:
    return SentPart(1, size, etag, checksum)


def journaled(etag: str = "kms", crc64nvme: int | None = CRC64NVME) -> SentPart:
    return SentPart(1, 9, etag, None, crc64nvme)


@pytest.mark.parametrize(
    ("remote", "ours", "local", "there"),
    [
        # Nothing there, or of another size
        (None, SENT[Algorithm.CRC64NVME], journaled(), False),
        (listed(8, checksum="rosUhgp5mIg="), SENT[Algorithm.CRC64NVME], journaled(), False),
        (listed(8, MD5), SENT[Algorithm.MD5], journaled(MD5), False),
        # The store states a checksum: it decides
        (listed(checksum="rosUhgp5mIg="), SENT[Algorithm.CRC64NVME], None, True),
        (listed(checksum="AAAAAAAAAAA="), SENT[Algorithm.CRC64NVME], journaled(), False),
        (listed(checksum="4waSgw=="), SENT[Algorithm.CRC32C], None, True),
        (listed(checksum="4waSgw=="), SENT[Algorithm.NONE], journaled(), False),
        # It states an ETag that is the MD5
        (listed(etag=MD5), SENT[Algorithm.MD5], None, True),
        (listed(etag=MD5), SENT[Algorithm.CRC32C], None, False),
        (listed(etag=MD5), NO_MD5, None, False),
        # It states the ETag with which it answered us
        (listed(), SENT[Algorithm.MD5], journaled(), True),
        (listed(), SENT[Algorithm.NONE], journaled(), True),
        (listed(), SENT[Algorithm.CRC64NVME], journaled(), True),
        (listed(), SENT[Algorithm.NONE], None, False),
        (listed(), SENT[Algorithm.NONE], journaled("another"), False),
        (listed(), SENT[Algorithm.NONE], journaled(crc64nvme=1), False),
        (listed(), SENT[Algorithm.NONE], journaled(crc64nvme=None), False),
    ],
)
def test_what_evidences_a_part(remote: SentPart | None, ours: Digest, local: SentPart | None, there: bool):
    assert has_part(remote, ours, local) is there

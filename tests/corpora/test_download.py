import hashlib
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from zqlib.corpora.download import download
from zqlib.errors import InputError

CONTENT = np.random.default_rng(0).bytes(600_000)
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
CUT = 250_000


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "new" / "corpus.tar.gz"


def part_of(target: Path) -> Path:
    return target.with_name("corpus.tar.gz.part")


def test_fetches_and_leaves_only_the_file(server, target):
    server.files["f"] = CONTENT
    assert download(f"{server.url}/f", target, SHA256) == target
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_checksum_algorithms(server, target, algorithm):
    server.files["f"] = CONTENT
    digest = hashlib.new(algorithm, CONTENT).hexdigest()
    download(f"{server.url}/f", target, f"{algorithm}:{digest}")
    assert target.read_bytes() == CONTENT


def test_a_verified_file_is_not_fetched_again(server, target):
    server.files["f"] = CONTENT
    download(f"{server.url}/f", target, SHA256)
    download(f"{server.url}/f", target, SHA256)
    assert len(server.ranges) == 1


def test_a_damaged_file_is_fetched_again(server, target):
    server.files["f"] = CONTENT
    target.parent.mkdir()
    target.write_bytes(CONTENT[:-1])
    download(f"{server.url}/f", target, SHA256)
    assert target.read_bytes() == CONTENT


def test_a_broken_transfer_keeps_its_part_and_continues(server, target):
    server.files["f"] = CONTENT
    server.cut_after = CUT
    with pytest.raises(InputError, match="broke off after .* run the same command again"):
        download(f"{server.url}/f", target, SHA256)
    assert not target.exists()
    received = part_of(target).read_bytes()
    assert 0 < len(received) <= CUT
    assert CONTENT.startswith(received)

    server.cut_after = None
    download(f"{server.url}/f", target, SHA256)
    assert server.ranges == [None, f"bytes={len(received)}-"]
    assert target.read_bytes() == CONTENT
    assert not part_of(target).exists()


def test_a_killed_process_continues(server, target):
    server.files["f"] = CONTENT
    server.stall_after = CUT
    program = (
        "import sys; from pathlib import Path; from zqlib.corpora.download import download;"
        "download(sys.argv[1], Path(sys.argv[2]), sys.argv[3])"
    )
    arguments = [f"{server.url}/f", str(target), SHA256]
    with subprocess.Popen([sys.executable, "-c", program, *arguments]) as process:
        while process.poll() is None and not (
            part_of(target).exists() and part_of(target).stat().st_size
        ):
            time.sleep(0.01)
        process.kill()
    assert not target.exists()
    received = part_of(target).stat().st_size
    server.stall_after = None
    server.released.set()
    download(f"{server.url}/f", target, SHA256)
    assert server.ranges == [None, f"bytes={received}-"]
    assert target.read_bytes() == CONTENT


def test_a_server_that_ignores_range_sends_everything(server, target):
    server.files["f"] = CONTENT
    server.honours_range = False
    target.parent.mkdir()
    part_of(target).write_bytes(CONTENT[:1000])
    download(f"{server.url}/f", target, SHA256)
    assert server.ranges == ["bytes=1000-"]
    assert target.read_bytes() == CONTENT


def test_another_range_than_the_one_asked_for_is_refused(server, target):
    server.files["f"] = CONTENT
    server.content_range = f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}"
    target.parent.mkdir()
    part_of(target).write_bytes(CONTENT[:1000])
    with pytest.raises(InputError, match="another range"):
        download(f"{server.url}/f", target, SHA256)
    assert part_of(target).read_bytes() == CONTENT[:1000]


def test_a_whole_part_needs_only_its_checksum(server, target):
    server.files["f"] = CONTENT
    target.parent.mkdir()
    part_of(target).write_bytes(CONTENT)  # killed between the last byte and the rename
    download(f"{server.url}/f", target, SHA256)
    assert target.read_bytes() == CONTENT
    assert len(server.ranges) == 1  # the server answered 416


@pytest.mark.parametrize("stale", [b"x" * 1000, b"x" * 700_000])
def test_a_part_of_another_version_is_given_up(server, target, stale):
    server.files["f"] = CONTENT
    target.parent.mkdir()
    part_of(target).write_bytes(stale)
    download(f"{server.url}/f", target, SHA256)
    assert target.read_bytes() == CONTENT
    assert server.ranges == [f"bytes={len(stale)}-", None]


def test_a_wrong_checksum_leaves_nothing(server, target):
    server.files["f"] = CONTENT[:-1] + b"?"
    with pytest.raises(InputError, match=f"instead of {SHA256}"):
        download(f"{server.url}/f", target, SHA256)
    assert list(target.parent.iterdir()) == []


def test_not_found(server, target):
    with pytest.raises(InputError, match=r"answers 404 \(Not Found\)"):
        download(f"{server.url}/nothing", target, SHA256)
    assert list(target.parent.iterdir()) == []


def test_unreachable_host(target):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: refuses
        with pytest.raises(InputError, match="did not begin"):
            download(f"http://127.0.0.1:{unused.getsockname()[1]}/f", target, SHA256)


def test_only_http(tmp_path, target):
    (tmp_path / "f").write_bytes(CONTENT)
    with pytest.raises(InputError, match="InvalidSchema"):
        download((tmp_path / "f").as_uri(), target, SHA256)

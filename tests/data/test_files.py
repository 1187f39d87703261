"""Hashes are remembered, and never out of date; errors name files that their readers know."""

import hashlib
import os
import time
from pathlib import Path

import pytest
from erckit.data import files
from erckit.data.files import hash_file, replace_atomically


def write(path, content: bytes, age: float) -> None:
    path.write_bytes(content)
    then = time.time() - age
    os.utime(path, (then, then))


def test_a_file_that_stays_is_read_once(tmp_path, monkeypatch):
    path = tmp_path / "index.faiss"
    write(path, b"one", age=60)
    digest = hash_file(path)
    monkeypatch.setattr(hashlib, "file_digest", None)

    assert hash_file(path) == digest == hashlib.sha256(b"one").hexdigest()


def test_a_change_of_time_or_size_is_seen(tmp_path):
    path = tmp_path / "index.faiss"
    for content, age in ((b"one", 60), (b"two", 50), (b"three", 50)):
        write(path, content, age)
        assert hash_file(path) == hashlib.sha256(content).hexdigest()


def test_a_file_just_written_is_not_remembered(tmp_path):
    """Two changes within a tick of the file system's clock look alike."""
    path = tmp_path / "index.faiss"
    path.write_bytes(b"one")
    hash_file(path)
    before = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert hash_file(path) == hashlib.sha256(b"two").hexdigest()
    assert files.SETTLED >= 2 * 10**9  # FAT keeps time to two seconds


@pytest.mark.parametrize("is_relative", [False, True])
def test_an_error_names_the_file_and_not_the_temporary_one(tmp_path, monkeypatch, is_relative):
    monkeypatch.chdir(tmp_path)
    path = Path("labels.json") if is_relative else tmp_path / "labels.json"
    path.mkdir()  # which no file replaces
    with pytest.raises(OSError) as raised, replace_atomically(path):
        pass
    assert (raised.value.filename, raised.value.filename2) == (str(path), None)
    assert [one.name for one in tmp_path.iterdir()] == ["labels.json"]

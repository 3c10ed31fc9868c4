"""Arrays in ``.npz`` files: as NumPy wrote them, or refused."""

import os
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lowland.errors import InputError
from lowland.runs import read_arrays


def test_arrays_come_back_as_they_were_compressed_or_not(tmp_path: Path) -> None:
    arrays = {"x": np.arange(12.0).reshape(3, 4), "y": np.array([True, False])}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", **arrays)
        found = read_arrays(tmp_path / "x.npz")
        assert found.keys() == arrays.keys()
        assert all(np.array_equal(found[k], a) and found[k].dtype == a.dtype for k, a in arrays.items())


def test_numbers_of_the_other_order_of_bytes_are_the_same_numbers(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", big=np.arange(3, dtype=">i4"), little=np.arange(3, dtype="<i4"))
    found = read_arrays(tmp_path / "x.npz")
    assert all(array.dtype == np.int32 and array.tolist() == [0, 1, 2] for array in found.values())


def test_a_file_that_declares_more_than_there_is_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros(1_000_000))
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}.__getitem__)
    with pytest.raises(InputError, match=r"must fit into .* 4096000 bytes, it declares 80\d{5}\.$"):
        read_arrays(tmp_path / "x.npz")


def test_what_is_no_such_file_or_would_run_something_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    for content in (b"", b"PK", b"text", b"PK\x05\x06" + bytes(18)):
        path.write_bytes(content)
        if content[:4] == b"PK\x05\x06":  # an archive of nothing
            assert read_arrays(path) == {}
            continue
        with pytest.raises(InputError, match=rf"^{path} must be an \.npz file of arrays"):
            read_arrays(path)
    for array in (np.array(["1"]), np.array([b""]), np.array([1j]), np.zeros(2, "M8[s]")):
        np.savez(path, x=array)
        with pytest.raises(InputError, match="must hold numbers only, x is of type"):
            read_arrays(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"no array")
    with pytest.raises(InputError, match=r"must be an \.npz file of arrays, x is none\.$"):
        read_arrays(path)
    np.savez(path, x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match=r"must be an \.npz file of arrays: Object arrays cannot be loaded"):
        read_arrays(path)


def test_damage_anywhere_is_refused_or_changes_nothing_but_names(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x=np.arange(30))
    whole = path.read_bytes()
    generator = random.Random(0)
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            found = read_arrays(path)
        except InputError:
            continue
        assert all(np.array_equal(a, np.arange(30)) for a in found.values())

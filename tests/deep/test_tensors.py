"""Files of tensors: what a checksum over every byte notices, and what it leaves alone."""

import random
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lowland.deep.tensors import read_metadata, read_tensors, write_tensors
from lowland.errors import InputError

TENSORS = {"weight": torch.arange(300.0).view(30, 10), "bias": torch.arange(7)}


@pytest.mark.parametrize("metadata", [None, {"state": '{"lowland":"blake2b:' + 64 * "0" + '"}'}])
def test_what_was_written_is_read_by_us_and_by_every_reader(
    tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    path = tmp_path / "x"
    write_tensors(path, TENSORS, metadata)
    tensors, found = read_tensors(path)
    others = load_file(path)
    assert all(torch.equal(tensors[name], t) and torch.equal(others[name], t) for name, t in TENSORS.items())
    assert read_metadata(path) == found
    assert (metadata or {}).items() <= found.items()


def test_the_same_tensors_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("x", "y"):
        write_tensors(tmp_path / name, TENSORS)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_every_single_bit_of_the_header_and_many_of_the_data_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_tensors(path, TENSORS)
    whole = path.read_bytes()
    header = 8 * (8 + int.from_bytes(whole[:8], "little"))
    data = random.Random(0).sample(range(header, 8 * len(whole)), 200)
    for bit in (*range(header), *data):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=f"^{path} must be a whole safetensors file: "):
            read_tensors(path)


def test_bytes_that_are_exchanged_or_appended_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_tensors(path, TENSORS)
    whole = path.read_bytes()
    swapped = whole[:-8] + whole[-4:] + whole[-8:-4]
    for damaged in (swapped, whole + b"\0", whole[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=f"^{path} must be a whole safetensors file: "):
            read_tensors(path)


def test_a_file_of_another_program_has_no_checksum_and_is_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x", {"format": "pt"})
    tensors, metadata = read_tensors(tmp_path / "x")
    assert torch.equal(tensors["weight"], TENSORS["weight"])
    assert metadata == {"format": "pt"}


def test_a_checksum_by_another_rule_is_not_taken_for_none(tmp_path: Path) -> None:
    for metadata in ({"lowland": "sha3:12"}, {"lowlana": "blake2b:" + 64 * "0"}):
        save_file(TENSORS, tmp_path / "x", metadata)
        with pytest.raises(InputError, match="its checksum is damaged"):
            read_tensors(tmp_path / "x")


def test_the_checksum_is_that_of_the_file_with_zeros_in_its_place(tmp_path: Path) -> None:
    import hashlib

    write_tensors(tmp_path / "x", TENSORS)
    with safe_open(tmp_path / "x", framework="pt") as file:
        kind, _, digest = file.metadata()["lowland"].partition(":")
    zeroed = re.sub(digest.encode(), 64 * b"0", (tmp_path / "x").read_bytes())
    assert kind == "blake2b"
    assert hashlib.blake2b(zeroed, digest_size=32).hexdigest() == digest

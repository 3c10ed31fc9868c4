"""What a JSON file must hold: read whole, or refused in one sentence that says where and why."""

from pathlib import Path
from typing import Any, Literal, TypedDict

import pytest

from lowland.errors import InputError
from lowland.runs import conform, read_json
from lowland.runs.lines import read_lines
from lowland.runs.records import EnvironmentRecord
from lowland.runs.schema import parse_json
from lowland.runs.threads import require_threads


class _Needed(TypedDict):
    name: str
    size: int


class Thing(_Needed, total=False):
    parts: "list[Thing]"
    mark: float | None


@pytest.mark.parametrize(
    ("kind", "fitting", "others"),
    [
        (bool, [True, False], [0, "true", None]),
        (int, [0, -3, 2**62], [True, 1.0, "1", 2**63, None]),
        (float, [0, 1.5, -1e300], [True, "1", float("nan"), float("inf"), 10**400]),
        (str, ["", "é"], [1, None, ["a"]]),
        (int | None, [1, None], ["1", 1.5]),
        (Literal["a", "b"], ["a"], ["c", 1, ["a"]]),
        (list[int], [[], [1, 2]], [1, [1, "2"], {"a": 1}]),
        (tuple[str, ...], [(), ("a",), ["a"]], ["a", (1,)]),
        (dict[str, float], [{}, {"a": 1}], [[], {"a": None}]),
        (Any, [1, None, [{}]], []),
        (list[int] | None, [None, [1]], [[None], 3]),
    ],
)
def test_a_value_is_taken_as_it_is_or_refused(kind: Any, fitting: list[Any], others: list[Any]) -> None:
    for value in fitting:
        assert conform(value, kind, "it") is value
    for value in others:
        with pytest.raises(InputError, match=r"^it\S* must be .*, got .*\.$"):
            conform(value, kind, "it")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"size": 1}, "it.name of f must be text, got nothing."),
        ({"name": "a", "size": "b"}, "it.size of f must be a whole number, got 'b'."),
        (
            {"name": "a", "size": 1, "parts": [{"name": "b", "size": 2}, {"name": 3, "size": 2}]},
            "it.parts[1].name of f must be text, got 3.",
        ),
        ({"name": "a", "size": 1, "mark": "x"}, "it.mark of f must be a finite number or null, got 'x'."),
        (7, "it of f must be an object, got 7."),
        (
            {"name": "a", "size": [9] * 99},
            f"it.size of f must be a whole number, got {str([9] * 99)[:57]}....",
        ),
    ],
)
def test_the_sentence_says_where_what_and_what_was_there(value: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        conform(value, Thing, "it", of=" of f")
    assert str(caught.value) == message


def test_keys_that_nobody_reads_may_be_there() -> None:
    value = {"name": "a", "size": 1, "later": {"x": []}}
    assert conform(value, Thing, "it") is value


@pytest.mark.parametrize(
    "text",
    ["NaN", '{"a": Infinity}', "1e999", '"\\ud800"', "[" * 100_000, "", b"\xff", "{'a': 1}", "1" * 5000],
)
def test_what_not_every_reader_would_read_alike_is_no_json(tmp_path: Path, text: str | bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(text)
    path = tmp_path / "x"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=f"^{path} must be a JSON file: "):
        read_json(path)
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(InputError, match=f"^{path} must hold one JSON object per line"):
        read_lines(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"place": 3}', "place of {path} must be an object, got 3."),
        (
            '{"place": {"threads": "many"}}',
            "place.threads of {path} must be a whole number or null, got 'many'.",
        ),
        ('{"place": {"data_dir": 5}}', "place.data_dir of {path} must be text or null, got 5."),
        ('{"versions": ["torch"]}', "versions of {path} must be an object, got ['torch']."),
    ],
)
def test_a_wrong_type_in_env_json_is_refused_by_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "env.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_json(path, EnvironmentRecord)
    assert str(caught.value) == message.format(path=path)


def test_a_row_of_the_wrong_type_is_refused_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"name": "a", "size": 1}\n{"name": "a"}\n')
    with pytest.raises(
        InputError, match=f"^size in line 2 of {path} must be a whole number, got nothing\\.$"
    ):
        read_lines(path, Thing)


@pytest.mark.parametrize("threads", [1025, 100_000, 10**30])
def test_more_threads_than_any_machine_has_are_refused(threads: int) -> None:
    require_threads(1024)
    with pytest.raises(InputError, match=f"^threads must be at most 1024, got {threads}\\.$"):
        require_threads(threads)

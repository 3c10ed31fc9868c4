"""Functions of the user's own are found by name, called with what they take, and their faults are told."""

import sys
from pathlib import Path

import pytest

import own_code
from lowland.deep.functions import arguments_of, called, function_named, is_function, sources_of
from lowland.errors import InputError


@pytest.mark.parametrize("name", ["a:b", "a.b.c:d", "_x:y_1", "pkg:Class.method"])
def test_names_of_functions(name: str) -> None:
    assert is_function(name)


@pytest.mark.parametrize(
    "name", ["", ":", "a:", ":b", "a.b", "C:\\x", "1a:b", "a:b:c", "hf://a/b", "a..b:c", "a b:c"]
)
def test_what_is_no_name_of_a_function(name: str) -> None:
    assert not is_function(name)


def test_what_it_takes_of_what_is_offered_is_given_and_the_users_word_counts_more() -> None:
    offered = {"num_classes": 3, "input_shape": (4,), "vocab_size": 9}
    assert called("own_code:net", "model", {}, offered)[-1].out_features == 3
    assert called("own_code:net", "model", {"num_classes": 5}, offered)[-1].out_features == 5
    assert called("own_code:net", "model", {"width": 7}, offered)[1].out_features == 7


def test_one_that_takes_any_name_is_given_the_number_of_classes_alone() -> None:
    made = called("own_code:any_name", "model", {"model_name": "r"}, {"num_classes": 3, "input_shape": (4,)})
    assert made.arguments == {"num_classes": 3, "model_name": "r"}


def test_a_function_inside_a_class_is_found() -> None:
    assert function_named("own_code:Reader.forward", "model") is own_code.Reader.forward


def test_the_working_directory_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "found_here.py").write_text("def f():\n    return 7\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert called("found_here:f", "data") == 7
    assert sources_of("found_here:f", "data") == {"found_here": (tmp_path / "found_here.py").read_text()}
    assert sys.path[-1] == str(tmp_path)
    sys.modules.pop("found_here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_of_that_name", r"importable, but it raised ModuleNotFoundError at broken\.py:1"),
        ("\n1 / 0", r"importable, but it raised ZeroDivisionError at broken\.py:2: division by zero\."),
        ("def f(:", r"importable, but it raised SyntaxError"),
        ("import sys\nsys.exit(3)", r"importable, but it raised SystemExit at broken\.py:2: 3\."),
        ("x = 1", r"model must name a function, but broken has no function 'f', got broken:f\."),
        ("f = 3", r"model must name a function, but broken has no function 'f'"),
        (
            "def f():\n    raise KeyError('k')",
            r"must return .* but it raised KeyError at broken\.py:2",
        ),
        ("def f(a):\n    pass", r"must take its arguments, none: missing a required argument: 'a'"),
    ],
)
def test_a_broken_module_or_function_is_one_sentence_with_the_place(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    with pytest.raises(InputError, match=message) as error:
        called("broken:f", "model")
    assert "\n" not in str(error.value)


def test_a_module_that_is_nowhere_is_named_with_the_folder_that_was_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(InputError, match=rf"model must name a module that can be imported from {tmp_path}"):
        called("nowhere.at_all:f", "model")


def test_arguments_are_literals_where_they_can_be() -> None:
    words = ["a=1", "b=[1, 2]", "c=None", "d=resnet18", "e=", "f='x=y'", "g=x=y"]
    wanted = {"a": 1, "b": [1, 2], "c": None, "d": "resnet18", "e": "", "f": "x=y", "g": "x=y"}
    assert arguments_of("model_arg", words) == wanted


@pytest.mark.parametrize(
    ("words", "message"),
    [(["a"], "must be name=value, got 'a'"), (["1=2"], "must be name=value"), (["a=1", "a=2"], "a once")],
)
def test_arguments_that_are_none_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=f"^model_arg must .*{message.removeprefix('must ')}"):
        arguments_of("model_arg", words)

"""The library's types are checked: in a part of the tests, at the first calls of each function there."""

from collections.abc import Iterator

import jaxtyping
import pytest
import torch

import numeric_tower
from lowland.deep import TrainConfig
from lowland.sam.norm import l2_norm


@pytest.fixture(autouse=True)
def checked(request: pytest.FixtureRequest) -> Iterator[None]:
    request.getfixturevalue("typed_in_part")
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", False)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


def test_arguments_and_fields_of_another_type_are_refused() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match=r"parameters of lowland\.sam\.norm\.l2_norm"):
        l2_norm({"a": torch.ones(2)})
    with pytest.raises(jaxtyping.TypeCheckError, match=r"lowland\.deep.*TrainConfig"):
        TrainConfig(epochs="8")


def test_results_of_another_shape_are_refused() -> None:
    @jaxtyping.jaxtyped(typechecker=numeric_tower.typechecked)
    def total(rows: jaxtyping.Float[torch.Tensor, "n d"]) -> jaxtyping.Float[torch.Tensor, " d"]:
        return rows.sum(1)

    assert total(torch.ones(3, 3)).shape == (3,)
    with pytest.raises(jaxtyping.TypeCheckError, match=r"return value of .*total"):
        total(torch.ones(2, 3))


def test_whole_numbers_are_numbers() -> None:
    assert TrainConfig(sam_rho=1).sam_rho == 1


def test_first_calls_of_a_test_are_checked() -> None:
    for _ in range(10):
        l2_norm([torch.ones(2)])
    with pytest.raises(AttributeError):
        l2_norm([2])
    numeric_tower.check_anew()
    with pytest.raises(jaxtyping.TypeCheckError):
        l2_norm([2])


def test_functions_without_checks_are_called_as_they_are() -> None:
    jaxtyping.config.update("jaxtyping_disable", True)
    with pytest.raises(AttributeError):
        l2_norm([2])

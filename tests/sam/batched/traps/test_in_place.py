"""Operations in place that torch itself does not allow."""

import pytest
from torch import nn

from lowland import sam_gradient

from ..models import Through, trained
from .making import sequences, squared


@pytest.mark.parametrize("engine", ["loop", "batched"])
@pytest.mark.parametrize("layer", [nn.Linear(4, 4), nn.Conv1d(3, 3, 1)], ids=["linear", "convolution"])
def test_input_that_a_layer_has_consumed_must_not_be_changed_in_place(engine, layer):
    def forward(s, x):
        h = s.first(x).sigmoid()
        y = s.second(h)
        h.mul_(2.0)
        return y + h

    module = Through(forward, first=nn.Linear(4, 4), second=layer)
    module, loss, batch = squared(module, sequences())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        sam_gradient(loss, trained(module), batch, rho=0.3, m=2, module=module, engine=engine)

"""The weights that a model starts from."""

from torch import nn


def initialize(model: nn.Module) -> None:
    r"""Draw the weights of every convolution and clear every bias, in place.

    Convolutions are normal with variance 2 / fan-out (He et al., 2015, arXiv 1502.01852, eq. 14), where
    fan-out is output channels times kernel area. Linear weights keep PyTorch's default, uniform on
    :math:`\pm 1/\sqrt{\text{inputs}}`; norms keep weight 1 and bias 0. The draws come from PyTorch's
    default generator of the model's device.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

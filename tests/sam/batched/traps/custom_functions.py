"""Custom functions, with and without a rule for ``vmap``."""

import torch
import torch.nn.functional as F

from .making import two_layers
from .registry import refused


class Product(torch.autograd.Function):
    """``x W^T`` without a rule for vmap."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return F.linear(x, w)

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        return grad @ w, grad.t() @ x


class ProductByRule(torch.autograd.Function):
    """The same with a generated rule."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, w):
        return F.linear(x, w)

    @staticmethod
    def setup_context(ctx, inputs, output):  # noqa: ARG004 - the protocol's
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        return grad @ w, grad.t() @ x


class ProductWithoutGradientByRule(ProductByRule):
    """A product whose weight gets no gradient, with a generated rule."""

    @staticmethod
    def backward(ctx, grad):
        return grad @ ctx.saved_tensors[1], None


class ProductWithoutGradientByOwnRule(torch.autograd.Function):
    """A product whose weight gets no gradient, with a rule of its own."""

    @staticmethod
    def forward(x, w):
        return F.linear(x, w)

    @staticmethod
    def setup_context(ctx, inputs, output):  # noqa: ARG004 - the protocol's
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        return grad @ ctx.saved_tensors[1], None

    @staticmethod
    def vmap(info, in_dims, x, w):  # noqa: ARG004 - the protocol's
        w = w.t() if in_dims[1] is None else w.movedim(in_dims[1], 0).transpose(1, 2)
        return x.movedim(in_dims[0], 0) @ w, 0


def own_function(function):
    return two_layers(lambda s, x: s.b(function.apply(s.a(x).tanh(), s.a.weight)))


@refused(r"a custom autograd\.Function, \w+")
def custom_function_that_takes_a_parameter():
    return own_function(Product)


@refused(r"a custom autograd\.Function, \w+")
def custom_function_with_a_generated_rule_that_takes_a_parameter():
    return own_function(ProductByRule)


@refused(r"a custom autograd\.Function, \w+")
def custom_function_with_a_generated_rule_that_gives_no_gradient():
    return own_function(ProductWithoutGradientByRule)


@refused(r"a custom autograd\.Function, \w+")
def custom_function_with_its_own_rule_that_gives_no_gradient():
    return own_function(ProductWithoutGradientByOwnRule)


@refused(r"a custom autograd\.Function, \w+")
def custom_function_with_its_own_rule_without_gradient():
    def forward(s, x):
        with torch.no_grad():
            y = ProductWithoutGradientByOwnRule.apply(x, s.a.weight)
        return s.b((s.a(x) + y).tanh())

    return two_layers(forward)


@refused(r"a custom autograd\.Function, \w+")
def custom_function_that_closes_over_a_parameter():
    module, loss, batch = two_layers(None)

    class Closed(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return F.linear(x, module.a.weight)

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(_, grad):
            return grad @ module.a.weight

    module.function = lambda s, x: s.b(Closed.apply(s.a(x).tanh()))
    return module, loss, batch


@refused(r"a custom autograd\.Function, \w+")
def custom_function_of_an_activation_by_rule():
    class Reversed(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return x.view_as(x)

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(_, grad):
            return -grad

    return two_layers(lambda s, x: s.b(Reversed.apply(s.a(x)).tanh()))

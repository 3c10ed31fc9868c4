"""Hooks of modules, of activations and of parameters."""

from .making import plain, two_layers
from .registry import exact, refused


def hooked(register):
    module, loss, batch = two_layers(plain)
    register(module)
    return module, loss, batch


@exact
def forward_hooks_that_change_the_output():
    return hooked(lambda s: s.a.register_forward_hook(lambda *seen: seen[2] * 2.0))


@exact
def forward_pre_hooks_that_change_the_input():
    return hooked(lambda s: s.a.register_forward_pre_hook(lambda _, args: (args[0] * 2.0,)))


def tripled(grads):
    return tuple(None if g is None else 3.0 * g for g in grads)


@refused("backward hooks of a module, Linear", without_module="backward hooks of a module")
def backward_hook_that_changes_the_gradient():
    return hooked(lambda s: s.b.register_full_backward_hook(lambda *seen: tripled(seen[1])))


@refused("backward hooks of a module, Linear", without_module="backward hooks of a module")
def backward_pre_hook_that_changes_the_gradient():
    return hooked(lambda s: s.b.register_full_backward_pre_hook(lambda *seen: tripled(seen[1])))


@refused("backward hooks of a module, Linear", without_module=r"Tensor\.grad_fn")
def old_backward_hook_that_changes_the_gradient():
    return hooked(lambda s: s.b.register_backward_hook(lambda *seen: tripled(seen[1])))


@refused(r"Tensor\.register_hook inside the loss")
def hook_of_an_activation_that_changes_its_gradient():
    def forward(s, x):
        h = s.a(x).tanh()
        h.register_hook(lambda g: 3.0 * g)
        return s.b(h)

    return two_layers(forward)


@refused(r"Tensor\.register_hook inside the loss")
def hook_of_an_activation_if_it_requires_a_gradient():
    def forward(s, x):
        h = s.a(x).tanh()
        if h.requires_grad:
            h.register_hook(lambda g: 3.0 * g)
        return s.b(h)

    return two_layers(forward)


@exact
def hook_of_a_parameter():
    return hooked(lambda s: s.a.weight.register_hook(lambda g: 3.0 * g))

"""The run-time type checker of the tests: an ``int`` is a ``float`` to it, as to mypy (PEP 484)."""

import random

from beartype import BeartypeConf, beartype
from beartype._check.code import codemain

# It draws to choose the element of a list that it checks: not from the generator whose draws are tested.
codemain.getrandbits = random.Random(0).getrandbits

typechecked = beartype(conf=BeartypeConf(is_pep484_tower=True))

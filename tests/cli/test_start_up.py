"""The first seconds of the program: what it imports, and what an interrupt does meanwhile."""

import importlib
import pickle
import signal
import subprocess
import sys

import pytest

import lowland

HEAVY = {"torch", "numpy", "matplotlib", "numba", "scipy", "rich", "pyarrow"}

AT_AN_IMPORT = """
import os, signal, sys
at = int(sys.argv[1])
sys.argv = ["lowland", *sys.argv[2:]]

class Interrupting:
    begun, seen = False, 0
    def find_spec(self, name, *_):
        self.begun = self.begun or name == "lowland.cli.command"  # the first import of main
        self.seen += self.begun
        if self.seen == at:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
from lowland.cli import main
sys.exit(main())
"""


def program(*words: str, **options) -> subprocess.CompletedProcess[str]:
    """A process of its own, whose SIGINT is not ignored, whatever that of the tests is."""
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **options,
    )


@pytest.mark.parametrize("words", [("--help",), ("--version",), ("tarin",), ()])
def test_words_that_need_no_command_import_nothing_heavy(words) -> None:
    script = f"""
import sys
from lowland.cli import main
main({list(words)!r})
print("imported:", *({HEAVY!r} & sys.modules.keys()))
"""
    assert program("-c", script).stdout.endswith("imported:\n")


def test_the_package_imports_torch_when_a_name_is_asked_for() -> None:
    script = """
import sys, lowland
assert "torch" not in sys.modules
assert {"SAM", "presets", "sam", "__version__"} <= set(dir(lowland))
assert "torch" not in sys.modules
assert lowland.SAM is lowland.sam.SAM and "torch" in sys.modules
"""
    done = program("-c", script)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_public_name_is_there_and_no_other() -> None:
    names: dict[str, object] = {}
    exec("from lowland import *", names)
    assert set(lowland.__all__) <= names.keys()
    assert names["presets"] is importlib.import_module("lowland.presets")
    assert all(names[n] is getattr(lowland.sam, n) for n in lowland.__all__ if n != "presets")
    assert pickle.loads(pickle.dumps(lowland.SAM)) is lowland.SAM
    with pytest.raises(AttributeError, match="module 'lowland' has no attribute 'SMA'"):
        lowland.SMA  # noqa: B018


@pytest.mark.parametrize("at", [1, 2, 5, 20, 100, 300, 600])
def test_an_interrupt_while_the_program_imports_ends_it_without_a_word(at, tmp_path) -> None:
    done = program("-c", AT_AN_IMPORT, str(at), "train", "--model=fc", "--epochs=1", cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("", "")
    assert done.returncode == -signal.SIGINT


def test_an_interrupt_that_is_ignored_stays_ignored(tmp_path) -> None:
    """As that of a command in the background of a script is."""
    script = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + AT_AN_IMPORT
    done = program("-c", script, "20", "runs", "list", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        "lowland: a directory of runs is needed, but there is no runs.\n",
    )


WORKING = """
import sys, types
command = types.ModuleType("lowland.cli.train")
exec('''
import os, signal, sys, time, warnings
def run(words):
    {work}
''', command.__dict__)
sys.modules[command.__name__] = command
sys.argv = ["lowland", "train"]
from lowland.cli import main
try:
    sys.exit(main())
finally:
    os = command.os
    os.kill(os.getpid(), {after})
"""
INTERRUPT = "os.kill(os.getpid(), signal.SIGINT)"


@pytest.mark.parametrize(
    "work",
    [
        INTERRUPT,
        f"try: {INTERRUPT}\n    except BaseException: raise ImportError('half-way') from None",
        f"try: {INTERRUPT}\n    except BaseException: pass\n    return 0",
        f"try: {INTERRUPT}\n    except BaseException: time.sleep(3600)",
        f"class Freed:\n        def __del__(self): {INTERRUPT}\n    Freed()\n    time.sleep(3600)",
        f"import atexit; atexit.register(time.sleep, 3600)\n    {INTERRUPT}",
        "import threading; threading.Thread(target=time.sleep, args=(3600,)).start()\n    " + INTERRUPT,
    ],
    ids=["raised", "turned", "lost", "not heeded", "in a destructor", "at exit", "other threads"],
)
def test_an_interrupt_ends_a_command_whatever_became_of_it(work) -> None:
    done = program("-c", WORKING.format(work=work, after=0))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "lowland: interrupted.\n")


def test_an_error_that_no_interrupt_caused_is_not_hidden() -> None:
    done = program("-c", WORKING.format(work="raise ImportError('broken')", after=0))
    assert done.returncode == 1
    assert "ImportError: broken" in done.stderr


def test_an_interrupt_after_the_command_is_silent_too() -> None:
    done = program("-c", WORKING.format(work="return 0", after=int(signal.SIGINT)))
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_a_second_interrupt_ends_the_program_at_once() -> None:
    work = f"try: {INTERRUPT}\n    except BaseException: {INTERRUPT}\n    time.sleep(3600)"
    done = program("-c", WORKING.format(work=work, after=0))
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")

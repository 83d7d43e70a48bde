"""The command line: a module a command; parse, call a workflow, print."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
import tempfile
import threading
import traceback
import warnings
from typing import Annotated, Any

import typer

from fastadv._version import __version__
from fastadv.cli.align import align
from fastadv.cli.attack import attack
from fastadv.cli.bench import bench
from fastadv.cli.calibrate import calibrate
from fastadv.cli.catalogs import attacks
from fastadv.cli.check_model import check
from fastadv.cli.checks import Checked
from fastadv.cli.compare import compare
from fastadv.cli.defend import defend
from fastadv.cli.demo import demo
from fastadv.cli.detect import detect
from fastadv.cli.doctor import doctor
from fastadv.cli.explain import explain
from fastadv.cli.export import export
from fastadv.cli.groups import Listing, OwnOptions
from fastadv.cli.help_page import WIDTH, group
from fastadv.cli.identify import identify
from fastadv.cli.inspect_weights import inspect
from fastadv.cli.merge import merge
from fastadv.cli.models import models, show_model
from fastadv.cli.report import report
from fastadv.cli.score import score
from fastadv.cli.serve import serve
from fastadv.cli.status import status
from fastadv.cli.study import study
from fastadv.cli.talfw import talfw
from fastadv.cli.train import train
from fastadv.cli.train_denoiser import denoiser
from fastadv.cli.transfer import transfer
from fastadv.cli.verify import verify
from fastadv.core.allocator import keep_freed_memory
from fastadv.core.errors import Error
from fastadv.core.notices import Notice
from fastadv.core.remote import without_secrets

_PLAIN = {
    "–": "-",
    "−": "-",
    "×": "x",
    "±": "+-",
    "·": "*",
    "→": "->",
    "≤": "<=",
    "σ": "sigma",
    "κ": "kappa",
    "δ": "delta",
}
app = group(
    "Adversarial attacks on face recognition, at the full speed of the hardware.",
    context_settings={"max_content_width": WIDTH},
    epilog="Exit codes: 0 success; 2 an error that you can correct, in one line on standard error; 70 a fault of "
    "fastadv, in one line that names the file with the traceback; 130 Ctrl-C, after which the same command "
    "continues the run.",
)
for command in (
    demo,
    align,
    attacks,
    attack,
    merge,
    status,
    verify,
    identify,
    transfer,
    talfw,
    defend,
    compare,
    report,
    serve,
    doctor,
):
    app.command(cls=Checked)(command)
detect.command(cls=Checked)(score)
detect.command(cls=Checked)(calibrate)
detect.command(cls=Checked)(explain)
detect.command(cls=Checked)(export)
app.add_typer(detect, name="detect")
app.add_typer(study, name="study")
networks = typer.Typer(cls=Listing, pretty_exceptions_enable=False, rich_markup_mode=None)
networks.callback(invoke_without_command=True)(models)
networks.command("show", cls=Checked)(show_model)
networks.command(cls=Checked)(inspect)
networks.command(cls=Checked)(check)
app.add_typer(networks, name="models")
training = typer.Typer(cls=OwnOptions, pretty_exceptions_enable=False, rich_markup_mode=None)
training.callback(invoke_without_command=True)(train)
training.command(cls=Checked)(denoiser)
app.add_typer(training, name="train")
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})(bench)


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line.

    Exit codes: 0 success; 2 an error that the user can mend, one sentence on standard error; 70 a fault of fastadv,
    one line that names the file with the traceback; 130 Ctrl-C.
    """
    try:
        code = _run()
    except KeyboardInterrupt:  # a second one, while the first was answered
        code = 130
    if any(thread.name.startswith(("fastadv-stream", "fastadv-write")) for thread in threading.enumerate()):
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)  # a file system that does not answer holds a thread, for which Python would wait
    sys.exit(code)


def _run() -> int:
    """Run the command line; its exit code, with everything said."""
    keep_freed_memory()
    codecs.register_error("fastadv", _plainer)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="fastadv")  # a terminal that cannot encode a name still gets a line
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", Notice)
            warnings.showwarning = _show_warning
            app(prog_name="fastadv")
    except KeyboardInterrupt:
        _say("stopped")
        return 130
    except SystemExit as left:
        if not _interrupted(left):
            return left.code if isinstance(left.code, int) else int(left.code is not None)
        _say("stopped")
        return 130
    except Error as error:
        _say(_refusal(error) if isinstance(error, OSError) else str(error))
        return 2
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            _say(_refusal(error))
            return 2
        if _short_of_memory(error):
            _say("memory: expected enough for this command, got too little; end other programs, or lower --batch")
            return 2
        _say(f"internal error: {type(error).__name__}; this is a fault of fastadv; the traceback is in {_traceback()}")
        return 70
    return 0


def _plainer(error: UnicodeError) -> tuple[str | bytes, int]:
    """What the tables have beside ASCII as ASCII, any other character by its number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c, c.encode("ascii", "backslashreplace").decode()) for c in text), error.end


def _refusal(error: OSError) -> str:
    """The operating system's refusal (a full disk, no permission) with the file and what helps."""
    if error.filename is None or error.strerror is None:
        return str(error)
    elsewhere = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC)
    return f"{error.filename}: {error.strerror}{'; write to another place with --out' if elsewhere else ''}"


def _short_of_memory(error: Exception) -> bool:
    """Whether memory ran out; PyTorch's own words for it are read where PyTorch is there already."""
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from fastadv.models.memory import is_out_of_memory

    return is_out_of_memory(error)


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """A notice as a line of its own; other libraries' warnings without the line of code."""
    from fastadv.cli.show import print_notices

    print_notices((" ".join(str(message).split()),))


def _interrupted(left: SystemExit) -> bool:
    """Whether Typer made this exit of a Ctrl-C, as it does with a code that differs between its versions."""
    made = left.__context__
    if made is None:
        return False
    return isinstance(made.__cause__ if made.__suppress_context__ else made.__context__, KeyboardInterrupt)


def _say(text: str) -> None:
    from rich.text import Text

    from fastadv.cli.console import errors, printed

    errors.print("[red]error:[/red]", Text(printed(" ".join(text.split()))), highlight=False, soft_wrap=True)


def _traceback() -> str:
    """Write the current exception's traceback, the command and the versions to a temporary file; its path."""
    try:
        descriptor, path = tempfile.mkstemp(prefix="fastadv-error-", suffix=".txt", text=True)
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(without_secrets(f"fastadv {__version__}: {sys.argv}\n{traceback.format_exc()}"))
    except OSError:
        traceback.print_exc()
        return "the lines above"
    return path

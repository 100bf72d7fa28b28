"""Entry point: parse, run one verb, and turn what goes wrong into one message and a documented exit code."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from asg_core import __version__
from asg_core.backbones.known_plugins import EXTENSIONS
from asg_core.errors import INTERRUPTED, AsgError, ConfigError, did_you_mean

DEBUG_VARIABLE = "ASG_DEBUG"

EPILOG = f"""\
exit codes:
  0    done
  1    an error of another kind; a traceback was written to a file that the message names
  2    configuration or usage
  3    images
  4    plugin, or something the backbone cannot do
  5    weights or checkpoint
  6    run folder
  7    training stopped itself (alarm, repeated non-finite values, out of memory)
  8    another process of the same run ended or disagrees
  {INTERRUPTED}  interrupted

environment:
  {DEBUG_VARIABLE}=1                     print tracebacks
  ASG_DISABLE_PLUGINS=name,name   leave plugins out; * leaves out all but the core's own
"""

VERBS = {
    "train": "train the three roles on unlabeled images",
    "eval": "evaluate a model, or a run against its base",
    "compare": "paired differences of two scores of equal protocol",
    "generate": "draw images for a prompt or for a benchmark's prompts",
    "ask": "questions about an image",
    "solve": "answer a question about an image under seven framings",
    "plugins": "installed backbones and extensions",
    "doctor": "check the installation",
    "config": "print the configuration with all its keys explained",
    "plan": "count parameters, memory and time of a run before loading anything",
    "report": "write a run's report again",
    "export": "merge a run's adapters into a checkpoint of the released layout",
    "parity": "compare a backbone with recorded numbers of its original",
    "check": "does a backbone keep the contract?",
    "new": "start a package of your own",
}
"""Verb -> one line about it. The module of that name has its description, ``add_arguments`` and ``run``."""


class _Parser(argparse.ArgumentParser):
    """Options are never abbreviated, examples printed as they are written, usage errors like every other error."""

    def __init__(self, **settings: Any) -> None:
        if settings.get("epilog"):
            settings["formatter_class"] = argparse.RawDescriptionHelpFormatter
        super().__init__(**{**settings, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing usage and leaving."""
        raise ConfigError(f"{self.prog}: {message}", "it does not fit the usage", f"see {self.prog} --help")


def build_parser(wanted: str | None = None) -> argparse.ArgumentParser:
    """The parser of all verbs: ``wanted`` has its arguments and ``handler``, of the others nothing is imported.

    Raises:
        ConfigError: there is no such verb. PluginError: no usable plugin provides it.
    """
    parser = _Parser(
        prog="asg",
        description="Self-evolution of unified multimodal models from unlabeled images: Ask, Solve, Generate.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"asg {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", dest="verb")
    known = VERBS | {name: f"{about} (asg-lab)" for name, about in EXTENSIONS["verb"].items()}
    for name, about in known.items():
        if name != wanted:
            verbs.add_parser(name, help=about, add_help=False)
    if wanted in VERBS:
        module = import_module(f"asg_core.cli.{wanted}")
        own = verbs.add_parser(wanted, description=module.__doc__, epilog=getattr(module, "EXAMPLES", None))
        module.add_arguments(own)
        own.set_defaults(handler=module.run)
    elif wanted is not None:
        from asg_core.backbones.registry import installed_extensions, load_extension

        if wanted not in {*known, *installed_extensions("verb")}:
            fix = did_you_mean(wanted, known)
            raise ConfigError(f"asg has no verb {wanted!r}", "see asg --help for all of them", fix)
        load_extension("verb", wanted)(verbs)
    parser.set_defaults(verbs=verbs.choices)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command ``argv``, or that of the process if it is None; returns the exit code (``asg --help``)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if "PYTORCH_ALLOC_CONF" not in os.environ:
        # batches of all sizes follow each other, whose fragments would otherwise take gigabytes; read when CUDA starts
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except SystemExit as done:  # argparse after --help and --version
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except AsgError as error:
        if os.environ.get(DEBUG_VARIABLE):
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # whoever read our output has seen enough; keep the interpreter from flushing into the closed pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 - top of the program: the user gets one line, the traceback a file
        print(f"error: {type(error).__name__}: {' '.join(str(error).split())[:500]}", file=sys.stderr)
        print(f"  this is a defect of asg or of a plugin; {_keep_traceback()}", file=sys.stderr)
        return 1


def _run(words: list[str]) -> int:
    parser = build_parser(words[0] if words and not words[0].startswith("-") else None)
    args, rest = parser.parse_known_args(words)
    if args.verb is None:
        parser.print_help()
        return 0
    # argparse leaves out key=value words that follow an option
    strange = [word for word in rest if word.startswith("-") or "=" not in word or not hasattr(args, "overrides")]
    if strange:
        args.verbs[args.verb].error(f"{strange[0]!r} is neither an option nor a key=value word that this verb takes")
    if rest:
        args.overrides += rest
    return int(args.handler(args))


def _keep_traceback() -> str:
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exc()
        return "the traceback is above"
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", prefix="asg-traceback-", suffix=".txt", delete=False
    ) as file:
        traceback.print_exc(file=file)
    return f"the traceback is in {file.name}"

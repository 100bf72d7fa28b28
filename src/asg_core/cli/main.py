"""Entry point: parse, run one verb, and turn what goes wrong into one message and a documented exit code."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import NoReturn

from asg_core import __version__
from asg_core.backbones.known_plugins import EXTENSIONS
from asg_core.cli import (
    ask,
    check,
    compare,
    config,
    doctor,
    evaluate,
    export,
    generate,
    new,
    parity,
    plan,
    plugins,
    report,
    solve,
    train,
)
from asg_core.cli.common import INTERRUPTED
from asg_core.errors import AsgError, ConfigError, did_you_mean

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

_VERBS = (
    train,
    evaluate,
    compare,
    generate,
    ask,
    solve,
    plugins,
    doctor,
    config,
    plan,
    report,
    export,
    parity,
    check,
    new,
)


class _Parser(argparse.ArgumentParser):
    """Usage errors become ConfigError, so that they look like every other error."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing usage and leaving."""
        raise ConfigError(
            f"{self.prog}: {message}", "the command line does not fit its usage", f"see {self.prog} --help"
        )


def build_parser(plugin_verb: str | None = None) -> argparse.ArgumentParser:
    """The parser of all verbs. Each verb's module adds its own part and sets ``handler``.

    Args:
        plugin_verb: a verb whose arguments a plugin adds. Plugins' other verbs are listed, and no plugin imported.

    Raises:
        PluginError: no usable plugin provides the verb.
    """
    parser = _Parser(
        prog="asg",
        description="Self-evolution of unified multimodal models from unlabeled images: Ask, Solve, Generate.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"asg {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", dest="verb")
    for module in _VERBS:
        module.add_parser(verbs)
    for name, about in EXTENSIONS["verb"].items():
        if name != plugin_verb:
            verbs.add_parser(name, help=f"{about} (asg-lab)", add_help=False)
    if plugin_verb is not None:
        from asg_core.backbones.registry import load_extension

        load_extension("verb", plugin_verb)(verbs)
    parser.set_defaults(verbs=list(verbs.choices))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: words after the program's name; None takes them from the process.

    Returns:
        the exit code; ``asg --help`` lists them.
    """
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
    parser = _parser_of(words[0]) if words and not words[0].startswith("-") else build_parser()
    args, rest = parser.parse_known_args(words)
    if args.verb is None:
        parser.print_help()
        return 0
    # argparse leaves out key=value words that follow an option
    strange = [word for word in rest if word.startswith("-") or "=" not in word or not hasattr(args, "overrides")]
    if strange:
        raise ConfigError(
            f"asg {args.verb}: cannot make sense of {strange[0]!r}",
            "it is neither an option nor a key=value word that this verb takes",
            f"see asg {args.verb} --help",
        )
    if rest:
        args.overrides += rest
    return int(args.handler(args))


def _parser_of(verb: str) -> argparse.ArgumentParser:
    """The parser in which ``verb`` has its arguments. ConfigError if there is no such verb."""
    parser = build_parser()
    verbs = parser.get_default("verbs")
    if verb in verbs and verb not in EXTENSIONS["verb"]:
        return parser
    from asg_core.backbones.registry import installed_extensions

    if verb in verbs or verb in installed_extensions("verb"):
        return build_parser(verb)
    raise ConfigError(f"asg has no verb {verb!r}", "see asg --help for all of them", did_you_mean(verb, verbs))


def _keep_traceback() -> str:
    text = traceback.format_exc()
    if os.environ.get(DEBUG_VARIABLE):
        print(text, file=sys.stderr, end="")
        return "the traceback is above"
    handle, name = tempfile.mkstemp(prefix="asg-traceback-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    return f"the traceback is in {name}"

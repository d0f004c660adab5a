"""The commands by name, as typer's application; a command's module is imported when it runs."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated, Any

from niblick import __version__
from niblick.cli.imports import importing
from niblick.errors import NiblickError

with importing():
    import typer
    import typer.main
    from typer.core import TyperGroup

    from niblick.cli.helps import PlainCommand

# name -> (module:function or module:app, one line of help)
COMMANDS: dict[str, tuple[str, str]] = {
    "recipes": ("niblick.cli.plan:recipes_command", "List the shipped recipes."),
    "techniques": (
        "niblick.cli.plan:techniques_command",
        "List what `ablate` can leave out of a recipe.",
    ),
    "plan": (
        "niblick.cli.plan:plan_command",
        "Show what a recipe builds, and its sizes, before anything is built.",
    ),
    "data": ("niblick.cli.data:app", "Prepare, check and fetch training data."),
    "train": (
        "niblick.cli.train:train_command",
        "Train a recipe, pack it, score it from the file, print its card.",
    ),
    "pack": (
        "niblick.cli.pack:pack_command",
        "Pack a checkpoint into one artifact under a byte cap.",
    ),
    "eval": ("niblick.cli.eval:eval_command", "Score a model on a held-out split."),
    "compare": ("niblick.cli.compare:compare_command", "Compare runs with statistics."),
    "sweep": (
        "niblick.cli.sweep:sweep_command",
        "Train variants of a recipe and say what each is worth.",
    ),
    "ablate": ("niblick.cli.sweep:sweep_command", "The same as sweep, on the validation split."),
    "generate": ("niblick.cli.generate:generate_command", "Continue a prompt."),
    "serve": (
        "niblick.cli.serve:serve_command",
        "Serve a model: OpenAI's completions interface and a page.",
    ),
    "import": (
        "niblick.cli.foreign:import_command",
        "Read a published state dict, or a Hugging Face folder, into a checkpoint.",
    ),
    "export": (
        "niblick.cli.export:export_command",
        "Write a run as a submission, a model as a web page, for transformers, ONNX, GGUF.",
    ),
    "verify": (
        "niblick.cli.export:verify_command",
        "Re-score an exported submission without this package.",
    ),
    "audit": (
        "niblick.cli.audit:audit_command",
        "Review somebody's submission: is its score valid?",
    ),
    "card": ("niblick.cli.card:card_command", "Print the card of a run."),
    "runs": (
        "niblick.cli.dashboard:runs_command",
        "List runs: how far they are, what they score, how large they are.",
    ),
    "doctor": (
        "niblick.cli.doctor:doctor_command",
        "Show what this machine is, how commands run on it, and what is slow.",
    ),
    "dashboard": (
        "niblick.cli.dashboard:dashboard_command",
        "Show live curves of all runs in a browser.",
    ),
}

# Recent versions of typer carry a click of their own, older ones use click itself: theirs is taken,
# whichever it is.
USAGE_ERROR: Any = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


class LazyGroup(TyperGroup):
    """A group that knows its commands' names and help without importing them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: Any = dict.fromkeys(COMMANDS)  # names, for what typer suggests
        self._listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        """Command names in the order of a model's life."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import one command's module and wrap its function with typer."""
        if cmd_name not in COMMANDS:
            return None
        target, summary = COMMANDS[cmd_name]
        if self._listing:
            return PlainCommand(name=cmd_name, short_help=summary)
        module_name, _, attribute = target.partition(":")
        with importing():
            found: Any = getattr(import_module(module_name), attribute)
        command = found
        if not isinstance(found, typer.Typer):
            command = typer.Typer(add_completion=False, rich_markup_mode=None)
            command.command(cmd_name, cls=PlainCommand, short_help=summary)(found)
        return typer.main.get_command(command)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """A command by its name; one whose beginning was typed is suggested too."""
        try:
            return super().resolve_command(ctx, args)
        except USAGE_ERROR as error:
            begun = [name for name in COMMANDS if name.startswith(args[0])]
            if begun and "Did you mean" not in error.message:
                error.message = f"{error.message} Did you mean {', '.join(map(repr, begun))}?"
            raise

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Commands and options for a shell's completion, told from the table."""
        self._listing = True
        try:
            return super().shell_complete(ctx, incomplete)
        finally:
            self._listing = False

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


app = typer.Typer(add_completion=True, rich_markup_mode=None)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"niblick, version {__version__}")
        raise typer.Exit


@app.callback(
    cls=LazyGroup, no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]}
)
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
    plugin: Annotated[
        list[str] | None,
        typer.Option(metavar="MODULE", help="Import a module of your own first; repeatable."),
    ] = None,
) -> None:
    """Train, pack, score, audit and run the best language model that fits a byte budget."""


def run_command(arguments: list[str]) -> int:
    """The exit code of one command; `NiblickError` for words that it does not understand."""
    try:
        code = typer.main.get_command(app).main(
            args=arguments, prog_name="niblick", standalone_mode=False
        )
    except typer.Exit as error:
        return error.exit_code
    except SystemExit:
        if type(sys.stdout).__name__ == "PacifyFlushWrapper":  # typer's: the reader has left
            return 0
        raise
    except typer.Abort:
        raise KeyboardInterrupt from None
    except USAGE_ERROR as error:
        return _misuse(error)
    return code if isinstance(code, int) else 0


def _misuse(error: Any) -> int:
    """A command that needs another word behind it prints its help; all else is one line."""
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.ctx.get_help())
        return 0
    context = getattr(error, "ctx", None)
    where = f" (see {context.command_path} --help)" if context is not None else ""
    raise NiblickError(error.format_message().rstrip(".") + where) from None

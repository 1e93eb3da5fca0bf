"""The `ptune` command: one short function a command; heavy imports wait until one is chosen."""

from __future__ import annotations

import copy
import dataclasses
import gc
import inspect
import io
import logging
import os
import signal
import sys
import time
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from ptune import __version__
from ptune.config.declaration import Settings, declared, shown
from ptune.config.original_flags import advice
from ptune.config.predict_settings import PredictSettings
from ptune.config.resolve import resolve
from ptune.config.settings import (
    ChatSettings,
    DoctorSettings,
    EstimateSettings,
    EvalSettings,
    ExportSettings,
    MergeSettings,
    PreviewSettings,
    ScoreSettings,
    ServeSettings,
    TrainSettings,
)
from ptune.config.shared_settings import HEADINGS
from ptune.config.tune_settings import TuneSettings
from ptune.errors import ConfigError, PTuneError, reason_of
from ptune.parallel.processes import is_first_process, started_here


class _Commands(TyperGroup):
    """All commands."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command line; a terminal that lacks a character is shown its number."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        for name in ("COLUMNS", "LINES"):  # rich would show nothing on no columns
            if os.environ.get(name, "").strip("0") == "":
                os.environ.pop(name, None)
        return super().main(*args, **kwargs)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: nothing is cut off, and [brackets] stay
    context_settings={
        "help_option_names": ["-h", "--help"],
        # As in the YAML file, `_` is `-`.
        "token_normalize_func": lambda name: name.replace("_", "-"),
    },
    help="P-Tuning v2 for ChatGLM-6B, ChatGLM2-6B, ChatGLM3-6B and GLM-4-9B.",
)

_METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
_METAVARS |= {tuple[Path, ...]: "PATH", tuple[str, ...]: "TEXT"}
_MOST_SHOWN = 4000  # characters of an error
_STOPPED = 128  # plus a signal's number: what a shell reports for a program ended by it
_FIRST_SPEAKS = 2  # seconds
_INTERRUPTED = _STOPPED + signal.SIGINT
_debug = False
_given: list[str] = []  # the name of the command at work and what it was given


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ptune {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """P-Tuning v2 for ChatGLM-6B, ChatGLM2-6B, ChatGLM3-6B and GLM-4-9B."""
    global _debug
    _debug = debug


class _Command(TyperCommand):
    """A command whose `--help` shows its options under headings, and that knows the original's."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the options; one of the original scripts is answered with its name here."""
        global _given
        given = list(args)
        _given = [str(self.name), *given]
        try:
            self._refuse_repeated(ctx, given)
            return list(super().parse_args(ctx, args))
        except ConfigError as error:
            raise error if _debug else _exit(error) from None
        except Exception as error:  # of a class that older releases of typer take from click
            unknown = str(getattr(error, "option_name", ""))
            names = [parameter.name for parameter in self.params]
            known = advice(unknown.lstrip("-").replace("-", "_"), str(self.name), names)
            if not (known and unknown.startswith("--")):
                raise
            typed = (word.split("=")[0] for word in given)
            flag = next(word for word in typed if word.replace("_", "-") == unknown)
            complaint = ConfigError(f"{flag} is the original's; {known}")
            raise complaint if _debug else _exit(complaint) from None

    def _refuse_repeated(self, ctx: Any, args: list[str]) -> None:
        """Refuse an option that takes one value and is given several, of which one would count.

        Raises:
            ConfigError: naming it and the first two.
        """
        parser = self.make_parser(ctx)
        options = (p for p in self.get_params(ctx) if p.param_type_name == "option")
        single = [copy.copy(o) for o in options if not (o.multiple or o.is_eager)]
        for option in single:  # anew, as one that keeps all that it is given
            option.multiple = True
            option.add_to_parser(parser, ctx)
        values, _, _ = parser.parse_args(list(args))
        for option in single:
            if len(found := values.get(option.name, [])) > 1:
                first, second = (_spelt(option, value) for value in found[:2])
                raise ConfigError(
                    f"{option.opts[0]} is given twice, as {first} and as {second}; "
                    "leave one of them out"
                )

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options heading by heading, those with a one-letter flag first."""
        under: dict[str, list[tuple[str, str]]] = {heading: [] for heading in HEADINGS}
        for parameter in sorted(self.get_params(ctx), key=lambda p: len(p.opts) < 2):
            heading = getattr(parameter, "rich_help_panel", None) or "Options"
            if line := parameter.get_help_record(ctx):
                under.setdefault(heading, []).append(line)
        for heading, lines in under.items():
            if lines:
                with formatter.section(heading):
                    formatter.write_dl(lines)


def _spelt(option: Any, value: Any) -> str:
    """A value of an option as it was given; of a switch, which of its two flags."""
    if not isinstance(value, bool):
        return shown(value)
    return str((option.opts if value else option.secondary_opts)[0])


def _command(kind: type[Settings], config_file: bool = False) -> Callable[..., Any]:
    """Register a function of settings as a command whose options are the settings' fields.

    Args:
        kind: a dataclass of `ptune.config.settings`.
        config_file: add `--config FILE`.
    """

    def register(function: Callable[[Any], None]) -> Callable[[Any], None]:
        def run(**flags: Any) -> None:
            file = flags.pop("config", None)
            given = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in flags.items()
                if value not in (None, [])
            }
            with _one_line_errors():
                function(resolve(kind, given, file))

        parameters = _options(kind, negatable=config_file)
        if config_file:
            option = typer.Option("--config", help="YAML file with settings; flags win.")
            parameters.append(_parameter("config", Path | None, option))
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__doc__ = function.__doc__
        app.command(function.__name__.rstrip("_"), cls=_Command)(run)
        return function

    return register


def _options(kind: type[Settings], negatable: bool) -> list[inspect.Parameter]:
    """The settings as options; with a YAML file every switch can be turned off, too."""
    hints = typing.get_type_hints(kind)
    parameters = []
    for field in declared(kind):
        hint, about = hints[field.name], field.metadata
        if typing.get_origin(hint) is types.UnionType:
            hint = typing.get_args(hint)[0]
        # Paths and numbers stay the text that they are: `resolve` looks at them.
        several = typing.get_origin(hint) is tuple
        kept = hint if hint is bool else list[str] if several else str
        looks: dict[str, Any] = {
            "help": about["help"] + _shown(field.default),
            "metavar": about["argument"] or _METAVARS.get(hint),
            "rich_help_panel": about["heading"],
            "show_default": False,
        }
        if about["argument"]:
            needed = field.default is not None
            argument = typer.Argument(**looks)
            parameters.append(_parameter(field.name, kept | None, argument, needed))
            continue
        flag = "--" + field.name.replace("_", "-")
        if hint is bool and (field.default is True or negatable):
            flag += f"/--no-{flag[2:]}"
        short = [about["short"]] if about["short"] else []
        parameters.append(_parameter(field.name, kept | None, typer.Option(flag, *short, **looks)))
    return parameters


def _parameter(name: str, hint: Any, option: Any, needed: bool = False) -> inspect.Parameter:
    """An option that is None unless given, so that the YAML file may set it; or an argument."""
    kind = inspect.Parameter.KEYWORD_ONLY
    default = inspect.Parameter.empty if needed else None
    return inspect.Parameter(name, kind, default=default, annotation=Annotated[hint, option])


def _shown(default: Any) -> str:
    """How help names a default; a switch and an absent value need none."""
    nothing = default in (None, (), "", Path()) or isinstance(default, bool)
    return "" if nothing else f" [default: {default}]"


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn errors that the user can mend into one line and exit code 1."""
    # ptune shows its own progress; these would write over it.
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # of a connection that breaks
    try:
        yield
    except PTuneError as error:
        _let_the_first_speak()
        if _debug:
            raise
        raise _exit(error) from None
    except KeyboardInterrupt:
        _let_the_first_speak()
        if _debug:
            raise
        typer.echo("interrupted", err=True)
        raise typer.Exit(_INTERRUPTED) from None
    except BrokenPipeError:
        # Whoever read our output, such as `head`, has enough of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if _debug:
            raise
        raise _exit(OSError(reason_of(error)), "; check path, permissions and free space") from None


def _let_the_first_speak() -> None:
    """Where all processes have the same to say, torchrun ends the others when the first has."""
    if not is_first_process():
        time.sleep(_FIRST_SPEAKS)


def _exit(error: Exception, advice: str = "") -> typer.Exit:
    """Tell an error in a line, cut on purpose where it is too long to be read.

    What a user or a file has written stands in it and must not steer the terminal.
    """
    text = "".join(c if c == "\n" or c >= " " else repr(c)[1:-1] for c in str(error))
    if (more := len(text) - _MOST_SHOWN) > 0:
        half = _MOST_SHOWN // 2
        text = f"{text[:half]} ... ({more:,} characters more) ... {text[-half:]}"
    print(f"error: {text}{advice}", file=sys.stderr)
    return typer.Exit(1)


@contextmanager
def _importing() -> Iterator[None]:
    """Import without looking for garbage on the way, which takes a tenth of the time."""
    # transformers imports it where it is installed, and it complains of kernels nobody asked for.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


Settled = TypeVar("Settled", TrainSettings, EvalSettings)


def _in_processes(settings: Settled) -> Settled:
    """Start the processes that are asked for and end with their status; in these, go on."""
    if settings.gpus is None and settings.processes is None:
        return settings
    with _importing():
        from ptune.parallel.launch import check_started, launch, wanted_processes

    wanted = wanted_processes(settings.gpus, settings.processes, settings.device)
    if started_here():
        check_started(wanted)
        on_cpu = settings.processes is not None
        return dataclasses.replace(settings, device="cpu") if on_cpu else settings
    assert wanted is not None
    raise typer.Exit(launch(wanted, [*["--debug"] * _debug, *_given]))


@_command(TrainSettings, config_file=True)
def train(settings: TrainSettings) -> None:
    """Train a prefix, or a LoRA, on question-answer pairs; the model itself stays as it is."""
    settings = _in_processes(settings)
    with _importing():
        from ptune import views
        from ptune.training.train import train as run

    with views.TrainView() as view:
        result = run(settings, view)
    if not is_first_process():  # the launcher's status is that of the first, which has to speak
        return
    views.show_training(result)
    if result.stopped_by is not None:
        raise typer.Exit(_STOPPED + result.stopped_by)


@_command(TuneSettings)
def tune(settings: TuneSettings) -> None:
    """Try learning rate, length and start of a prefix in short runs, for `ptune train`."""
    with _importing():
        from ptune import views
        from ptune.commands.tune.run import tune as run

    logging.getLogger("optuna").setLevel(logging.WARNING)  # the view tells of the trials
    with views.TuneView() as view:
        result = run(settings, view)
    views.show_tuning(result)
    if result.stopped_by is not None:
        raise typer.Exit(_STOPPED + result.stopped_by)


@_command(EvalSettings)
def eval_(settings: EvalSettings) -> None:
    """Answer a development set, and score the answers with ROUGE and BLEU."""
    settings = _in_processes(settings)
    with _importing():
        from ptune import views
        from ptune.evaluation.evaluate import evaluate

    try:
        with views.ProgressView() as view:
            result = evaluate(settings, view)
    except KeyboardInterrupt:
        views.err.print("stopped; the same command goes on where it was")
        raise
    if result is not None:
        views.show_evaluation(result, settings.json)


@_command(PredictSettings)
def predict(settings: PredictSettings) -> None:
    """Answer files of questions of any number, on one machine or a Ray cluster."""
    with _importing():
        from ptune import views
        from ptune.commands.predict.run import predict as run

    try:
        with views.PredictView() as view:
            result = run(settings, view)
    except KeyboardInterrupt:
        views.err.print("stopped; the same command goes on where it was")
        raise
    views.show_predictions(result, settings.json)


@_command(ChatSettings)
def chat(settings: ChatSettings) -> None:
    """Talk with a model, with or without what was trained, or ask it one question."""
    with _importing():
        from ptune.commands.chat.run import run_chat

    run_chat(settings)


@_command(ServeSettings)
def serve(settings: ServeSettings) -> None:
    """Answer many clients at once over HTTP, each with the prefix that it names."""
    with _importing():
        from ptune.commands.serve import run_serve

    run_serve(settings)


@_command(MergeSettings)
def merge(settings: MergeSettings) -> None:
    """Write base model and prefix or LoRA as one folder in the model's own layout."""
    from ptune import views
    from ptune.checkpoint.base import find_base
    from ptune.checkpoint.folder import find_whole_checkpoint
    from ptune.commands.merge import folding_notice
    from ptune.commands.merge import merge as run
    from ptune.files.new_folder import check_new_folder

    checkpoint, passed_over = find_whole_checkpoint(settings.checkpoint)
    if passed_over:
        views.warn(passed_over)
    if notice := folding_notice(checkpoint, settings.quantization_bit):
        views.warn(notice)
    asked = (settings.model, checkpoint, settings.prompt_format)
    check_new_folder(settings.output, find_base(*asked, weights=False).path)
    base = find_base(*asked)
    with views.ProgressView("Looking at base model and checkpoint") as view:
        output = run(
            base,
            checkpoint,
            settings.output,
            settings.format,
            settings.max_shard_size,
            settings.quantization_bit,
            view.wrote,
        )
    typer.echo(f"merged model in {output}")


@_command(ExportSettings)
def export(settings: ExportSettings) -> None:
    """Write a prefix, or its base, for other programs: peft, the original's scripts."""
    from ptune import views
    from ptune.checkpoint.base import find_base, resolve_base
    from ptune.checkpoint.folder import find_whole_checkpoint
    from ptune.commands.export import export_base, export_prefix
    from ptune.files.new_folder import check_new_folder

    checkpoint = settings.checkpoint
    if checkpoint is not None:
        checkpoint, passed_over = find_whole_checkpoint(checkpoint)
        if passed_over:
            views.warn(passed_over)
    name = resolve_base(settings.model, checkpoint)
    base = find_base(name, checkpoint, settings.prompt_format)
    check_new_folder(settings.output, base.path)
    with views.working("Exporting"):
        if settings.format == "glm":
            output = export_base(base, settings.output)
        else:
            assert checkpoint is not None
            output = export_prefix(base, checkpoint, settings.output, settings.format)
    typer.echo(f"{settings.format} in {output}")


@_command(PreviewSettings)
def preview(settings: PreviewSettings) -> None:
    """Show what training sees: tokens, labels, lengths, and what is cut."""
    from ptune import views
    from ptune.commands.preview import Preview
    from ptune.data.examples import asked_last

    with views.working("Reading data"):
        shown = Preview(settings)
    if not settings.json:
        views.show_preview(shown, settings.records)
        return
    views.show_data_notices(shown.loaded.skipped, shown.loaded.notices)
    for index, (row, example) in enumerate(shown.examples()):
        line = {
            "index": index,
            "input_ids": example.input_ids,
            "labels": example.labels,
            "prompt": asked_last(row),
            "response": row["messages"][-1]["content"],
            "messages": row["messages"],
            "message_of_token": example.owners,
            "context_cut": example.context_cut and dataclasses.asdict(example.context_cut),
        }
        views.print_json_line(line)


@_command(ScoreSettings)
def score(settings: ScoreSettings) -> None:
    """Score a file of predictions that is there already."""
    from ptune import views
    from ptune.evaluation.metrics import mean_scores
    from ptune.evaluation.predictions import read_predictions

    scores = mean_scores(read_predictions(settings.file))
    if settings.json:
        views.print_json_line(scores.means)
        return
    views.show_scores(scores.means)
    typer.echo(f"{scores.samples} records, {scores.empty_predictions} empty predictions")


@_command(EstimateSettings)
def estimate(settings: EstimateSettings) -> None:
    """Say beforehand which memory training, chat and serving take, and what fits a card."""
    from ptune import views
    from ptune.commands.estimate import estimate as run

    views.show_estimate(run(settings), settings.json)


@_command(DoctorSettings)
def doctor(settings: DoctorSettings) -> None:
    """Examine machine, torch, cards and packages, and say what mends them."""
    from ptune import views
    from ptune.commands.doctor.check import Status, overall
    from ptune.commands.doctor.examine import examine

    with views.working("Examining"):
        checks = examine(settings)
    views.show_doctor(checks, settings.json)
    if overall(checks) is Status.FAILURE:
        raise typer.Exit(1)

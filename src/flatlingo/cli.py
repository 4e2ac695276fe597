"""The command line: `flatlingo trace | rank | train | sweep | status | calibrate | pretrain | notebook`."""

import json
import math
import os
import random
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from safetensors import SafetensorError
from typer.models import OptionInfo

from flatlingo.errors import FlatlingoError
from flatlingo.extras import missing
from flatlingo.files import refuse_unwritable, replacing
from flatlingo.randomness import LARGEST_SEED
from flatlingo.settings import validated
from flatlingo.study.condition import Condition
from flatlingo.study.families import FAMILIES
from flatlingo.study.presets import calibration_seeds, chosen_seeds, load_preset
from flatlingo.study.runspec import PLANS
from flatlingo.taskfiles import MINI, load_description

app = typer.Typer(
    help="Measure and regularise the trace of the Fisher information, Tr(F), of multilingual classifiers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _path(text: str) -> Path:
    """With the `~` of `--store=~/runs`, which a shell leaves as it is, in its meaning."""
    if not text:
        raise typer.BadParameter("it is empty; a variable that is not set?")
    return Path(text).expanduser()


def _path_option(about: str, *names: str) -> OptionInfo:
    return typer.Option(*names, parser=_path, metavar="PATH", help=about)


TASKS = "xnli, pawsx, mini-nli, mini-paraphrase, or a YAML file that describes a task of your own"
RowsTaskOption = Annotated[str | None, typer.Option("--task", help=TASKS)]
TaskOption = Annotated[str | None, typer.Option("--task", help=f"another task than the plan's: {TASKS}")]
RowsOption = Annotated[
    Path | None,
    _path_option("your own rows instead of a task: a .tsv or .jsonl with text_a and, for pairs, text_b", "--rows"),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        parser=lambda text: _path(text).resolve(),
        metavar="PATH",
        help="folder of rows in XTREME layout (xnli/dev-en.tsv, …); otherwise the Hub",
    ),
]
LanguageOption = Annotated[str | None, typer.Option(help="language of the task's rows; English by default")]
ExamplesOption = Annotated[
    int | None, typer.Option(min=2, help="only N rows, drawn at random, the same in every call; all by default")
]
BatchOption = Annotated[int, typer.Option(min=1, help="rows per batch; fewer need less memory")]
ProgressOption = Annotated[bool, typer.Option(help="show a progress bar, on the error stream")]
LengthOption = Annotated[int, typer.Option(min=8, help="longest input in pieces; longer ones are cut")]
PresetOption = Annotated[str, typer.Option(help="smoke, quick, mini, small, paper, xlmr, or a YAML file")]
CheckpointsOption = Annotated[
    float, typer.Option(min=0, help="minutes between checkpoints; a killed training resumes from the last one")
]
BoardOption = Annotated[
    Path | None,
    _path_option("also write the training logs for TensorBoard into this folder"),
]


class Output(StrEnum):
    """How `trace` and `rank` print their result."""

    table = "table"
    json = "json"
    csv = "csv"


OutputOption = Annotated[Output, typer.Option(help="a table for people, JSON or CSV for programs")]


SeedsOption = Annotated[int | None, typer.Option(min=1, help="how many seeds; by default as many as the preset plans")]
PretrainedOption = Annotated[str | None, typer.Option(help="pre-trained model to use instead of the preset's")]


PLAN_HELP = ", ".join(PLANS)


class Launcher(StrEnum):
    """Where a sweep computes."""

    local = "local"
    slurm = "slurm"


@app.command()
def trace(
    model: Annotated[str, typer.Argument(help="folder of a fine-tuned checkpoint, or its Hub id")],
    task: RowsTaskOption = None,
    rows: RowsOption = None,
    data: DataOption = None,
    language: LanguageOption = None,
    examples: ExamplesOption = None,
    max_length: LengthOption = 128,
    batch_size: BatchOption = 32,
    output: OutputOption = Output.table,
    progress: ProgressOption = True,
) -> None:
    """Exact Tr(F) of a checkpoint on a task's validation rows or on rows of your own, per module group."""
    _refuse_missing(model)
    texts, classes = _rows(task, rows, data, language, examples)
    result, _ = _trace(model, _classifier(model, classes), texts, max_length, batch_size, progress=progress)
    table = result.to_frame()
    if output is Output.json:
        summary = {"model": model, "examples": result.n, "trace": result.value, "standard_error": result.standard_error}
        typer.echo(_json(summary | {"groups": table.drop(index="all").to_dict("index")}))
    elif output is Output.csv:
        typer.echo(table.assign(model=model, examples=result.n).to_csv(), nl=False)
    else:
        typer.echo(f"Tr(F) = {result.value:.4g} ± {result.standard_error:.2g} nats², {result.n} examples")
        typer.echo(table.to_string(float_format="{:.4g}".format))


@app.command()
def rank(
    models: Annotated[list[str], typer.Argument(help="folders of fine-tuned checkpoints, or their Hub ids")],
    task: RowsTaskOption = None,
    rows: RowsOption = None,
    data: DataOption = None,
    language: LanguageOption = None,
    examples: ExamplesOption = None,
    max_length: LengthOption = 128,
    batch_size: BatchOption = 32,
    output: OutputOption = Output.table,
    progress: ProgressOption = True,
) -> None:
    """Order checkpoints by Tr(F), the flattest first, and tell how far to trust the order.

    "above" is the difference to the checkpoint above, paired by row, "low" to "high" its 95 % interval, "order" the
    share of resamples of the rows in which it is the sharper of the two. JSON and CSV hold the module groups.
    """
    if len({Path(model).resolve() if Path(model).exists() else model for model in models}) < len(models):
        raise FlatlingoError("a checkpoint is given twice; give each once")
    for model in models:
        _refuse_missing(model)
    from flatlingo.evaluation import comparison

    texts, classes = _rows(task, rows, data, language, examples)
    if len(texts) < 2:
        raise FlatlingoError("one row says nothing of an order; give two or more")
    for model in models[1:]:  # that none fails when others have been measured
        _classifier(model, classes)
    traces, sizes = {}, {}
    for number, model in enumerate(models, start=1):
        if progress:
            typer.echo(f"{model} ({number} of {len(models)})", err=True)
        loaded = _classifier(model, classes)
        traces[model], sizes[model] = _trace(model, loaded, texts, max_length, batch_size, progress=progress)
    if len(set(sizes.values())) > 1:
        parts = ", ".join(f"{model} {size:,}" for model, size in sizes.items())
        typer.echo(f"Tr(F) is over the trainable parameters, which differ in number: {parts}", err=True)
    table = comparison(traces)
    if output is Output.json:
        typer.echo(_json(table.reset_index().to_dict("records")))
    elif output is Output.csv:
        typer.echo(table.to_csv(), nl=False)
    else:
        shown = table[["trace", "standard_error", "above", "low", "high", "order"]]
        typer.echo(f"{len(texts)} examples")
        typer.echo(shown.rename_axis(None).to_string(float_format="{:.4g}".format, na_rep=""))
        if unsettled := list(table.index[table["order"] < SETTLED]):
            typer.echo(
                f"not settled against the one above: {', '.join(unsettled)}; measure on more rows, or call them even"
            )


SETTLED = 0.95  # the share of resamples from which on nothing is said


def _refuse_missing(source: str) -> None:
    """A path that does not exist is told before the libraries are loaded that would look for it on the Hub."""
    path = Path(source).expanduser()
    if (source.startswith((".", "/", "~")) or source.count("/") > 1) and not path.exists():
        raise FlatlingoError(
            f"{source}: no such folder; give a folder that holds config.json and model.safetensors, or a Hub id"
        )


def _rows(
    task: str | None, file: Path | None, data: Path | None, language: str | None, examples: int | None
) -> tuple[list[dict], int]:
    """The rows to measure on, a file's or a task's validation rows, and how many classes the task has; 0 if unknown."""
    if (task is None) == (file is None):
        raise FlatlingoError("say which rows to measure on: give --task, or a file of your own with --rows")
    if file is not None and (data or language):
        raise FlatlingoError("--data and --language are of a task's rows; leave them out with --rows")
    language = language or "en"
    if task is not None and task not in MINI:
        load_description(task)
    from flatlingo.rowfiles import read_rows
    from flatlingo.tasks import load_task

    if file is not None:
        return _drawn(read_rows(file), examples), 0
    loaded = load_task(task, data=data, languages=tuple(dict.fromkeys(("en", language))), train_size=0)
    return _drawn(list(loaded.rows(language, "validation")), examples), len(loaded.labels)


def _drawn(rows: list[dict], number: int | None) -> list[dict]:
    """Some of the rows, in their order: files of rows are often sorted, by genre as XNLI's."""
    if number is None or number >= len(rows):
        return rows
    return [rows[i] for i in sorted(random.Random(0).sample(range(len(rows)), number))]


def _classifier(model: str, classes: int):
    """The model and the tokenizer of a checkpoint that tells as many classes apart."""
    from flatlingo import models

    classifier, tokenizer = models.load_classifier(model)
    if classifier.config.num_labels < classes:
        raise FlatlingoError(f"{model} tells {classifier.config.num_labels} classes apart, the task has {classes}")
    return classifier, tokenizer


def _trace(model: str, loaded: tuple, rows: list[dict], max_length: int, batch_size: int, *, progress: bool):
    """Tr(F) of a checkpoint, and over how many parameters it is."""
    from flatlingo.devices import device
    from flatlingo.evaluation import trace_of_rows

    classifier, tokenizer = loaded
    try:
        found = trace_of_rows(
            classifier.to(device()), tokenizer, rows, max_length=max_length, batch_size=batch_size, progress=progress
        )
    except FlatlingoError as error:
        raise FlatlingoError(f"{model}: {error}") from error
    return found, sum(parameter.numel() for parameter in classifier.parameters() if parameter.requires_grad)


def _json(value) -> str:
    """JSON of numbers, with null for what is not one (the standard error of a single row)."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(value), indent=1, ensure_ascii=False)


@app.command()
def train(
    output: Annotated[
        Path,
        _path_option("folder for the fine-tuned checkpoint and its result.json; must not exist"),
    ],
    plan: Annotated[str, typer.Option(help=f"plan that sets task, sizes and measurements: {PLAN_HELP}")] = "nli",
    family: Annotated[str, typer.Option(help=f"one of {', '.join(FAMILIES)}")] = "none",
    weight: Annotated[
        float | None, typer.Option(help="weight of the regulariser, or its probability, radius, …")
    ] = None,
    preset: PresetOption = "mini",
    seed: Annotated[
        int, typer.Option(min=0, max=LARGEST_SEED, help="of rows, label noise, head and order of training")
    ] = 1,
    task: TaskOption = None,
    data: DataOption = None,
    model: PretrainedOption = None,
    checkpoint_minutes: CheckpointsOption = 5.0,
    tensorboard: BoardOption = None,
) -> None:
    """Fine-tune one model under one condition, evaluate it, and keep it. A killed call resumes when repeated.

    Only `sweep` runs second stages; it measures the adapted models and does not keep them. Under `accelerate launch -m
    flatlingo train` several processes or GPUs share each batch.
    """
    settings = load_preset(preset)
    settings.plan(plan)
    condition = _condition(family, weight)
    if model is not None:
        _refuse_missing(model)
    _refuse_existing(output)
    refuse_unwritable(output.parent, output)
    from flatlingo.devices import is_first_process, keep_memory
    from flatlingo.study.run import run
    from flatlingo.study.sources import Sources
    from flatlingo.watching import MinuteLines, tensorboard_in

    keep_memory()
    sources = Sources.of(settings, plan, model=model, task=task, data=data)
    spec = sources.specs(plan, settings, seeds=[seed])[0]
    setup = spec.setup.model_copy(update={"second_stage": None})
    spec = spec.model_copy(update={"condition": condition, "setup": setup})
    (config,) = sources.resolve([spec])
    sources.check(spec)
    boards = [tensorboard_in(tensorboard)] if tensorboard else []
    if tensorboard:
        refuse_unwritable(tensorboard, tensorboard)
    work = output.with_name(f".{output.name}.work")
    with _alone(work, output) if is_first_process() else nullcontext():
        finished = run(
            spec,
            sources,
            work=work / config.run_id,
            checkpoint_minutes=checkpoint_minutes,
            callbacks=[MinuteLines(), *boards],
        )
        if not is_first_process():
            return
        with replacing(output) as temporary:
            finished.model.save_pretrained(temporary)
            finished.tokenizer.save_pretrained(temporary)
            (temporary / "result.json").write_text(_json(finished.result) + "\n", encoding="utf-8")
        shutil.rmtree(work, ignore_errors=True)
    accuracies = ", ".join(f"{code} {100 * value:.1f} %" for code, value in finished.result["accuracy"].items())
    fitted = f"{100 * finished.result['train_accuracy']:.1f} % on the English rows it was trained on"
    typer.echo(f"accuracy: {accuracies}; {fitted}")
    typer.echo(
        "Tr(F) = {value:.4g} ± {standard_error:.2g} nats², {examples} examples".format(**finished.result["trace"])
    )


def _condition(family: str, weight: float | None) -> Condition:
    """A family at a weight, which every family needs that has one, and no other takes."""
    condition = validated(Condition, {"family": family, "weight": weight or 0.0}, "condition")
    row = FAMILIES[family]
    if row.weight and not weight:
        raise FlatlingoError(f"--family {family} needs a --weight above 0 ({row.weight}), as in {row.code}")
    return condition


@contextmanager
def _alone(work: Path, output: Path) -> Iterator[None]:
    """Refuse a second call that would train into the same folder, while the first one runs."""
    import filelock

    from flatlingo.study.locks import lock

    work.mkdir(exist_ok=True)
    try:
        with lock(work / "lock"):
            if os.path.lexists(output):  # another call has ended since this one began
                shutil.rmtree(work, ignore_errors=True)
            _refuse_existing(output)
            yield
    except filelock.Timeout:
        raise FlatlingoError(f"{output}: another call trains into this folder; wait for it, or give another") from None


def _refuse_existing(output: Path) -> None:
    if os.path.lexists(output):
        raise FlatlingoError(f"{output} exists; give a new folder")


@app.command()
def sweep(
    plan: Annotated[str, typer.Argument(help=PLAN_HELP)],
    store: Annotated[
        Path | None,
        _path_option("folder of finished runs (only what is missing is computed), or `recorded` for committed ones"),
    ] = None,
    preset: PresetOption = "mini",
    seeds: SeedsOption = None,
    task: TaskOption = None,
    data: DataOption = None,
    model: PretrainedOption = None,
    launcher: Annotated[
        Launcher, typer.Option(help="processes of this machine, or array jobs of SLURM")
    ] = Launcher.local,
    jobs: Annotated[int | None, typer.Option(min=1, help="runs at a time; one per core or GPU by default")] = None,
    time_limit: Annotated[int, typer.Option(min=1, help="minutes that a SLURM job may take")] = 240,
    checkpoint_minutes: CheckpointsOption = 5.0,
    tensorboard: BoardOption = None,
    discard_weights: Annotated[bool, typer.Option(help="do not keep the fine-tuned weights")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only tell what it will take, from timed steps")] = False,
) -> None:
    """Train the conditions of a plan that a store lacks, and print the table. Safe to kill and repeat."""
    load_preset(preset).plan(plan)
    folder = store.resolve() if store and str(store) != "recorded" else store and "recorded"
    if dry_run:
        from flatlingo.study.estimate import estimate

        typer.echo("timing what is missing, a few steps of each method …", err=True)
        typer.echo(estimate(plan, preset=preset, store=folder, seeds=seeds, task=task, data=data, model=model))
        return
    if store is None:
        raise FlatlingoError("give the folder of finished runs: --store DIR (or --dry-run to see what it will take)")
    if model is not None:
        _refuse_missing(model)
    if tensorboard:
        refuse_unwritable(tensorboard, tensorboard)
    from flatlingo.study.sweep import sweep

    table = sweep(
        plan,
        preset=preset,
        store=folder,
        seeds=seeds,
        task=task,
        data=data,
        model=model,
        launcher=launcher.value,
        jobs=jobs,
        time_limit=time_limit,
        keep_weights=not discard_weights,
        checkpoint_minutes=checkpoint_minutes,
        tensorboard=tensorboard and tensorboard.resolve(),
    )
    shown = table.drop(columns=["run_id", "plan", "task", "encoder", "family", "weight"])
    typer.echo(shown.dropna(axis=1, how="all").to_string(index=False, float_format="{:.3f}".format))


@app.command()
def status(
    store: Annotated[Path, typer.Argument(help="folder of finished runs")],
    plan: Annotated[str | None, typer.Argument(help=f"{PLAN_HELP}; all by default")] = None,
    preset: PresetOption = "mini",
    seeds: Annotated[int | None, typer.Option(min=1, help="how many seeds; by default all that were begun")] = None,
    task: TaskOption = None,
    data: DataOption = None,
    model: PretrainedOption = None,
) -> None:
    """Tell what a sweep has finished, what is running, failed or missing, and the time left.

    Covers the planned seeds and all others in the store but those of a calibration; --seeds N covers the first N.
    """
    settings = load_preset(preset)
    plans = [plan] if plan else list(settings.plans)
    for name in plans:
        settings.plan(name)
    if not store.is_dir():
        raise FlatlingoError(f"{store}: no such folder; give the --store of a sweep")
    from flatlingo.study import status
    from flatlingo.study.sources import Sources
    from flatlingo.study.store import Store

    runs = Store(store)
    for name in plans:
        sources = Sources.of(settings, name, model=model, task=task, data=data)
        begun = {*chosen_seeds(settings, name, None), *runs.seeds(name)} - calibration_seeds(settings, name)
        specs = sources.specs(name, settings, seeds or sorted(begun))
        table = status.status(sources.resolve(specs), runs)
        typer.echo(f"{name}: {status.summary(table)}")
        told = table[(table["state"] != "missing") & ((table["state"] != "finished") | (table["detail"] != ""))]
        for run in told.itertuples():
            typer.echo(f"  {run.run_id}  {run.state}  {run.detail}")
    if foreign := runs.foreign():
        typer.echo(f"neither a run nor the store's own, left alone: {', '.join(foreign)}")


@app.command()
def calibrate(
    plan: Annotated[str, typer.Argument(help="a plan whose preset has a calibration: nli, paraphrase, …")],
    store: Annotated[
        Path,
        _path_option("folder of finished runs; only what is missing from it is computed"),
    ],
    output: Annotated[Path, _path_option("CSV file for the runs and the weights found")],
    preset: PresetOption = "mini",
    task: TaskOption = None,
    data: DataOption = None,
    model: PretrainedOption = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="runs at a time; one per core or GPU by default")] = None,
) -> None:
    """Find the weights at which every family has 3/4, 1/2, 1/4 and 1/10 of the unregularised model's Tr(F).

    Uses seeds of its own, and looks at Tr(F) and the fit of the training rows alone. Prints the conditions for the
    preset.
    """
    load_preset(preset).plan(plan)
    if model is not None:
        _refuse_missing(model)
    if output.is_dir():
        raise FlatlingoError(f"{output} is a folder; give the name of a file, such as calibration.csv")
    refuse_unwritable(output.parent, output)
    from flatlingo.study import calibration

    found, weights = calibration.calibrate(
        plan,
        preset=preset,
        store=store.resolve(),
        task=task,
        data=data,
        model=model,
        jobs=jobs,
    )
    calibration.write(output, found, weights)
    typer.echo(found.to_string(index=False, float_format="{:.4g}".format))
    typer.echo(weights.to_string(index=False, float_format="{:.4g}".format))
    typer.echo(calibration.conditions(weights))


@app.command()
def pretrain(
    output: Annotated[
        Path,
        _path_option("folder for the encoder; an encoder that is there is replaced at the end"),
    ],
    texts: Annotated[list[Path] | None, typer.Argument(help="UTF-8 text files, one document per line")] = None,
    mini_world: Annotated[
        bool, typer.Option("--mini-world", help="the corpus of the mini world instead of files")
    ] = False,
    layers: Annotated[int, typer.Option(min=1, help="layers of the encoder")] = 4,
    hidden: Annotated[int, typer.Option(min=8, help="size of its hidden states")] = 128,
    heads: Annotated[int, typer.Option(min=1, help="attention heads of a layer")] = 4,
    vocabulary: Annotated[int, typer.Option(min=200, help="pieces of the WordPiece vocabulary")] = 1930,
    max_length: LengthOption = 128,
    epochs: Annotated[float, typer.Option(min=0.01, help="passes over the texts")] = 2.0,
    batch_size: Annotated[int, typer.Option(min=1, help="documents per batch")] = 32,
    learning_rate: Annotated[float, typer.Option(min=0, help="the highest, after the warm-up")] = 1e-3,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="of the weights, the masks and the order")] = 0,
    start: Annotated[
        Path | None,
        _path_option("an encoder of this command to go on from, instead of from scratch"),
    ] = None,
    claims: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="of the mini world's corpus: the share that is single claims said twice [0.6]"),
    ] = None,
) -> None:
    """Pre-train a small multilingual BERT; a killed call resumes when repeated."""
    if bool(texts) == mini_world:
        raise FlatlingoError("give text files, or --mini-world, and not both")
    if texts and claims is not None:
        raise FlatlingoError("--claims says what the mini world's corpus is made of; leave it out with text files")
    from flatlingo import miniencoder, pretraining

    refuse_unwritable(output.parent, output)
    settings = pretraining.Pretraining(
        layers, hidden, heads, vocabulary, max_length, epochs, batch_size, learning_rate, seed=seed
    )
    with redirect_stdout(sys.stderr):  # where the Trainer logs, for the facts are JSON
        if mini_world:
            share = miniencoder.CLAIMS if claims is None else claims
            facts = miniencoder.pretrain_mini_world(output, settings, start=start, claims=share)
        else:
            facts = pretraining.pretrain(
                pretraining.read_texts(texts),
                output,
                settings,
                description=", ".join(path.name for path in texts),
                start=start,
            )
    typer.echo(json.dumps(facts, indent=1))


@app.command()
def notebook(
    source: Annotated[Path, typer.Argument(help="a notebook of notebooks/")],
    output: Annotated[Path, typer.Argument(help="where the executed one goes")],
    parameter: Annotated[
        list[str] | None, typer.Option("-p", "--parameter", help="NAME=VALUE, as often as needed")
    ] = None,
) -> None:
    """Execute a notebook through papermill; unknown parameters are refused."""
    from flatlingo.notebooks import read_parameters, run_notebook

    parameters = read_parameters(parameter or [])
    typer.echo(f"{source} -> {output}")
    run_notebook(source, output, parameters, log=True)


def main() -> None:
    """Run the command line.

    Mistakes of the user end with a message and exit code 2, without a traceback; what the system refuses (a full disk)
    with exit code 1.
    """
    try:
        app()
    except (FlatlingoError, ModuleNotFoundError) as error:
        explained = error if isinstance(error, FlatlingoError) else missing(error)
        if explained is None:
            raise
        typer.echo(f"flatlingo: {explained}", err=True)
        sys.exit(2)
    except (OSError, SafetensorError) as error:
        typer.echo(
            f"flatlingo: {error}; mend this and repeat the call, which goes on from what it has stored", err=True
        )
        sys.exit(1)

"""The command line: `flatlingo trace | rank | train | sweep | status | pretrain | notebook`."""

import json
import math
import shutil
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
import yaml

from flatlingo.errors import FlatlingoError

app = typer.Typer(
    help="Measure and regularise the trace of the Fisher information, Tr(F), of multilingual classifiers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RowsTaskOption = Annotated[str | None, typer.Option("--task", help="xnli, pawsx, mini-nli or mini-paraphrase")]
RowsOption = Annotated[
    Path | None, typer.Option("--rows", help="instead of a task: a .tsv or .jsonl file with text_a and maybe text_b")
]
DataOption = Annotated[
    Path | None, typer.Option(help="folder of rows in XTREME layout (xnli/dev-en.tsv, …); otherwise the Hub")
]
LanguageOption = Annotated[str, typer.Option(help="language of the rows")]
ExamplesOption = Annotated[int | None, typer.Option(min=2, help="the first N validation rows only; all by default")]
BatchOption = Annotated[int, typer.Option(min=1, help="rows a batch; fewer need less memory")]
ProgressOption = Annotated[bool, typer.Option(help="show a progress bar, on the error stream")]
LengthOption = Annotated[int, typer.Option(min=8, help="longest input in pieces; longer ones are cut")]
PresetOption = Annotated[str, typer.Option(help="smoke, mini, paper, xlmr, or a YAML file")]
CheckpointsOption = Annotated[
    float, typer.Option(min=0, help="minutes between two checkpoints, from which a killed training goes on")
]
BoardOption = Annotated[Path | None, typer.Option(help="also write the training logs for TensorBoard into this folder")]


class Output(StrEnum):
    """How `trace` and `rank` print their result."""

    table = "table"
    json = "json"
    csv = "csv"


OutputOption = Annotated[Output, typer.Option(help="a table for people, JSON or CSV for programs")]


SeedsOption = Annotated[int | None, typer.Option(min=1, help="how many seeds; the preset's number by default")]
PretrainedOption = Annotated[str | None, typer.Option(help="another pre-trained model than the preset's")]


class Figure(StrEnum):
    """The figures a sweep can compute, and the study of all methods."""

    figure1 = "figure1"
    figure2 = "figure2"
    methods = "methods"
    beyond = "beyond"


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
    language: LanguageOption = "en",
    examples: ExamplesOption = None,
    max_length: LengthOption = 128,
    batch_size: BatchOption = 32,
    output: OutputOption = Output.table,
    progress: ProgressOption = True,
) -> None:
    """Exact Tr(F) of a checkpoint on a task's validation rows or on rows of your own, per module group."""
    result = _trace(model, _rows(task, rows, data, language, examples), max_length, batch_size, progress=progress)
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
    language: LanguageOption = "en",
    examples: ExamplesOption = None,
    max_length: LengthOption = 128,
    batch_size: BatchOption = 32,
    output: OutputOption = Output.table,
    progress: ProgressOption = True,
) -> None:
    """Order checkpoints by Tr(F) on the same rows, the flattest first; differences to it are paired by row."""
    from flatlingo.ranking import comparison

    if len(set(models)) < len(models):
        raise FlatlingoError("a checkpoint is given twice; give each once")
    texts = _rows(task, rows, data, language, examples)
    traces = {}
    for number, model in enumerate(models, start=1):
        if progress:
            typer.echo(f"{model} ({number} of {len(models)})", err=True)
        traces[model] = _trace(model, texts, max_length, batch_size, progress=progress)
    table = comparison(traces)
    if output is Output.json:
        typer.echo(_json(table.reset_index().to_dict("records")))
    elif output is Output.csv:
        typer.echo(table.to_csv(), nl=False)
    else:
        typer.echo(f"{len(texts)} examples")
        typer.echo(table.rename_axis(None).to_string(float_format="{:.4g}".format))


def _rows(task, file, data, language, examples) -> list[dict]:
    """The rows to measure on: a file's, or a task's validation rows."""
    from flatlingo.rowfiles import read_rows
    from flatlingo.tasks import load_task

    if (task is None) == (file is None):
        raise FlatlingoError("say which rows to measure on: give --task, or a file of your own with --rows")
    if file is not None:
        return read_rows(file)[:examples]
    languages = tuple(dict.fromkeys(("en", language)))
    return list(load_task(task, data=data, languages=languages).rows(language, "validation"))[:examples]


def _trace(model, rows, max_length, batch_size, *, progress):
    from flatlingo import hub, study
    from flatlingo.ranking import trace_of_rows

    classifier, tokenizer = hub.load_classifier(model)
    classes = 1 + max((row.get("label", 0) for row in rows), default=0)
    if classifier.config.num_labels < classes:
        raise FlatlingoError(f"{model} tells {classifier.config.num_labels} classes apart, the task has {classes}")
    return trace_of_rows(
        classifier.to(study.device()), tokenizer, rows, max_length=max_length, batch_size=batch_size, progress=progress
    )


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
        Path, typer.Option(help="folder for the fine-tuned checkpoint and its result.json; must not exist")
    ],
    figure: Annotated[Figure, typer.Option(help="whose study to train: task, sizes and measurements")] = Figure.figure1,
    family: Annotated[str, typer.Option(help="none, consistency, fisher_penalty, l2, … (see the presets)")] = "none",
    weight: Annotated[float, typer.Option(help="weight of the regulariser, or its probability, radius, …")] = 0.0,
    preset: PresetOption = "mini",
    seed: Annotated[int, typer.Option(min=0)] = 1,
    data: DataOption = None,
    model: PretrainedOption = None,
    checkpoint_minutes: CheckpointsOption = 5.0,
    tensorboard: BoardOption = None,
) -> None:
    """Fine-tune one model under one condition, evaluate it, and keep it. A killed call goes on when repeated.

    Under `accelerate launch -m flatlingo train` several processes or GPUs share each batch.
    """
    from accelerate import PartialState

    from flatlingo import experiment, study, watching
    from flatlingo.checkpoints import Checkpoints

    if output.exists():
        raise FlatlingoError(f"{output} exists; give a new folder")
    condition = experiment.validated(experiment.Condition, {"family": family, "weight": weight}, "condition")
    plan = experiment.plan(figure.value, experiment.load_preset(preset), seeds=[seed], data=data, model=model)
    config = plan[0].model_copy(update={"condition": condition})
    work = output.with_name(f".{output.name}.work")
    result, trained, tokenizer = study.run(
        config,
        data,
        checkpoints=Checkpoints(work / config.run_id, minutes=checkpoint_minutes),
        callbacks=[watching.MinuteLines(), *([watching.tensorboard(tensorboard)] if tensorboard else [])],
    )
    if not PartialState().is_main_process:
        return
    temporary = output.with_name(f".{output.name}.part")
    trained.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    (temporary / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    temporary.rename(output)
    shutil.rmtree(work, ignore_errors=True)
    accuracies = ", ".join(f"{language} {100 * value:.1f} %" for language, value in result["accuracy"].items())
    typer.echo(f"accuracy: {accuracies}; {100 * result['train_accuracy']:.1f} % on the English rows it was trained on")
    typer.echo("Tr(F) = {value:.4g} ± {standard_error:.2g} nats², {examples} examples".format(**result["trace"]))


@app.command()
def sweep(
    figure: Annotated[Figure, typer.Argument(help="figure1, figure2, methods or beyond")],
    store: Annotated[
        Path | None, typer.Option(help="folder of finished runs; only what is missing from it is computed")
    ] = None,
    preset: PresetOption = "mini",
    seeds: SeedsOption = None,
    data: DataOption = None,
    model: PretrainedOption = None,
    launcher: Annotated[
        Launcher, typer.Option(help="processes of this machine, or array jobs of SLURM")
    ] = Launcher.local,
    jobs: Annotated[int | None, typer.Option(min=1, help="runs at a time; one a core or GPU by default")] = None,
    time_limit: Annotated[int, typer.Option(min=1, help="minutes that a SLURM job may take")] = 240,
    checkpoint_minutes: CheckpointsOption = 5.0,
    tensorboard: BoardOption = None,
    discard_weights: Annotated[bool, typer.Option(help="do not keep the fine-tuned weights")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only tell what it will take, from timed steps")] = False,
) -> None:
    """Train every condition of a figure that a store lacks, and print the table. Kill it and call it again freely."""
    from flatlingo import estimate, sweeps

    if dry_run:
        typer.echo(estimate.estimate(figure.value, preset=preset, seeds=seeds, data=data, model=model))
        return
    if store is None:
        raise FlatlingoError("give the folder of finished runs: --store DIR (or --dry-run to see what it will take)")
    table = sweeps.sweep(
        figure.value,
        preset=preset,
        store=store.resolve(),
        seeds=seeds,
        data=data and data.resolve(),
        model=model,
        launcher=launcher.value,
        jobs=jobs,
        time_limit=time_limit,
        keep_weights=not discard_weights,
        checkpoint_minutes=checkpoint_minutes,
        tensorboard=tensorboard and tensorboard.resolve(),
    )
    typer.echo(table.drop(columns=["run_id", "family", "weight"]).to_string(index=False, float_format="{:.3f}".format))


@app.command()
def status(
    store: Annotated[Path, typer.Argument(help="folder of finished runs")],
    figure: Annotated[Figure | None, typer.Argument(help="figure1, figure2, methods or beyond; all by default")] = None,
    preset: PresetOption = "mini",
    seeds: SeedsOption = None,
    data: DataOption = None,
    model: PretrainedOption = None,
) -> None:
    """Tell what a sweep has finished, what is running, failed or missing, and the time left."""
    from flatlingo import experiment, status
    from flatlingo.store import Store

    if not store.is_dir():
        raise FlatlingoError(f"{store}: no such folder; give the --store of a sweep")
    runs, settings = Store(store), experiment.load_preset(preset)
    for name in [figure.value] if figure else settings.plans:
        table = status.status(experiment.plan(name, settings, seeds=seeds, data=data, model=model), runs)
        typer.echo(f"{name}: {status.summary(table)}")
        told = table[(table["state"] != "missing") & ((table["state"] != "finished") | (table["detail"] != ""))]
        for run in told.itertuples():
            typer.echo(f"  {run.run_id}  {run.state}  {run.detail}")
    if foreign := runs.foreign():
        typer.echo(f"neither a run nor the store's own, left alone: {', '.join(foreign)}")


@app.command()
def pretrain(
    output: Annotated[
        Path, typer.Option(help="folder for the encoder; an encoder that is there is replaced at the end")
    ],
    texts: Annotated[list[Path] | None, typer.Argument(help="UTF-8 text files, one document a line")] = None,
    mini_world: Annotated[
        bool, typer.Option("--mini-world", help="the corpus of the mini world instead of files")
    ] = False,
    layers: Annotated[int, typer.Option(min=1)] = 4,
    hidden: Annotated[int, typer.Option(min=8)] = 128,
    heads: Annotated[int, typer.Option(min=1)] = 4,
    vocabulary: Annotated[int, typer.Option(min=200, help="pieces of the WordPiece vocabulary")] = 2400,
    max_length: LengthOption = 128,
    epochs: Annotated[float, typer.Option(min=0.01)] = 2.0,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    learning_rate: Annotated[float, typer.Option(min=0)] = 1e-3,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    start: Annotated[
        Path | None, typer.Option(help="an encoder of this command to go on from, instead of from scratch")
    ] = None,
    claims: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="of the mini world's corpus: the share that is single claims said twice [0.6]"),
    ] = None,
) -> None:
    """Pre-train a small multilingual BERT; a killed call resumes when repeated."""
    from flatlingo import pretraining

    if bool(texts) == mini_world:
        raise FlatlingoError("give text files, or --mini-world, and not both")
    if texts and claims is not None:
        raise FlatlingoError("--claims says what the mini world's corpus is made of; leave it out with text files")
    settings = pretraining.Pretraining(
        layers, hidden, heads, vocabulary, max_length, epochs, batch_size, learning_rate, seed=seed
    )
    if mini_world:
        share = pretraining.CLAIMS if claims is None else claims
        facts = pretraining.pretrain_mini_world(output, settings, start=start, claims=share)
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
    from flatlingo.notebooks import run_notebook

    pairs = [text.partition("=") for text in parameter or []]
    for name, equals, _ in pairs:
        if not equals:
            raise FlatlingoError(f"parameter {name!r} has no value; write -p {name}=VALUE")
    typer.echo(f"{source} -> {output}")
    run_notebook(source, output, {name: yaml.safe_load(value) for name, _, value in pairs}, log=True)


def main() -> None:
    """Run the command line; mistakes of the user end with a message and exit code 2, without a traceback."""
    try:
        app()
    except FlatlingoError as error:
        typer.echo(f"flatlingo: {error}", err=True)
        sys.exit(2)

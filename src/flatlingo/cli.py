"""The command line: `flatlingo trace | rank | train | sweep | pretrain | notebook`."""

import json
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

TaskOption = Annotated[str, typer.Option(help="xnli, pawsx, mini-nli or mini-paraphrase")]
DataOption = Annotated[
    Path | None, typer.Option(help="folder of rows in XTREME layout (xnli/dev-en.tsv, …); otherwise the Hub")
]
LanguageOption = Annotated[str, typer.Option(help="language of the rows")]
ExamplesOption = Annotated[int | None, typer.Option(min=2, help="the first N validation rows only; all by default")]
LengthOption = Annotated[int, typer.Option(min=8, help="longest input in pieces; longer ones are cut")]
PresetOption = Annotated[str, typer.Option(help="smoke, mini, paper, or a YAML file")]


class Figure(StrEnum):
    """The figures a sweep can compute."""

    figure1 = "figure1"
    figure2 = "figure2"


@app.command()
def trace(
    model: Annotated[str, typer.Argument(help="folder of a fine-tuned checkpoint, or its Hub id")],
    task: TaskOption,
    data: DataOption = None,
    language: LanguageOption = "en",
    examples: ExamplesOption = None,
    max_length: LengthOption = 128,
) -> None:
    """Exact Tr(F) of a checkpoint on validation rows, with its standard error, per module group."""
    result = _trace(model, task, data, language, examples, max_length, progress=True)
    typer.echo(result)
    typer.echo(result.to_frame().to_string(float_format="{:.4g}".format))


@app.command()
def rank(
    models: Annotated[list[str], typer.Argument(help="folders of fine-tuned checkpoints")],
    task: TaskOption,
    data: DataOption = None,
    language: LanguageOption = "en",
    examples: ExamplesOption = None,
    max_length: LengthOption = 128,
) -> None:
    """Order checkpoints by Tr(F) on the same rows, the flattest first."""
    import pandas as pd

    traces = {model: _trace(model, task, data, language, examples, max_length) for model in models}
    table = pd.DataFrame(
        {"trace": {name: t.value for name, t in traces.items()}, "se": {n: t.standard_error for n, t in traces.items()}}
    ).sort_values("trace")
    # On the same rows the difference of two traces is known better than each of them.
    best = traces[table.index[0]].per_example
    differences = pd.DataFrame({name: t.per_example - best for name, t in traces.items()})
    table["above first"] = differences.mean()
    table["se of that"] = differences.sem()
    typer.echo(table.to_string(float_format="{:.4g}".format))


def _trace(model, task, data, language, examples, max_length, *, progress=False):
    from flatlingo import hub, study
    from flatlingo.tasks import load_task

    rows = load_task(task, data=data, languages=tuple(dict.fromkeys(("en", language)))).rows(language, "validation")
    classifier, tokenizer = hub.load_classifier(model)
    classes = len(set(rows["label"]))
    if classifier.config.num_labels < classes:
        raise FlatlingoError(f"{model} tells {classifier.config.num_labels} classes apart, {task} has {classes}")
    return study.trace_of(
        classifier.to(study.device()), tokenizer, rows, max_length=max_length, examples=examples, progress=progress
    )


@app.command()
def train(
    output: Annotated[
        Path, typer.Option(help="folder for the fine-tuned checkpoint and its result.json; must not exist")
    ],
    figure: Annotated[Figure, typer.Option(help="whose study to train: task, sizes and measurements")] = Figure.figure1,
    family: Annotated[str, typer.Option(help="none, consistency, fisher_penalty, l2, l2_sp or dropout")] = "none",
    weight: Annotated[float, typer.Option(help="weight of the regulariser; the probability for dropout")] = 0.0,
    preset: PresetOption = "mini",
    seed: Annotated[int, typer.Option(min=0)] = 1,
    data: DataOption = None,
    model: Annotated[str | None, typer.Option(help="another pre-trained model than the preset's")] = None,
) -> None:
    """Fine-tune one model under one condition, evaluate it, and keep it."""
    from flatlingo import experiment, study

    if output.exists():
        raise FlatlingoError(f"{output} exists; give a new folder")
    condition = experiment.validated(experiment.Condition, {"family": family, "weight": weight}, "condition")
    plan = experiment.plan(figure.value, experiment.load_preset(preset), seeds=[seed], data=data, model=model)
    config = plan[0].model_copy(update={"condition": condition})
    result, trained, tokenizer = study.run(config, data)
    temporary = output.with_name(f".{output.name}.part")
    trained.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    (temporary / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    temporary.rename(output)
    typer.echo(json.dumps({name: result[name] for name in ("accuracy", "train_accuracy", "trace")}, indent=1))


@app.command()
def sweep(
    figure: Annotated[Figure, typer.Argument(help="figure1 or figure2")],
    store: Annotated[Path, typer.Option(help="folder of finished runs; only what is missing from it is computed")],
    preset: PresetOption = "mini",
    seeds: Annotated[int | None, typer.Option(min=1, help="how many seeds; the preset's number by default")] = None,
    data: DataOption = None,
    model: Annotated[str | None, typer.Option(help="another pre-trained model than the preset's")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="runs at a time; one a core or GPU by default")] = None,
    discard_weights: Annotated[bool, typer.Option(help="do not keep the fine-tuned weights")] = False,
) -> None:
    """Train every condition of a figure that a store lacks, and print the table."""
    from flatlingo import sweeps

    table = sweeps.sweep(
        figure.value,
        preset=preset,
        store=store.resolve(),
        seeds=seeds,
        data=data and data.resolve(),
        model=model,
        jobs=jobs,
        keep_weights=not discard_weights,
    )
    typer.echo(table.drop(columns=["run_id", "family", "weight"]).to_string(index=False, float_format="{:.3f}".format))


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
) -> None:
    """Pre-train a small multilingual BERT from scratch; a killed call resumes when repeated."""
    from flatlingo import pretraining

    if bool(texts) == mini_world:
        raise FlatlingoError("give text files, or --mini-world, and not both")
    settings = pretraining.Pretraining(
        layers, hidden, heads, vocabulary, max_length, epochs, batch_size, learning_rate, seed=seed
    )
    if mini_world:
        facts = pretraining.pretrain_mini_world(output, settings)
    else:
        facts = pretraining.pretrain(
            pretraining.read_texts(texts), output, settings, description=", ".join(path.name for path in texts)
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

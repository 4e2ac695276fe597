"""Widgets on the recorded results, and a small training to watch; every picture they show can be had as a figure."""

import io
import json
from collections.abc import Callable

import ipywidgets as widgets
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from transformers import TrainerCallback

from flatlingo import evaluation, models
from flatlingo.encoding import batches
from flatlingo.fisher import fisher_trace
from flatlingo.regularizers import FisherPenalty, SubwordConsistency
from flatlingo.report.drawing import LANGUAGES
from flatlingo.report.explore_figures import live_figure, run_figure
from flatlingo.report.shapes import zero_shot_rows
from flatlingo.study.families import FAMILIES
from flatlingo.study.presets import load_preset
from flatlingo.study.runspec import RunConfig
from flatlingo.study.store import open_store
from flatlingo.study.sweep import sweep
from flatlingo.tasks import load_task
from flatlingo.training import finetune

PLANS = {"language inference": "nli", "paraphrases": "paraphrase"}
TRAINED = ("consistency", "fisher_penalty")
EVERY = "every family"
ROWS = 160  # of a training to watch
SEED = 1  # of everything random in it


class Runs:
    """The finished runs of a plan: their table, configurations and results.

    Args:
        plan: "nli", "paraphrase", …
        preset: whose runs.
        store: "recorded", or a folder of finished runs.
        seeds: how many seeds; as many as are planned by default.
        data: folder of the rows they were trained on, as for `sweep`.

    Raises:
        FlatlingoError: as `sweep`.
    """

    def __init__(
        self,
        plan: str,
        *,
        preset: str = "mini",
        store: str = "recorded",
        seeds: int | None = None,
        data: str | None = None,
    ):
        table = sweep(plan, preset=preset, store=store, seeds=seeds, data=data)
        self._runs = open_store(store, load_preset(preset).name)
        self.configs = {run_id: self._config(run_id) for run_id in table["run_id"].unique()}
        self.two_stages = "adapted" in table
        self.table = table if self.two_stages else zero_shot_rows(table)

    def _config(self, run_id: str) -> RunConfig:
        return RunConfig.model_validate_json((self._runs.folder / run_id / "config.json").read_bytes())

    def rows(self, family: str, language: str) -> pd.DataFrame:
        """The runs of a family (or `EVERY`) from flat to sharp, with column `accuracy`: what to draw for a language.

        That is English validation accuracy, or the zero-shot one of another language; after a second stage, the
        accuracy it reached.
        """
        english = language == "en"
        rows = self.table.drop_duplicates("run_id") if english else self.table[self.table["language"] == language]
        rows = rows if family == EVERY else rows[rows["family"] == family]
        column = "english_accuracy" if english else "adapted" if self.two_stages else "zero_shot"
        return rows.assign(accuracy=rows[column]).sort_values("trace")

    def words(self, language: str) -> str:
        """What column `accuracy` of `rows` is, in words."""
        kind = (
            "validation accuracy"
            if language == "en"
            else "adapted accuracy"
            if self.two_stages
            else "zero-shot accuracy"
        )
        return f"{LANGUAGES.get(language, language)} {kind}"

    def result(self, run_id: str) -> dict:
        """The `result.json` of a run."""
        return self._runs.result(self.configs[run_id])

    def figure(self, run_id: str, family: str = EVERY, language: str = "en") -> Figure:
        """One run among the others, see `explore_figures.run_figure`."""
        result = self.result(run_id)
        groups, history = result["trace"]["groups"], result.get("history", [])
        rows, words = self.rows(family, language), self.words(language)
        return run_figure(rows, run_id, "accuracy", words=words, history=history, groups=groups)

    def describe(self, run_id: str) -> str:
        """The configuration of a run with what tells its encoder and rows from others, as indented JSON."""
        return json.dumps(self.configs[run_id].model_dump(mode="json"), indent=1)


def explorer(plans: dict[str, Runs]) -> widgets.VBox:
    """Pick a plan, a family and a language; the slider goes through the runs from flat to sharp.

    Below: the run among the others, its training curve, its Tr(F) by module group, and its configuration.
    """
    some = next(iter(plans.values()))
    found = dict.fromkeys(name for runs in plans.values() for name in runs.table["family"])
    names = {EVERY: EVERY} | {FAMILIES[name].title: name for name in found}
    plan = widgets.Dropdown(options=list(plans.items()), description="plan")
    chosen = widgets.Dropdown(options=list(names.items()), description="family")
    codes = ["en", *dict.fromkeys(some.table["language"])]
    language = widgets.Dropdown(options=[(LANGUAGES.get(code, code), code) for code in codes], description="language")
    run = widgets.SelectionSlider(
        options=[""], description="flat → sharp", continuous_update=False, layout=widgets.Layout(width="32em")
    )
    picture, text = widgets.Image(format="png"), widgets.HTML()

    def refill(_=None):
        rows = plan.value.rows(chosen.value, language.value).drop_duplicates("run_id")
        options = [(f"{row.label}, seed {row.seed}", row.run_id) for row in rows.itertuples()]
        kept = run.value if run.value in rows["run_id"].to_numpy() else None
        run.unobserve(draw, "value")  # new options change the value, and to draw takes a second
        run.options = options or [("no run of this family", "")]
        run.value = kept or run.options[0][1]
        run.observe(draw, "value")
        draw()

    def draw(_=None):
        if run.value:
            picture.value = _png(plan.value.figure(run.value, chosen.value, language.value))
            result = plan.value.result(run.value)
            trace = result["trace"]
            text.value = (
                f"<b>{run.value}</b>: Tr(F) = {trace['value']:.4g} ± {trace['standard_error']:.2g}, English accuracy "
                f"{result['accuracy']['en']:.1%}<details><summary>configuration</summary>"
                f"<pre>{plan.value.describe(run.value)}</pre></details>"
            )

    run.observe(draw, "value")
    for chooser in (plan, chosen, language):
        chooser.observe(refill, "value")
    refill()
    return widgets.VBox([widgets.HBox([plan, chosen, language]), run, picture, text])


class _Watcher(TrainerCallback):
    """Measures the model at the start and after each epoch."""

    def __init__(self, measure: Callable[[int], None]):
        self.measure = measure

    def on_train_begin(self, args, state, control, **kwargs):
        self.measure(0)

    def on_epoch_end(self, args, state, control, **kwargs):
        self.measure(round(state.epoch))


def train_and_watch(
    *,
    weight: float,
    noise: float,
    family: str = "consistency",
    epochs: int = 4,
    watch: Callable[[pd.DataFrame], None] = lambda curve: None,
) -> pd.DataFrame:
    """Fine-tune mini-mbert on `ROWS` English rows of mini-paraphrase, measuring accuracy and Tr(F) after each epoch.

    It takes about ten seconds of one core, or twice that.

    Args:
        weight: λ of the regulariser; 0 for none.
        noise: share of the training labels that is redrawn.
        family: "consistency" or "fisher_penalty".
        epochs: passes over the rows.
        watch: called after each measurement with the curve so far.

    Returns:
        One row per epoch: `epoch`, `accuracy` on 1,000 clean validation rows (0..1; its standard error is at most 1.6
        points), `trace` over 64 of them (nats²).
    """
    tokenizer = models.load_tokenizer("mini-mbert")
    task = load_task(
        "mini-paraphrase", languages=("en",), train_size=ROWS, validation_size=1000, seed=SEED, label_noise=noise
    )
    model = models.load_model("mini-mbert", len(task.labels), seed=SEED)
    validation = task.rows("en", "validation")
    traced = batches(tokenizer, validation.select(range(64)), max_length=128, batch_size=evaluation.TRACE_BATCH)
    consistency = SubwordConsistency(tokenizer, weight=weight, mode="clean")  # as the recorded runs have it
    term = consistency if family == "consistency" else FisherPenalty(weight=weight)
    measured: list[dict] = []

    def measure(epoch: int) -> None:
        with evaluation.evaluating(model):
            accuracy = evaluation.accuracy(model, tokenizer, validation, max_length=128)
            trace = fisher_trace(model, traced).value
        measured.append({"epoch": epoch, "accuracy": accuracy, "trace": trace})
        watch(pd.DataFrame(measured))

    finetune(
        model,
        tokenizer,
        task.rows("en", "train"),
        regularizers=[term],
        seed=SEED,
        epochs=epochs,
        batch_size=16,
        learning_rate=5e-4,
        max_length=128,
        callbacks=[_Watcher(measure)],
    )
    return pd.DataFrame(measured)


def live_panel(**settings) -> widgets.VBox:
    """Sliders for λ and the label noise, and a button that trains anew and redraws after each epoch.

    The last curve stays for comparison. Keyword arguments go to `train_and_watch`.
    """
    chosen = widgets.Dropdown(options=[(FAMILIES[name].title, name) for name in TRAINED], description="family")
    weight = widgets.FloatSlider(
        value=0, min=0, max=5, step=0.1, description="λ", continuous_update=False, tooltip="Fisher penalty: λ/1000"
    )
    noise = widgets.FloatSlider(
        value=0.2, min=0, max=0.5, step=0.05, description="label noise", continuous_update=False
    )
    button = widgets.Button(description="train", button_style="primary")
    picture, state = widgets.Image(format="png"), widgets.Label("choose λ and noise, and train")
    last: dict[str, pd.DataFrame] = {}

    def train(_):
        scale = 1 if chosen.value == "consistency" else 1e-3
        name = f"{FAMILIES[chosen.value].title}, λ = {scale * weight.value:g}, noise {noise.value:.0%}"
        before = {f"before: {old}": curve for old, curve in last.items()}

        def watch(curve):
            state.value = f"{name}: epoch {curve['epoch'].iloc[-1]}, Tr(F) {curve['trace'].iloc[-1]:.3g}"
            picture.value = _png(live_figure({**before, name: curve}))

        curve = train_and_watch(
            weight=scale * weight.value, noise=noise.value, family=chosen.value, watch=watch, **settings
        )
        last.clear()
        last[name] = curve
        state.value += " – done"

    button.on_click(train)
    return widgets.VBox([widgets.HBox([chosen, weight, noise]), widgets.HBox([button, state]), picture])


def _png(figure: Figure) -> bytes:
    """The figure as PNG, closed."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    plt.close(figure)
    return drawn.getvalue()

"""Widgets on the recorded results, and a small training to watch; every picture they show can be had as a figure."""

import io
import json
import tempfile
from collections.abc import Callable

import ipywidgets as widgets
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from flatlingo import comparisons, evaluation, experiment, hub
from flatlingo.figures import FAMILIES, LANGUAGES, live_figure, run_figure
from flatlingo.fisher import fisher_trace
from flatlingo.regularizers import FisherPenalty, SubwordConsistency
from flatlingo.store import open_store
from flatlingo.sweeps import sweep
from flatlingo.tasks import load_task
from flatlingo.training import RegularizedTrainer, own_randomness

PLANS = {"one stage (figure 1)": "figure1", "two stages (figure 2)": "figure2"}
EVERY = "every family"


class Runs:
    """The finished runs of a plan: their table, configurations and results.

    Args:
        plan: "figure1", "figure2", …
        preset: whose runs.
        store: "recorded", or a folder of finished runs.
        seeds: how many seeds; the preset's number by default.

    Raises:
        FlatlingoError: as `sweep`.
    """

    def __init__(self, plan: str, *, preset: str = "mini", store: str = "recorded", seeds: int | None = None):
        table = sweep(plan, preset=preset, store=store, seeds=seeds)
        settings = experiment.load_preset(preset)
        self.configs = {config.run_id: config for config in experiment.plan(plan, settings, seeds=seeds)}
        self._runs = open_store(store, settings.name)
        self.two_stages = "adapted" in table
        self.table = table if self.two_stages else comparisons.zero_shot_rows(table)

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

    def result(self, run_id: str) -> dict:
        """What was recorded of a run."""
        return self._runs.result(self.configs[run_id])

    def figure(self, run_id: str, family: str = EVERY, language: str = "en") -> Figure:
        """One run among the others, see `figures.run_figure`."""
        result = self.result(run_id)
        groups, history = result["trace"]["groups"], result.get("history", [])
        return run_figure(self.rows(family, language), run_id, "accuracy", history=history, groups=groups)

    def describe(self, run_id: str) -> str:
        """The configuration of a run, as indented JSON without the fingerprints."""
        config = self.configs[run_id].model_dump(mode="json", exclude={"data", "model_sha256"})
        return json.dumps(config, indent=1)


def explorer(plans: dict[str, Runs]) -> widgets.VBox:
    """Pick a task, a family and a language; the slider goes through the runs from flat to sharp.

    Below: the run among the others, its training curve, its Tr(F) by module group, and its configuration.
    """
    some = next(iter(plans.values()))
    names = {EVERY: EVERY} | {look.name: family for family, look in FAMILIES.items()}
    plan = widgets.Dropdown(options=list(plans.items()), description="study")
    family = widgets.Dropdown(options=list(names.items()), description="family")
    codes = ["en", *dict.fromkeys(some.table["language"])]
    language = widgets.Dropdown(options=[(LANGUAGES.get(code, code), code) for code in codes], description="language")
    run = widgets.SelectionSlider(
        options=[""], description="flat → sharp", continuous_update=False, layout=widgets.Layout(width="32em")
    )
    picture, text = widgets.Image(format="png"), widgets.HTML()

    def refill(_=None):
        rows = plan.value.rows(family.value, language.value).drop_duplicates("run_id")
        options = [(f"{row.label}, seed {row.seed}", row.run_id) for row in rows.itertuples()]
        kept = run.value if run.value in rows["run_id"].to_numpy() else None
        run.options = options or [("no run of this family", "")]
        run.value = kept or run.options[0][1]
        draw()

    def draw(_=None):
        if run.value:
            picture.value = _png(plan.value.figure(run.value, family.value, language.value))
            result = plan.value.result(run.value)
            trace = result["trace"]
            text.value = (
                f"<b>{run.value}</b>: Tr(F) = {trace['value']:.4g} ± {trace['standard_error']:.2g}, English accuracy "
                f"{result['accuracy']['en']:.1%}<details><summary>configuration</summary>"
                f"<pre>{plan.value.describe(run.value)}</pre></details>"
            )

    for chooser in (plan, family, language):
        chooser.observe(refill, "value")
    run.observe(draw, "value")
    refill()
    return widgets.VBox([widgets.HBox([plan, family, language]), run, picture, text])


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
    rows: int = 160,
    epochs: int = 4,
    seed: int = 1,
    watch: Callable[[pd.DataFrame], None] = lambda curve: None,
) -> pd.DataFrame:
    """Fine-tune mini-mbert on English for a few seconds, measuring accuracy and Tr(F) after each epoch.

    Args:
        weight: λ of the regulariser; 0 for none.
        noise: share of the training labels that is redrawn.
        family: "consistency" or "fisher_penalty".
        rows: training rows of mini-paraphrase.
        epochs: passes over them.
        seed: of everything random.
        watch: called after each measurement with the curve so far.

    Returns:
        A row an epoch: `epoch`, `accuracy` on 100 clean validation rows (0..1), `trace` over 32 of them (nats²).
    """
    tokenizer = hub.load_tokenizer("mini-mbert")
    task = load_task(
        "mini-paraphrase", languages=("en",), train_size=rows, validation_size=100, seed=seed, label_noise=noise
    )
    model = hub.load_model("mini-mbert", len(task.labels), seed=seed)
    validation = task.rows("en", "validation")
    batches = evaluation.batches(tokenizer, validation.select(range(32)), max_length=64, batch_size=32)
    term = SubwordConsistency(tokenizer, weight=weight) if family == "consistency" else FisherPenalty(weight=weight)
    measured: list[dict] = []

    def measure(epoch: int) -> None:
        accuracy = evaluation.accuracy(model, tokenizer, validation, max_length=64)
        model.eval()
        measured.append({"epoch": epoch, "accuracy": accuracy, "trace": fisher_trace(model, batches).value})
        model.train()
        watch(pd.DataFrame(measured))

    with tempfile.TemporaryDirectory(prefix="flatlingo-") as scratch, own_randomness():
        args = TrainingArguments(
            output_dir=scratch,
            seed=seed,
            num_train_epochs=epochs,
            per_device_train_batch_size=16,
            learning_rate=5e-4,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = RegularizedTrainer(
            model=model,
            args=args,
            train_dataset=task.rows("en", "train"),
            processing_class=tokenizer,
            regularizers=[term],
            callbacks=[_Watcher(measure)],
            max_length=64,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return pd.DataFrame(measured)


def live_panel(**settings) -> widgets.VBox:
    """Sliders for λ and the label noise, and a button that trains anew and redraws after each epoch.

    The last curve stays for comparison. Keyword arguments go to `train_and_watch`.
    """
    family = widgets.Dropdown(
        options=[("consistency", "consistency"), ("Fisher penalty", "fisher_penalty")], description="family"
    )
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
        scale = 1 if family.value == "consistency" else 1e-3
        name = f"{FAMILIES[family.value].name}, λ = {scale * weight.value:g}, noise {noise.value:.0%}"
        before = {f"before: {old}": curve for old, curve in last.items()}

        def watch(curve):
            state.value = f"{name}: epoch {curve['epoch'].iloc[-1]}, Tr(F) {curve['trace'].iloc[-1]:.3g}"
            picture.value = _png(live_figure({**before, name: curve}))

        curve = train_and_watch(
            weight=scale * weight.value, noise=noise.value, family=family.value, watch=watch, **settings
        )
        last.clear()
        last[name] = curve
        state.value += " – done"

    button.on_click(train)
    return widgets.VBox([widgets.HBox([family, weight, noise]), widgets.HBox([button, state]), picture])


def _png(figure: Figure) -> bytes:
    """The figure as PNG, closed."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    plt.close(figure)
    return drawn.getvalue()

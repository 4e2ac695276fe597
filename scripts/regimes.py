"""Whether preset mini's sizes make the unregularised model overfit and leave a transfer gap, on seeds of their own.

Trains both plans without a regulariser on seeds 101 to 105, plan nli also without label noise and with early stopping
on rows kept aside (a tenth of a larger set, so that as many are trained on; every epoch is waited for and that of the
lowest loss kept), and writes `data/recorded/mini-regimes.csv`. `python scripts/regimes.py` repeats it; what is finished
is kept in build/regimes.
"""

import pandas as pd

from flatlingo.files import MINI_MBERT, RECORDED, ROOT, replacing
from flatlingo.hub import provenance
from flatlingo.report.regimes import regime
from flatlingo.study.condition import Condition
from flatlingo.study.presets import load_preset
from flatlingo.study.runspec import RunSpec
from flatlingo.study.setup import Measurement
from flatlingo.study.store import open_store
from flatlingo.study.sweep import Computing, tabulated

SEEDS = [101, 102, 103, 104, 105]
MEASUREMENT = Measurement(trace_examples=1000)
COLUMNS = ["english_accuracy", "accuracy_de", "accuracy_es", "accuracy_zh", "zero_shot_accuracy"]
COLUMNS += ["train_accuracy", "clean_train_accuracy", "noisy_fitted", "trace", "seconds"]


def variants(spec: RunSpec) -> dict[str, RunSpec]:
    """The unregularised model of a plan and what it is compared with; none of them has a second stage."""
    setup = spec.setup.model_copy(update={"second_stage": None, "measurement": MEASUREMENT})
    plain = spec.model_copy(update={"setup": setup})
    if spec.plan != "nli":
        return {"none": plain}
    clean = setup.model_copy(update={"label_noise": 0.0})
    stopping = Condition(family="early_stopping", weight=setup.training.epochs)
    larger = setup.model_copy(update={"train_size": round(setup.train_size / 0.9)})
    return {
        "none": plain,
        "no label noise": plain.model_copy(update={"setup": clean}),
        "early stopping": plain.model_copy(update={"setup": larger, "condition": stopping}),
    }


def runs(plan: str) -> pd.DataFrame:
    """One row per seed and variant of a plan; what is missing is trained."""
    preset = load_preset("mini")
    store = open_store(ROOT / "build" / "regimes", preset.name)
    computing = Computing(keep_weights=False)
    sources = computing.sources(preset, plan)
    specs = [variants(spec) for spec in sources.specs(plan, preset, seeds=SEEDS) if spec.condition.family == "none"]
    configs = computing.complete([run for each in specs for run in each.values()], sources, store)
    found = tabulated(configs, store)[["plan", "seed", *COLUMNS]]
    found.insert(1, "variant", [name for each in specs for name in each])
    return found


def main() -> None:
    """Train, print what decides, and write the runs."""
    table = pd.concat([runs(plan) for plan in ("nli", "paraphrase")])
    table = table.assign(encoder=provenance(MINI_MBERT)["sha256"])
    print(regime(table).to_string(float_format="{:.2f}".format))
    with replacing(RECORDED / "mini-regimes.csv") as temporary:
        temporary.write_text(table.to_csv(index=False, float_format="%.5g"), encoding="utf-8")


if __name__ == "__main__":
    main()

"""The studies that a notebook shows: the tables of the plans that have runs, and a line for each plan that has none."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from flatlingo.errors import FlatlingoError
from flatlingo.study.presets import Preset, chosen_seeds, load_preset
from flatlingo.study.store import Store, open_store
from flatlingo.study.sweep import recorded_runs, sweep, tabulated
from flatlingo.study.table import curves


class Studies(NamedTuple):
    """What was found.

    Attributes:
        tables: by plan, as `sweep` returns them.
        lacking: a sentence for each other plan that was asked for.
    """

    tables: dict[str, pd.DataFrame]
    lacking: list[str]


def studies(
    plans: list[str],
    *,
    preset: str = "mini",
    store: str | Path = "recorded",
    seeds: int | list[int] | None = None,
    second_stage: bool = False,
    **options,
) -> Studies:
    """Sweep the plans that a preset has, that are recorded (of the recorded results), and that have what is needed.

    Args:
        plans: their names.
        preset: as for `sweep`.
        store: as for `sweep`.
        seeds: as for `sweep`.
        second_stage: whether a plan without a second stage is left out.
        options: as for `sweep`.

    Raises:
        FlatlingoError: as `sweep`, and if no plan is left.
    """
    settings = load_preset(preset)
    runs = open_store(store, settings.name) if store == "recorded" else None
    lacking = {plan: _lacks(plan, settings, runs, second_stage) for plan in plans}
    asked = [plan for plan in plans if not lacking[plan]]
    if not asked:
        raise FlatlingoError(f"nothing to show: {'; '.join(lacking.values()) or 'no plan was asked for'}")
    tables = {plan: sweep(plan, preset=preset, store=store, seeds=seeds, **options) for plan in asked}
    return Studies(tables, list(filter(None, lacking.values())))


class Stored(NamedTuple):
    """What a store has of some plans.

    Attributes:
        tables: by plan, as `sweep` returns them.
        curves: by plan, see `study.table.curves`.
        lacking: by plan that has no complete seed, a sentence with the command that computes it.
    """

    tables: dict[str, pd.DataFrame]
    curves: dict[str, pd.DataFrame]
    lacking: dict[str, str]


def finished(
    plans: list[str],
    *,
    preset: str = "mini",
    store: str | Path = "recorded",
    seeds: int | list[int] | None = None,
) -> Stored:
    """Read what is there of some plans, of seeds that have every condition; nothing is computed.

    Neither encoder nor rows are needed.

    Args:
        plans: their names.
        preset: as for `sweep`.
        store: as for `sweep`.
        seeds: how many, or which; every complete one by default. Others are left out.

    Raises:
        FlatlingoError: as `sweep`, for an unknown preset, impossible seeds or a damaged run.
    """
    settings = load_preset(preset)
    runs = open_store(store, settings.name)
    found = Stored({}, {}, {})
    for plan in plans:
        if plan not in settings.plans:
            found.lacking[plan] = f"preset {settings.name} has no plan {plan}"
            continue
        there = recorded_runs(plan, settings, runs)
        wanted = [seed for seed in there if seeds is None or seed in chosen_seeds(settings, plan, seeds)]
        if not wanted:
            number = f" --seeds {seeds}" if isinstance(seeds, int) else ""
            where = f"data/recorded/{settings.name}" if store == "recorded" else store
            found.lacking[plan] = (
                f"plan {plan} of preset {settings.name} is not recorded; this does it: flatlingo sweep {plan} "
                f"--preset {preset}{number} --store {where} --discard-weights"
            )
            continue
        configs = [config for seed in wanted for config in there[seed]]
        found.tables[plan] = tabulated(configs, runs)
        found.curves[plan] = curves(configs, [runs.result(config) for config in configs])
    return found


def _lacks(plan: str, preset: Preset, recorded: Store | None, second_stage: bool) -> str:
    """Why a plan is left out; "" if it is not."""
    if plan not in preset.plans:
        return f"preset {preset.name} has no plan {plan}"
    if second_stage and preset.plan(plan).setup.second_stage is None:
        return f"plan {plan} of preset {preset.name} has no second stage"
    if recorded is not None and not recorded_runs(plan, preset, recorded):
        return f"plan {plan} of preset {preset.name} is not recorded: no seed has a run of every condition"
    return ""

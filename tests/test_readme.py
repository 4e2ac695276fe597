"""The README says what was measured and what its commands print, and its links lead somewhere."""

import doctest
import json
import re

import pandas as pd
import pytest
from made_up import intervention_table

import readme
from flatlingo.errors import FlatlingoError
from flatlingo.files import ROOT
from flatlingo.report import decisions, intervention, saving
from flatlingo.report.shapes import per_run
from flatlingo.report.simulation import simulated_study
from flatlingo.report.slopes import of_seeds
from flatlingo.study.runspec import PLANS
from readme_blocks.lead import by_setting, slopes_where_set
from readme_blocks.results import of_preset

DECIDED = ("rises", "falls", "no effect")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_its_numbers_are_those_of_the_figures():
    assert readme.parts(README, "results")[1] == readme.results(), "refresh with: python scripts/readme.py"


def test_it_opens_with_what_is_decided():
    assert readme.parts(README, "lead")[1] == readme.lead(), "refresh with: python scripts/readme.py"


def test_the_lead_names_what_is_decided(tmp_path):
    table = simulated_study(6, slope=2.0).assign(task="xnli", encoder="e5")
    table["weight"] = 1 - pd.to_numeric(table["label"].str.partition("=")[2], errors="coerce").fillna(1)
    found = decisions.verdicts(table, n_permutations=99)
    runs = intervention_table(-1.5, 0.0, seeds=8)
    set_to = {"headline": {"verdicts": intervention.per_halving(runs)}, "data": {"effects": intervention.effects(runs)}}
    (tmp_path / "using_intervention.json").write_text(json.dumps(saving.plain(set_to)), encoding="utf-8")
    power = {"headline": {"one point per halving": {"right": 0.125, "studies": 40, "half_width": 2.42}}}
    power["headline"]["equal families"] = {"wrong": 0.35, "studies": 40}
    (tmp_path / "beyond.json").write_text(json.dumps(power), encoding="utf-8")
    advice = {"headline": {"recommendation": "None stands."}, "data": {"chosen": [{"seeds": 3}]}}
    (tmp_path / "using_technique.json").write_text(json.dumps(advice), encoding="utf-8")
    rivals = [
        {"measure": measure, "outcome": outcome, "within": within, "value": rho, "low": -0.7, "high": 0.1}
        for outcome in ("English accuracy", "zero-shot accuracy")
        for measure, rhos in (("Tr(F)", (-0.4, -0.05)), ("KL of two segmentations", (-0.5, -0.3)))
        for within, rho in zip(("seed", "seed and the other"), rhos, strict=True)
    ]
    sharp = {"measure": "Tr(F)", "outcome": "zero-shot accuracy", "within": "seed"}
    late = sharp | {"value": -0.43, "low": -0.6, "high": -0.2}
    measures = {"headline": {"trace or KL": {"methods": rivals}}, "data": {"methods": [late]}}
    sharp |= {"outcome": "zero_shot_accuracy", "low": None, "high": None}
    curve = [sharp | {"share": share, "value": rho} for share, rho in ((0, 0.9), (0.05, 0.34), (0.5, -0.1))]
    (tmp_path / "using_early.json").write_text(json.dumps({"data": {"methods": curve}}), encoding="utf-8")
    (tmp_path / "using_predictors.json").write_text(json.dumps(measures), encoding="utf-8")
    first = {"data": per_run(table), "headline": {"left_out": "", "verdicts": found}}
    (tmp_path / "figure1.json").write_text(json.dumps(saving.plain(first)), encoding="utf-8")
    regrets = [
        {"group": "regret", "label": label, "value": value, "low": low, "high": high}
        for label, value, low, high in (
            ("smallest Tr(F)", 8.018, 3.946, 12.527),
            ("highest English accuracy", 1.1, 0.54, 1.7),
            ("at random", 3.898, 3.2, 5.0),
        )
    ]
    (tmp_path / "using_choices.json").write_text(json.dumps({"data": {"nli": regrets}}), encoding="utf-8")
    (tmp_path / "figure2-nli.json").write_text(json.dumps(saving.plain({"data": table})), encoding="utf-8")
    english = simulated_study(2, slope=2.0).query("seed == 1").assign(weight=1.0)
    widest = decisions.verdicts(english.drop(columns=["gain", "adapted", "control_gain"]), n_permutations=99)
    methods = {"data": per_run(english), "headline": {"left_out": "Every run is competent.", "verdicts": widest}}
    (tmp_path / "methods_slopes.json").write_text(json.dumps(saving.plain(methods)), encoding="utf-8")
    lead = readme.lead(tmp_path)
    text = " ".join(lead.split())
    slopes, widest_slopes = (one[one["question"] == "slope"].set_index("outcome") for one in (found, widest))
    number, widest_number = (one["verdict"].isin(DECIDED).sum() for one in (slopes, widest_slopes))
    over = of_seeds(table)["verdict"]
    held = (over.isin(DECIDED) & (over == slopes["verdict"])).sum() or "none"
    assert f"**Comparing regularisers decides {number} of {len(slopes)} slopes: as Tr(F) falls, English" in text
    assert f"over seeds instead of conditions {held} of these {number}" in text
    assert f"Every method, a comparison made later, decides {widest_number} of 2: English accuracy rises" in text
    said = "as it falls, English accuracy and zero-shot accuracy rise, whichever target is left out; "
    assert f"{said}adjusted for training loss the same holds.**" in text
    reached = re.search(
        r"minus that of plain training at (\d+), by the Tr\(F\) reached: −2.\d at (\d+) \(lower\),", text
    )
    assert [float(number) for number in reached.groups()] == pytest.approx([200, 700], rel=0.2)
    assert "* With more compute (mini-nli, 3 of 10 seeds): None stands." in text
    assert "at 5 % of the training: +0.34 (every method); at its end: −0.43 [−0.60, −0.20] ([6]" in text
    kl = "of the KL at equal Tr(F): −0.30 [−0.70, +0.10] (every method)"
    assert (
        f"of Tr(F) at equal KL: −0.05 [−0.70, +0.10] (every method); {kl}. With zero-shot accuracy 2 of the 2" in text
    )
    power = "of 40 made-up studies of mini-nli's size, in which English accuracy does rise by one point per halving, 5"
    assert f"{power} find it. (Their intervals reach 2.4 points" in text
    pairs = " ".join(readme.results(tmp_path).split())
    assert "but single weights do as in mini-nli, 14 find consistency and Fisher penalty different" in pairs
    assert "below the best: the flattest 8.0 [3.9, 12.5], one drawn at random 3.9 [3.2, 5.0] and the most" in text
    heads = ["xnli, e5, 3 of 10 seeds", "mini-nli, every method, 1 of 5 seeds"]
    heads.append("mini-nli, Tr(F) set by one term, 8 of 10 seeds")
    assert f"| points per halving of Tr(F) | {' | '.join(heads)} |" in lead.splitlines()
    (line,) = (line for line in lead.splitlines() if line.startswith("| English accuracy (figure 1) |"))
    rises = r"\*\*rises: \+\d.\d\d \[.*\]\*\*"
    assert re.fullmatch(rf"\| .* \| {rises}; seeds \[\+2.*\] \| {rises} \| \*\*rises: \+1.\d\d \[.*\]\*\* \|", line)
    assert "| does Tr(F) fall with the weight? | consistency: in " in text
    known = pd.concat([found, widest])[lambda rows: rows["low"].notna() & (rows["question"] != "slope")]
    decided = known[~known["verdict"].isin(["undecided", "too few seeds", "too few conditions"])]
    none = decided["verdict"].isin(["no effect", "no difference"]).sum()
    said = f"Of {len(known)} further questions that have an interval, {len(decided)} are decided, {none} of these by no"
    assert said in text


def test_the_lead_names_the_targets_that_a_verdict_rests_on():
    row = {"value": 1.0, "low": 0.5, "high": 1.5, "p": 0.01, "verdict": "rises", "rests_on": []}
    rows = [row | {"outcome": "gain", "held": held} for held in ("", "at equal loss")]
    rows[1] |= {"rests_on": [250.0, 700.0]}
    figure = {"headline": {"verdicts": rows}}
    said = by_setting(slopes_where_set(figure))
    assert "gain rises, whichever target is left out; adjusted for training loss the same holds" in said
    assert said.endswith("the same holds, but not all of it without the target 700 or 250.")


def test_the_lead_says_where_nothing_is_decided(tmp_path):
    table = simulated_study(6, seeds=1).assign(task="xnli", encoder="e5", weight=0.0)
    figure = {"data": per_run(table), "headline": {"left_out": "Nothing is decided.", "verdicts": []}}
    (tmp_path / "figure1.json").write_text(json.dumps(saving.plain(figure)), encoding="utf-8")
    lead = readme.lead(tmp_path)
    assert "**Comparing regularisers decides none of 0 slopes.**" in " ".join(lead.split())
    assert "Nothing is decided." in readme.results(tmp_path)


@pytest.mark.parametrize("folder", [readme.FIGURES, readme.FIGURES / "small"], ids=lambda folder: folder.name)
def test_a_folder_of_figures_shows_them_with_their_captions(folder):
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert page == readme.captions(folder), "refresh with: python scripts/readme.py"
    assert all((folder / name).is_file() for name in re.findall(r"\]\(([^)]+)\)", page))


def test_its_weights_are_those_of_the_calibration():
    assert readme.parts(README, "calibration")[1] == readme.calibration(), "refresh with: python scripts/readme.py"


def test_a_level_that_no_competent_model_reaches_says_so(tmp_path):
    table = "what,family,weight,seed,trace,share,competence,level,verdict\nrun,none,0,101,400,1,1,,\n"
    runs = [{"family": name, "weight": w, "seed": 1, "trace": t} for name, w, t in (("none", 0, 300), ("l2", 0.02, 90))]
    (tmp_path / "figure1.json").write_text(json.dumps({"data": runs}), encoding="utf-8")
    levels = "level,l2,0.02,,,,0.9,0.5,ok\nlevel,l2,,,,,0.6,0.25,not competent\n"
    (tmp_path / "calibration-nli.csv").write_text(table + levels, encoding="utf-8")
    head, _, row, *_, progress = readme.calibration(tmp_path, tmp_path).splitlines()
    assert progress == "**Recorded: of plan `nli` 1 of 3 planned seeds, of plan `paraphrase` none.**"
    assert head == "| share of Tr(F) = 400 that is asked for, plan `nli` | 0.5 | 0.25 |"
    assert row == "| L2 to zero | 0.02 (0.30) | not competent |"


def test_a_preset_of_real_rows_goes_first_with_its_verdicts_in_words(tmp_path):
    table = simulated_study(3, slope=2.0).assign(task="xnli", encoder="e5", weight=1.0, classes=3)
    table["run_id"] = table["label"] + table["seed"].astype(str)
    table["clean_train_accuracy"] = 0.9
    found = decisions.verdicts(table, n_permutations=99)
    first = {"data": per_run(table), "headline": {"left_out": "Every run is competent.", "verdicts": found}}
    (tmp_path / "small").mkdir()
    for folder in (tmp_path, tmp_path / "small"):
        for name, content in {"figure1": first, "figure2-nli": {"data": table}}.items():
            (folder / f"{name}.json").write_text(json.dumps(saving.plain(content)), encoding="utf-8")
    small, mini = readme.results(tmp_path).split("preset `mini`")
    assert "preset `small`, plan `nli`" in small
    none = table[table["family"] == "none"]
    row = next(line for line in small.splitlines() if line.startswith("| none |"))
    english, others = (100 * per_run(none)[name].mean() for name in ("english_accuracy", "zero_shot_accuracy"))
    assert f"| {english:.1f} ± " in row
    assert f"| {others:.1f} ± " in row
    gain, control = 100 * none.loc[none["language"] == "es", ["gain", "control_gain"]].mean()
    gain = f"{gain:.1f} points in Spanish ({control:.1f} from as many English"
    assert gain in " ".join(small.split())
    (line,) = (line for line in small.splitlines() if line.startswith("| per halving of Tr(F)"))
    assert line.startswith("| per halving of Tr(F) | **rises: +")
    assert small.count("| consistency minus dropout at equal Tr(F) |") == mini.count("| both views minus none |") == 1


def test_conditions_that_lack_seeds_tell_how_many_they_have(tmp_path):
    table = simulated_study(3, seeds=3).assign(task="xnli", encoder="e5", weight=1.0, classes=3)
    weak = (table["label"] == "l2=0.5") & (table["seed"] == 2)
    table.loc[weak, "clean_train_accuracy"] = 0.4
    pages = {}
    for name, runs in {"lacking": per_run(table), "complete": per_run(table[table["label"] != "l2=0.5"])}.items():
        figure = {"data": runs, "headline": {"left_out": "", "verdicts": []}}
        (tmp_path / "figure1.json").write_text(json.dumps(saving.plain(figure)), encoding="utf-8")
        pages[name] = of_preset("small", tmp_path)
    assert "| condition | seeds | Tr(F) |" in pages["lacking"]
    assert "| l2=0.5 | 2 | " in pages["lacking"]
    assert "| none | 3 | " in pages["lacking"]
    assert "| condition | Tr(F) |" in pages["complete"]


def test_its_python_session_prints_what_it_says(monkeypatch):
    test = doctest.DocTestParser().get_doctest(README.replace("```\n", "\n"), {}, "README", "README.md", 0)
    assert len(test.examples) > 3
    assert doctest.DocTestRunner().run(test).failed == 0


def test_a_readme_without_a_place_for_a_block_is_refused():
    with pytest.raises(FlatlingoError, match="around its results"):
        readme.parts("# flatlingo\n", "results")


def test_relative_links_lead_to_files():
    targets = [target for target in re.findall(r"\]\(([^)#\s]+)", README) if not target.startswith("http")]
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_links_to_binder_and_colab_name_notebooks_that_exist():
    paths = re.findall(r"(?:mybinder|colab)\S+?(notebooks/[\w]+\.ipynb)", README.replace("%2F", "/"))
    assert len(paths) >= 2
    assert all((ROOT / path).is_file() for path in paths)


def test_its_commands_name_plans_that_exist():
    named = re.findall(r"flatlingo (?:sweep|status DIR|status /shared/runs) ([a-z]\w*)", README)
    assert len(named) >= 4
    assert set(named) <= set(PLANS)

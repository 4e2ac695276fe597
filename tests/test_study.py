"""One run of a study, end to end, and the table made of results."""

import pytest

from flatlingo import experiment, study
from flatlingo.errors import FlatlingoError


@pytest.fixture(scope="module")
def outcome():
    """The baseline of preset smoke's figure 2: configuration, result, model, tokenizer."""
    config = experiment.plan("figure2", experiment.load_preset("smoke"), seeds=[7])[0]
    return config, *study.run(config)


def test_a_result_tells_rows_accuracies_memorisation_trace_and_adaptation(outcome):
    config, result, *_ = outcome
    assert set(result["accuracy"]) == {"en", "de", "es", "zh"}
    assert result["trace"]["examples"] == config.study.trace_examples
    assert sum(result["trace"]["groups"].values()) == pytest.approx(result["trace"]["value"])
    assert set(result["adaptation"]) == {"de", "es", "zh"}
    assert {row["split"] for row in result["rows"]} == {"train", "validation", "adapt_train", "adapt_validation"}
    assert 0 <= result["noisy_fitted"] <= 1
    assert result["empirical_fisher"] > 0
    assert [entry["step"] for entry in result["history"]] == [1, 2, 3]
    assert all(entry["loss"] == pytest.approx(entry["loss/task"], rel=1e-3) for entry in result["history"])


def test_the_trace_of_the_result_is_that_of_the_model_it_returns(outcome):
    config, result, model, tokenizer = outcome
    task = study._task(config, None)
    again = study.trace_of(model, tokenizer, task.rows("en", "validation"), max_length=64, examples=60)
    assert again.value == pytest.approx(result["trace"]["value"], rel=1e-6)


def test_the_same_configuration_gives_the_same_result(outcome):
    config, result, *_ = outcome
    assert study.run(config)[0] == result


def test_a_target_language_that_the_task_lacks_is_refused_before_training():
    config = experiment.plan("figure2", experiment.load_preset("smoke"))[0]
    adaptation = config.study.adaptation.model_copy(update={"languages": ("fr",)})
    config = config.model_copy(update={"study": config.study.model_copy(update={"adaptation": adaptation})})
    with pytest.raises(FlatlingoError, match="fr"):
        study.check(config, None)

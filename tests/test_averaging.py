"""Weights averaged over the end of a training."""

import shutil

import pytest
import torch
from tiny import make_model, make_rows, make_tokenizer
from transformers import TrainerCallback, TrainingArguments

from flatlingo.averaging import FILE, WeightAverage
from flatlingo.checkpoints import Checkpoints
from flatlingo.errors import FlatlingoError
from flatlingo.trainer import RegularizedTrainer
from flatlingo.training import finetune

TOKENIZER, ROWS = make_tokenizer(), make_rows(40)
SETTINGS = {"seed": 2, "epochs": 2, "batch_size": 8, "learning_rate": 3e-3, "max_length": 32}  # 10 updates


class Weights(TrainerCallback):
    """The weights after each update."""

    def __init__(self, stop: int | None = None):
        self.seen, self.stop = {}, stop

    def on_step_end(self, args, state, control, model, **kwargs):
        self.seen[state.global_step] = {name: value.detach().clone() for name, value in model.named_parameters()}

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.stop:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("share", "last"), [(0.3, 3), (1.0, 10), (0.01, 1)])
@pytest.mark.parametrize("accumulated", [1, 5])
def test_a_training_ends_with_the_mean_of_its_last_weights(share, last, accumulated):
    weights, model = Weights(), make_model(dropout=0.1)
    epochs = SETTINGS["epochs"] * accumulated
    finetune(
        model, TOKENIZER, ROWS, average=share, callbacks=[weights], gradient_accumulation_steps=accumulated,
        **SETTINGS | {"epochs": epochs},
    )  # fmt: skip
    assert max(weights.seen) == 10
    for name, parameter in model.named_parameters():
        mean = torch.stack([weights.seen[step][name].double() for step in range(11 - last, 11)]).mean(0)
        torch.testing.assert_close(parameter.double(), mean, rtol=1e-5, atol=1e-7)
    plain = Weights()
    finetune(make_model(dropout=0.1), TOKENIZER, ROWS, callbacks=[plain], gradient_accumulation_steps=accumulated,
             **SETTINGS | {"epochs": epochs})  # fmt: skip
    assert all(torch.equal(plain.seen[10][name], value) for name, value in weights.seen[10].items()), "same training"


def test_a_model_in_half_precision_ends_with_the_mean_too():
    weights, model = Weights(), make_model(dtype=torch.bfloat16)
    finetune(model, TOKENIZER, ROWS, average=1.0, callbacks=[weights], **SETTINGS | {"epochs": 20})
    for name, parameter in model.named_parameters():
        mean = torch.stack([seen[name].double() for seen in weights.seen.values()]).mean(0)
        torch.testing.assert_close(parameter.double(), mean, rtol=2**-8, atol=1e-6)


def test_a_resumed_training_ends_in_the_same_weights(tmp_path):
    whole, killed = (make_model(dropout=0.1) for _ in range(2))
    finetune(whole, TOKENIZER, ROWS, average=0.5, **SETTINGS)
    checkpoints = Checkpoints(tmp_path, minutes=0)
    with pytest.raises(KeyboardInterrupt):
        finetune(killed, TOKENIZER, ROWS, average=0.5, checkpoints=checkpoints, callbacks=[Weights(stop=9)], **SETTINGS)
    assert (tmp_path / "checkpoint-8" / FILE).is_file()
    again = make_model(dropout=0.1)
    finetune(again, TOKENIZER, ROWS, average=0.5, checkpoints=checkpoints, **SETTINGS)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(whole.parameters(), make_model().parameters(), strict=True))


def test_a_checkpoint_without_the_mean_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path, minutes=0)
    finetune(make_model(), TOKENIZER, ROWS, checkpoints=checkpoints, **SETTINGS)
    shutil.rmtree(tmp_path / "checkpoint-10")
    with pytest.raises(FlatlingoError, match="no mean of the weights"):
        finetune(make_model(), TOKENIZER, ROWS, average=0.5, checkpoints=checkpoints, **SETTINGS)


@pytest.mark.parametrize("share", [-0.1, 0.0, 1.5])
def test_an_impossible_share_is_refused(share):
    with pytest.raises(FlatlingoError, match="share of the updates"):
        WeightAverage(share)


def trainer_of(folder, *callbacks, **settings):
    settings |= {"report_to": "none", "disable_tqdm": True, "per_device_train_batch_size": 8, "max_steps": 10}
    args = TrainingArguments(str(folder), **settings)
    options = {"processing_class": TOKENIZER, "max_length": 32, "callbacks": [*callbacks]}
    return RegularizedTrainer(make_model(), args, train_dataset=ROWS, eval_dataset=ROWS[:8], **options)


def test_weights_that_would_be_put_in_the_means_place_are_refused(tmp_path):
    settings = {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}
    with pytest.raises(FlatlingoError, match="load_best_model_at_end"):
        trainer_of(tmp_path, WeightAverage(0.5), **settings).train()


@pytest.mark.parametrize(("step", "averaged"), [(4, "none"), (7, "2")])
def test_a_training_that_was_stopped_tells_of_how_many_weights_the_mean_is(tmp_path, step, averaged):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == step

    trainer = trainer_of(tmp_path, WeightAverage(0.5), Stop(), save_strategy="no")
    with pytest.warns(UserWarning, match=f"stopped at step {step} of 10, .* last 5 steps: {averaged} of these"):
        trainer.train()


def test_early_stopping_and_averaging_exclude_each_other():
    with pytest.raises(FlatlingoError, match="leave out patience, or average"):
        finetune(make_model(), TOKENIZER, ROWS, average=0.5, patience=1, eval_rows=ROWS, **SETTINGS)

import copy
import random
from collections import Counter
from functools import cache, partial

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from datasets import ClassLabel, Dataset, Features, Value
from tiny import make_model, make_rows, make_tokenizer
from torch.utils.data import DataLoader
from transformers import (
    BertForSequenceClassification,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    EvalPrediction,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from flatlingo import devices
from flatlingo.encoding import EncodedRows, LengthGroupedSampler, PairCollator, batches, encode
from flatlingo.errors import FlatlingoError
from flatlingo.evaluation import accuracy
from flatlingo.fisher import fisher_trace
from flatlingo.lossrecord import READ_EVERY
from flatlingo.regularizers import (
    L2,
    L2SP,
    LNSR,
    R3F,
    R4F,
    SAM,
    SMART,
    VAT,
    CodeSwitching,
    FisherPenalty,
    GradientNormPenalty,
    Mixout,
    RDrop,
    Regularizer,
    SubwordConsistency,
    TracePenalty,
    TraceTarget,
    WeightNoise,
    XTune,
    finite_differences,
    periodic,
)
from flatlingo.trainer import RegularizedTrainer
from flatlingo.training import _accuracy, adapt, finetune

SETTINGS = {"seed": 1, "epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "max_length": 32}
TOKENIZER = make_tokenizer()
KINDS = {
    "consistency": lambda weight: SubwordConsistency(TOKENIZER, weight, p=0.5),
    "clean consistency": lambda weight: SubwordConsistency(TOKENIZER, weight, p=0.5, mode="clean"),
    "fisher_penalty": FisherPenalty,
    "l2": L2,
    "l2_sp": L2SP,
    "r3f": lambda weight: R3F(weight, epsilon=0.1),
    "r4f": lambda weight: R4F(weight, epsilon=0.1, distribution="normal"),
    "r_drop": RDrop,
    "smart": SMART,
    "vat": VAT,
    "lnsr": LNSR,
    "xtune": lambda weight: XTune(CodeSwitching(TOKENIZER, {"cat": "Hund", "big": ["grün", "small"]}), weight),
    "weight_noise": lambda weight: WeightNoise(weight, sigma=0.05),
    "gradient_norm": GradientNormPenalty,
    "mixout": Mixout,
}


def train(*regularizers: Regularizer, rows=None, model=None, **settings):
    """A model trained on few rows, and its log."""
    model = model or make_model(dropout=0.1)
    log = finetune(model, TOKENIZER, rows or make_rows(24), regularizers=regularizers, **SETTINGS | settings)
    return model, log


@cache
def plain() -> torch.Tensor:
    """Weights after training without terms."""
    return weights(train()[0])


def weights(model) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def arguments(folder, **settings) -> TrainingArguments:
    defaults = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": False}
    return TrainingArguments(output_dir=str(folder), **defaults | settings)


def trainer_of(folder, *, rows=None, regularizers=(), model=None, settings=None, **kwargs) -> RegularizedTrainer:
    return RegularizedTrainer(
        model=model or (None if "model_init" in kwargs else make_model()),
        args=arguments(folder, **settings or {}),
        train_dataset=rows or make_rows(16),
        processing_class=TOKENIZER,
        regularizers=regularizers,
        **{"max_length": 64} | kwargs,
    )


class Watching(Regularizer):
    """Adds nothing, remembers the epochs its features were asked for."""

    name = "watching"

    def __init__(self):
        super().__init__(weight=1.0)
        self.epochs = Counter()

    def features(self, row, *, seed, epoch, max_length):
        self.epochs[epoch] += 1
        return {"epoch": [epoch]}

    def __call__(self, model, batch, outputs):
        assert model.training
        return outputs.logits.new_zeros(()), {"epoch": self.columns(batch)["epoch"].double()}


class Breaking(Regularizer):
    """Becomes NaN at its third call."""

    name = "breaking"
    calls = 0

    def __call__(self, model, batch, outputs):
        self.calls += 1
        return outputs.logits.sum() * (float("nan") if self.calls == 3 else 0.0), {}


@pytest.fixture
def bf16(monkeypatch):
    """Let bf16 be used, emulated where the CPU has none: slow, and the same numbers."""
    monkeypatch.setattr(devices, "has_bf16", lambda: True)


class Seeing(Regularizer):
    """Adds nothing, remembers under which autocast the clean pass ran."""

    name = "seeing"

    def __init__(self):
        super().__init__(weight=1.0)
        self.dtypes = set()

    def start(self, model, *, seed):
        model.bert.pooler.dense.register_forward_hook(lambda _module, _inputs, output: self.dtypes.add(output.dtype))

    def __call__(self, model, batch, outputs):
        return outputs.logits.new_zeros(()), {}


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("float32", torch.float32), ("bf16", torch.bfloat16)],
)
@pytest.mark.parametrize("stage", ["finetune", "adapt"])
@pytest.mark.usefixtures("bf16")
def test_precision_is_what_was_asked_for_whatever_the_launcher_says(monkeypatch, precision, dtype, stage):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no" if precision == "bf16" else "bf16")
    seeing = Seeing()
    trained = {"finetune": finetune, "adapt": adapt}[stage]
    trained(make_model(), TOKENIZER, make_rows(8), regularizers=[seeing], precision=precision, **SETTINGS)
    assert seeing.dtypes == {dtype}


@pytest.mark.parametrize("capabilities", [{}, {"avx512_f": True, "avx512_bf16": False}], ids=["none", "older"])
def test_bf16_is_refused_where_the_cpu_would_emulate_it(monkeypatch, capabilities):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(devices, "cpu_name", lambda: "Old Xeon")
    with pytest.raises(FlatlingoError, match="Old Xeon has no bf16 of its own.*precision: float32"):
        train(precision="bf16")


@pytest.mark.parametrize(("name", "capability", "native"), [("Tesla T4", (7, 5), False), ("NVIDIA A10", (8, 6), True)])
def test_gpus_have_bf16_from_compute_capability_8(monkeypatch, name, capability, native):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: name)
    assert devices.has_bf16() == native
    if not native:
        with pytest.raises(FlatlingoError, match=f"{name} has no bf16.*precision: float32"):
            train(precision="bf16")


def test_unknown_precisions_are_refused():
    with pytest.raises(FlatlingoError, match="unknown precision 'fp16'.*known: float32, bf16"):
        train(precision="fp16")


def assert_float32(model):
    """No autocast is left: `forward` is the class's, and a row's logits do not depend on the batch it is in."""
    assert not {"forward", "_original_forward", "_is_accelerate_prepared"} & vars(model).keys()
    ((batch,), fours) = (batches(TOKENIZER, make_rows(32), max_length=32, batch_size=size) for size in (32, 4))
    model.eval()
    with torch.no_grad():
        small = torch.cat([model(**four).logits for four in fours])
        torch.testing.assert_close(small, model(**batch).logits, rtol=1e-4, atol=1e-5)
    assert small.dtype == torch.float32


deep = partial(make_model, dropout=0.1, hidden_size=64, num_hidden_layers=12, num_attention_heads=4)


@pytest.mark.usefixtures("bf16")
@pytest.mark.parametrize("kind", ["none", "clean consistency", "r4f", "mixout", "trace_penalty", "sam"])
def test_after_bf16_the_model_computes_in_float32_again(kind):
    model = deep()
    terms = {name: make for name, make in (KINDS | {"trace_penalty": TracePenalty}).items() if name == kind}
    how = {"sam": SAM(0.05)} if kind == "sam" else {"regularizers": [make(0.01) for make in terms.values()]}
    finetune(model, TOKENIZER, make_rows(8), precision="bf16", **how, **SETTINGS)
    assert_float32(model)
    trace = fisher_trace(model, batches(TOKENIZER, make_rows(8), max_length=32, batch_size=8)).value
    exact = copy.deepcopy(model).double()
    assert trace == pytest.approx(
        fisher_trace(exact, batches(TOKENIZER, make_rows(8), max_length=32, batch_size=8)).value, rel=1e-4
    )


@pytest.mark.usefixtures("bf16")
@pytest.mark.parametrize("made", ["given", "model_init"])
def test_any_use_of_a_bf16_trainer_gives_the_model_back(tmp_path, made):
    settings = {"bf16": True, "max_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "use_cpu": True}
    how = {"model": None, "model_init": lambda: deep()} if made == "model_init" else {"model": deep()}
    trainer = RegularizedTrainer(
        args=arguments(tmp_path, **settings),
        train_dataset=make_rows(8),
        eval_dataset=make_rows(8),
        processing_class=TOKENIZER,
        max_length=64,
        **how,
    )
    for use in (
        trainer.evaluate,
        lambda: trainer.predict(make_rows(4)),
        trainer.train,
        trainer.evaluate,
        trainer.train,
    ):
        use()
        assert_float32(trainer.model)
    last, again = (
        [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry][-1],
        trainer.evaluate(),
    )
    assert again["eval_loss"] == last, "under autocast, as in training"


class Raising(Regularizer):
    """Fails at once."""

    name = "raising"

    def __call__(self, model, batch, outputs):
        raise KeyboardInterrupt


@pytest.mark.usefixtures("bf16")
def test_a_bf16_training_that_fails_gives_the_model_back():
    model = deep()
    with pytest.raises(KeyboardInterrupt):
        train(Raising(1.0), model=model, precision="bf16")
    assert_float32(model)


@pytest.mark.usefixtures("bf16")
def test_a_forward_of_ones_own_comes_back_after_bf16():
    model = make_model()
    own = model.forward = partial(type(model).forward, model)
    train(model=model, precision="bf16", epochs=1)
    assert model.forward is own


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_training_lowers_the_loss_and_is_reproducible_bit_by_bit(kind):
    first, log = train(kind(0.01))
    random.seed(99), torch.manual_seed(99), np.random.seed(99)  # noqa: NPY002
    again, _ = train(kind(0.01))
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), plain())
    losses = [entry["loss/task"] for entry in log if "loss/task" in entry]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


@pytest.mark.parametrize("kind", ["consistency", "clean consistency", "xtune", "fisher_penalty"])
def test_single_texts_are_trained_on(kind):
    rows = [{name: value for name, value in row.items() if name != "text_b"} for row in make_rows(16)]
    model = make_model(dropout=0.1)
    log = finetune(model, TOKENIZER, rows, regularizers=[KINDS[kind](0.1)], **SETTINGS | {"epochs": 8})
    losses = [entry["loss/task"] for entry in log if "loss/task" in entry]
    assert losses[-1] < losses[0]


def test_other_seeds_train_other_weights():
    assert not torch.equal(plain(), weights(train(seed=2)[0]))


def test_zero_weights_are_plain_training_bit_for_bit():
    terms = [kind(0.0) for name, kind in KINDS.items() if name != "clean consistency"]
    assert torch.equal(weights(train(*terms)[0]), plain())
    assert torch.equal(weights(train(KINDS["clean consistency"](0.0))[0]), plain())


@pytest.mark.parametrize("regularizers", [(), (FisherPenalty(0.0),)], ids=["none", "zero weight"])
def test_without_terms_it_is_the_trainer_of_transformers(tmp_path, regularizers):
    items = encode(make_rows(16), TOKENIZER, max_length=32)
    common = {"args": arguments(tmp_path, seed=3, num_train_epochs=1), "train_dataset": items}
    common |= {"processing_class": TOKENIZER, "data_collator": DataCollatorWithPadding(TOKENIZER)}
    ours, theirs = make_model(dropout=0.1), make_model(dropout=0.1)
    RegularizedTrainer(model=ours, regularizers=regularizers, **common).train()
    Trainer(model=theirs, **common).train()
    assert torch.equal(weights(ours), weights(theirs))


def test_a_model_whose_outputs_have_no_logits_is_refused_with_the_remedy(tmp_path):
    model = make_model()
    model.config.return_dict = False
    trainer = trainer_of(tmp_path, regularizers=[FisherPenalty(1.0)], model=model)
    with pytest.raises(FlatlingoError, match=r"fisher_penalty needs outputs.logits, and the model returns a tuple: .*"):
        trainer.train()
    model.config.return_dict = True
    trainer.train()


def test_tokenised_data_do_for_terms_that_need_no_text(tmp_path):
    items = encode(make_rows(16), TOKENIZER, max_length=32)
    trainer = trainer_of(tmp_path, rows=items, regularizers=[FisherPenalty(), L2(0.1)], settings={"max_steps": 2})
    assert trainer.train().global_step == 2


@pytest.mark.parametrize("trained", ["texts", "tokenised"])
def test_texts_and_tokenised_rows_are_evaluated_whatever_was_trained_on(tmp_path, trained):
    texts = make_rows(16)
    items = [item | {"label": item.pop("labels")} for item in encode(texts, TOKENIZER, max_length=64)]
    kinds = {"texts": texts, "tokenised": Dataset.from_list(items)}
    settings = {"eval_strategy": "epoch", "num_train_epochs": 1}
    trainer = trainer_of(tmp_path, rows=kinds[trained], eval_dataset=kinds, settings=settings)
    trainer.train()
    found = [trainer.evaluate(kinds[kind])["eval_loss"] for kind in kinds]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    logged = {key for entry in trainer.state.log_history for key in entry}
    assert {"eval_texts_loss", "eval_tokenised_loss"} <= logged


SLIPS = {
    "one term": ({"regularizers": RDrop()}, r"regularizers must be a list, as in \[RDrop\(\)\], got RDrop"),
    "a class": ({"regularizers": [RDrop]}, "RDrop'> is no regulariser"),
    "a radius": ({"sam": 0.05}, r"sam must be a SAM, as in SAM\(rho=0.05\), got 0.05"),
    "a table": ({"rows": pd.DataFrame(make_rows(8))}, "a pandas table; give Dataset.from_pandas"),
    "a dict": ({"rows": {"train": make_rows(8)}}, "a dict of train; give one"),
    "other columns": (
        {"rows": [{"premise": "x", "label": 0}], "regularizers": [SubwordConsistency(TOKENIZER)]},
        "the training data are rows of label, premise; give",
    ),
    "a typing error": ({"rows": [{"text_a": "x", "text_B": "y", "label": 0}]}, "rows have a column 'text_B'"),
}


@pytest.mark.parametrize(("given", "says"), SLIPS.values(), ids=SLIPS)
def test_a_slip_is_told_with_the_remedy(tmp_path, given, says):
    rows = given.pop("rows", make_rows(8))
    with pytest.raises(FlatlingoError, match=says):
        RegularizedTrainer(
            model=make_model(),
            args=arguments(tmp_path),
            train_dataset=rows,
            processing_class=TOKENIZER,
            max_length=64,
            **given,
        )


def test_rows_that_are_given_only_once_are_refused():
    settings = {"seed": 1, "epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "max_length": 64}
    with pytest.raises(FlatlingoError, match="a generator, which gives them only once"):
        finetune(make_model(), TOKENIZER, (row for row in make_rows(8)), **settings)


def test_global_generators_are_left_as_they_were():
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    train(KINDS["consistency"](0.5))
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states  # noqa: NPY002


@pytest.mark.parametrize(
    ("kind", "sam", "smoothing"),
    [
        *((kind, None, 0.0) for kind in (None, "consistency", "xtune", "l2", "l2_sp")),
        ("consistency", None, 0.1),
        ("l2_sp", SAM(0.1), 0.0),
        ("consistency", SAM(0.5, adaptive=True), 0.1),
    ],
    ids=str,
)
def test_accumulating_4_by_8_is_1_by_32(tmp_path, kind, sam, smoothing):
    both = []
    for batch_size, accumulation in [(32, 1), (8, 4)]:
        # SGD: Adam would blow the rounding errors of vanishing gradients (key biases) up to whole steps
        settings = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        settings |= {"optim": "sgd", "learning_rate": 0.1, "num_train_epochs": 1, "logging_steps": 1}
        settings |= {"label_smoothing_factor": smoothing}
        regularizers = [KINDS[kind](0.5)] if kind else []
        model, rows = make_model(dtype=torch.float64), make_rows(80)  # the last update is of half as many
        trainer = trainer_of(tmp_path, rows=rows, regularizers=regularizers, sam=sam, model=model, settings=settings)
        trainer.train()
        both.append((weights(model), [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]))
    torch.testing.assert_close(both[0][0], both[1][0], rtol=1e-9, atol=1e-14)
    assert both[0][1] == pytest.approx(both[1][1], rel=1e-6)


def test_log_holds_the_loss_and_its_terms():
    regularizers = [kind(0.1) for name, kind in KINDS.items() if name != "clean consistency"]
    _, log = train(*regularizers, batch_size=4, gradient_accumulation_steps=2)
    entries = [entry for entry in log if "loss" in entry]
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4, 5, 6]
    names = ["task", *(regularizer.name for regularizer in regularizers)]
    for entry in entries:
        assert sum(entry[f"loss/{name}"] for name in names) == pytest.approx(entry["loss"], rel=1e-5)
        assert entry["loss/l2"] == pytest.approx(0.05 * entry["l2/squared_distance"], rel=1e-5)
        assert entry["consistency/kl"] > 1e-6  # the second view is another one


def test_trained_model_is_in_eval_mode_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, _ = train()
    assert not any(module.training for module in model.modules())
    assert list(tmp_path.iterdir()) == []


def test_evaluation_rows_are_scored_without_terms():
    rows = make_rows(40, seed=5)
    watching = Watching()
    model, log = train(watching, eval_rows=rows)
    last = [entry for entry in log if "eval_loss" in entry][-1]
    assert last["eval_accuracy"] == pytest.approx(accuracy(model, TOKENIZER, rows, max_length=32))
    (batch,) = batches(TOKENIZER, rows, max_length=32, batch_size=40)
    with torch.no_grad():
        assert last["eval_loss"] == pytest.approx(float(F.cross_entropy(model(**batch).logits, batch["labels"])), 1e-4)
    assert watching.epochs == {0: 24, 1: 24}


def test_encoder_decoders_are_scored_by_their_first_output():
    labels = np.array([0, 1, 1])
    logits = np.array([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0]])
    found = _accuracy(EvalPrediction(predictions=(logits, np.zeros((3, 5, 4))), label_ids=labels))
    assert found == {"accuracy": pytest.approx(2 / 3)}
    assert _accuracy(EvalPrediction(predictions=logits[:, :1], label_ids=labels)) == {}


@pytest.mark.parametrize("method", ["evaluate", "predict"])
def test_rows_of_texts_can_be_evaluated_at_any_time(tmp_path, method):
    trainer = trainer_of(tmp_path, regularizers=[Watching()])
    result = getattr(trainer, method)(make_rows(10))
    metrics = result if method == "evaluate" else result.metrics
    assert metrics[{"evaluate": "eval_loss", "predict": "test_loss"}[method]] > 0


@pytest.mark.parametrize("evaluate", [False, True], ids=["alone", "with evaluation"])
def test_every_epoch_reaches_the_rows(evaluate):
    watching = Watching()
    _, log = train(watching, epochs=3, eval_rows=make_rows(5) if evaluate else None)
    assert watching.epochs == {0: 24, 1: 24, 2: 24}
    logged = [(entry["epoch"], entry["watching/epoch"]) for entry in log if "loss" in entry]
    assert all(trained == np.ceil(epoch) - 1 for epoch, trained in logged)


def test_epochs_reach_persistent_workers():
    rows = EncodedRows(make_rows(4), TOKENIZER, max_length=32, regularizers=[Watching()])
    loader = DataLoader(rows, 4, num_workers=1, persistent_workers=True, collate_fn=PairCollator(TOKENIZER))
    for epoch in range(3):
        rows.set_epoch(epoch)
        (batch,) = loader
        assert batch["watching/epoch"].tolist() == [[epoch]] * 4


@pytest.mark.parametrize("workers", [1, 2])
def test_views_made_in_workers_train_the_same_weights_bit_for_bit(workers):
    def run(**settings):
        return weights(train(KINDS["clean consistency"](0.6), KINDS["xtune"](1.0), **settings)[0])

    assert torch.equal(run(), run(workers=workers))


def test_a_loss_that_is_not_finite_names_step_and_term():
    with pytest.raises(FlatlingoError, match=r"step 3.*breaking = nan"):
        train(Breaking(1.0))


def test_a_loss_that_is_not_finite_is_told_with_its_step_and_term_when_losses_are_read(tmp_path):
    breaking, settings = Breaking(1.0), {"logging_strategy": "no", "num_train_epochs": 40}
    trainer = trainer_of(tmp_path, regularizers=[breaking], settings=settings | {"per_device_train_batch_size": 8})
    with pytest.raises(FlatlingoError, match=r"step 3.*breaking = nan"):
        trainer.train()
    assert breaking.calls == READ_EVERY
    trainer = trainer_of(tmp_path, regularizers=[Breaking(1.0)], settings=settings | {"max_steps": 5})
    with pytest.raises(FlatlingoError, match=r"step 3.*breaking = nan"):
        trainer.train()


def test_no_checkpoint_holds_weights_that_are_not_finite(tmp_path):
    settings = {"logging_strategy": "no", "save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    with pytest.raises(FlatlingoError, match=r"step 3.*breaking = nan"):
        trainer_of(tmp_path, regularizers=[Breaking(1.0)], settings=settings).train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


class Waits(TrainerCallback):
    """Counts how often the fourth and the fifth step would wait for a GPU."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
            self.profile.start()
        if state.global_step == 5:
            self.profile.stop()

    def a_step(self) -> float:
        def outside(event) -> bool:
            inside = ("Optimizer.", "enumerate(DataLoader)")  # whose numbers are on the CPU
            return event is None or (not event.name.startswith(inside) and outside(event.cpu_parent))

        waits = [e for e in self.profile.events() if e.name in ("aten::_local_scalar_dense", "aten::equal")]
        return sum(map(outside, waits)) / 2


@pytest.mark.parametrize(
    ("terms", "sam", "passes"),
    [
        ([], None, 1),
        (["l2_sp", "mixout"], None, 1),
        (["consistency", "r3f", "weight_noise"], None, 4),
        (["fisher_penalty", "gradient_norm"], None, 1),
        (["finite differences"], None, 2),
        (["trace_penalty"], None, 1),
        (["smart"], None, 3),
        ([], SAM(0.05), 2),
    ],
    ids=lambda value: "+".join(value) or "plain" if isinstance(value, list) else "",
)
def test_a_step_waits_for_a_gpu_once_a_pass_only(monkeypatch, tmp_path, terms, sam, passes):
    """Where transformers asks whether there is padding; `is_seen` does not ask a GPU."""
    others = {"trace_penalty": TracePenalty, "finite differences": partial(FisherPenalty, method="finite-difference")}
    for module in (periodic, finite_differences):
        monkeypatch.setattr(module, "is_seen", lambda condition: False)
    waits, regularizers = Waits(), [(KINDS | others)[term](0.01) for term in terms]
    settings = {"max_steps": 6, "logging_strategy": "no", "per_device_train_batch_size": 4}
    rows = make_rows(32)
    trainer_of(tmp_path, rows=rows, regularizers=regularizers, sam=sam, settings=settings, callbacks=[waits]).train()
    assert waits.a_step() == passes


def test_a_model_with_broken_weights_names_the_task_loss():
    model = make_model()
    torch.nn.init.constant_(model.classifier.bias, float("nan"))
    with pytest.raises(FlatlingoError, match=r"step 1.*task = nan"):
        train(model=model)


def test_sampled_segmentations_need_texts(tmp_path):
    items = encode(make_rows(16), TOKENIZER, max_length=32)
    with pytest.raises(FlatlingoError, match="text_a"):
        trainer_of(tmp_path, rows=items, regularizers=[SubwordConsistency(TOKENIZER)])


def test_texts_need_a_tokenizer(tmp_path):
    with pytest.raises(FlatlingoError, match="processing_class"):
        RegularizedTrainer(model=make_model(), args=arguments(tmp_path), train_dataset=make_rows(4))


def test_rows_must_fit_the_model(tmp_path):
    with pytest.raises(FlatlingoError, match="max_length 65.*64 positions"):
        trainer_of(tmp_path, max_length=65)


def test_names_must_differ(tmp_path):
    with pytest.raises(FlatlingoError, match="'l2'"):
        trainer_of(tmp_path, regularizers=[L2(1.0), L2(2.0)])


def test_no_rows_is_an_error():
    with pytest.raises(FlatlingoError, match="no rows"):
        finetune(make_model(), TOKENIZER, [], **SETTINGS)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0}, {"epochs": -1}, {"batch_size": 0}, {"gradient_accumulation_steps": 0}, {"learning_rate": -1.0},
        {"learning_rate": float("nan")}, {"weight_decay": -0.1}, {"warmup": 1.0}, {"max_grad_norm": -1.0},
        {"max_length": 3},
    ],
    ids=str,
)  # fmt: skip
def test_a_number_out_of_its_range_is_named(wrong):
    with pytest.raises(FlatlingoError, match=next(iter(wrong))):
        finetune(make_model(), TOKENIZER, make_rows(4), **SETTINGS | wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"eval_rows": []}, "no eval_rows"),
        ({"eval_rows": [{"text_a": "the cat", "text_b": "a dog"}]}, "row 0 has no label"),
        (
            {"rows": [{"text_a": "the \ud83d", "text_b": "a dog", "label": 0}]},
            "text_a of row 0 has half of a surrogate",
        ),
        ({"model": make_model().requires_grad_(False)}, "requires_grad_"),
        ({"model": make_model(labels=1), "rows": make_rows(8, labels=1), "label_smoothing": 0.1}, "label smoothing"),
    ],
    ids=["no evaluation rows", "no evaluation labels", "half a pair", "frozen", "smoothed regression"],
)
def test_what_cannot_be_trained_is_told_before(wrong, message):
    with pytest.raises(FlatlingoError, match=message):
        train(**{"rows": make_rows(8)} | wrong)


def test_labels_with_names_are_matched_with_the_models_classes(tmp_path):
    names, rows = ["no", "maybe", "yes"], make_rows(8)
    features = Features({"label": ClassLabel(names=names)} | {name: Value("string") for name in ("text_a", "text_b")})
    named = Dataset.from_list([{name: row[name] for name in features} for row in rows], features=features)
    model = make_model()
    model.config.id2label = dict(enumerate(reversed(names)))
    with pytest.warns(UserWarning, match="matched with the labels"):
        trainer = trainer_of(tmp_path, rows=named, model=model, eval_dataset=named)
    expected = [2 - row["label"] for row in rows]
    for found in (trainer.train_dataset, trainer.eval_dataset):
        assert [found[i]["labels"] for i in range(len(rows))] == expected
    with pytest.warns(UserWarning, match="matched with the labels"):
        batch, *_ = batches(TOKENIZER, named, max_length=32, batch_size=8, model=model)
    plain, *_ = batches(TOKENIZER, named, max_length=32, batch_size=8)
    assert batch["labels"].tolist() == [2 - label for label in plain["labels"].tolist()]
    model.config.id2label = dict(enumerate(["red", "green", "blue"]))
    with pytest.raises(FlatlingoError, match="cannot be matched by name"):
        trainer_of(tmp_path, rows=named, model=model)


@pytest.mark.parametrize("class_weights", [[1.0, 5.0, 0.2], [1.0, 1.0, 1.5]], ids=str)
@pytest.mark.parametrize("initial", [0.2, 0.02], ids=["spread logits", "a fresh head"])
@pytest.mark.parametrize("kind", ["gradient norm", "r_drop", "l2"])
def test_a_term_with_labels_refuses_a_model_with_another_loss(kind, initial, class_weights):
    class Weighted(BertForSequenceClassification):
        def forward(self, *args, labels=None, **kwargs):
            outputs = super().forward(*args, **kwargs)
            if labels is not None:
                outputs.loss = F.cross_entropy(outputs.logits, labels, weight=torch.tensor(class_weights))
            return outputs

    model = make_model(dropout=0.1, initializer_range=initial)
    model.__class__ = Weighted
    term = {"gradient norm": GradientNormPenalty, "r_drop": RDrop, "l2": L2}[kind](0.1)
    if kind == "l2":
        train(term, model=model)
        return
    with pytest.raises(FlatlingoError, match="model's own loss is .* another one"):
        train(term, model=model)


def test_a_term_that_another_trainer_took_is_told_when_the_first_resumes(tmp_path):
    term = FisherPenalty(0.01)
    first = trainer_of(tmp_path, regularizers=[term], settings={"save_strategy": "epoch", "num_train_epochs": 1})
    first.train()
    trainer_of(tmp_path, regularizers=[term])
    with pytest.raises(FlatlingoError, match="fisher_penalty was given to another trainer since"):
        first.train(resume_from_checkpoint=True)


def test_batches_have_rows():
    with pytest.raises(FlatlingoError, match="batch_size must be 1 or more, got 0"):
        batches(TOKENIZER, make_rows(4), max_length=32, batch_size=0)


def resumable(folder, *kinds, **settings) -> RegularizedTrainer:
    """Two epochs of three updates, a checkpoint after every second."""
    defaults = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2}
    model, regularizers = make_model(dropout=0.1), [KINDS[kind](0.1) for kind in kinds]
    return trainer_of(folder, rows=make_rows(12), model=model, regularizers=regularizers, settings=defaults | settings)


@pytest.mark.parametrize(
    "kind", ["clean consistency", "fisher_penalty", "l2_sp", "r4f", "r_drop", "smart", "weight_noise", "mixout"]
)
def test_resumed_training_continues_as_if_never_stopped(tmp_path, kind):
    whole, resumed = resumable(tmp_path, kind), resumable(tmp_path / "resumed", kind, save_strategy="no")
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert torch.equal(weights(whole.model), weights(resumed.model))


def test_training_resumed_after_an_epoch_continues_as_if_never_stopped(tmp_path):
    kinds = ["consistency", "fisher_penalty", "weight_noise", "mixout"]
    whole, resumed = resumable(tmp_path, *kinds, save_steps=3), resumable(tmp_path / "resumed", *kinds)
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert torch.equal(weights(whole.model), weights(resumed.model))


def test_resuming_without_the_generators_warns(tmp_path):
    whole, resumed = resumable(tmp_path, "fisher_penalty"), resumable(tmp_path / "resumed", "fisher_penalty")
    whole.train()
    (tmp_path / "checkpoint-2" / "regularizers_0.safetensors").unlink()
    with pytest.warns(UserWarning, match="no random generator of fisher_penalty"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert not torch.equal(weights(whole.model), weights(resumed.model))


def test_label_smoothing_reaches_every_cross_entropy():
    _, log = train(KINDS["consistency"](0.7), RDrop(0.3), label_smoothing=0.2, batch_size=4)
    for entry in (entry for entry in log if "loss" in entry):
        task = entry["loss/task"]
        mvr = (entry["consistency/view_cross_entropy"] - task) / 2 + 0.7 * entry["consistency/kl"]
        r_drop = (entry["r_drop/view_cross_entropy"] - task) / 2 + 0.3 * entry["r_drop/mean_symmetric_kl"]
        assert entry["loss"] == pytest.approx(task + mvr + r_drop, rel=1e-4)


def test_sam_follows_the_gradient_at_the_worst_point_nearby(tmp_path):
    rows, start = make_rows(8), make_model(dtype=torch.float64)
    settings = {"per_device_train_batch_size": 8, "max_steps": 1, "optim": "sgd", "learning_rate": 0.1}
    settings |= {"max_grad_norm": 0.0, "logging_steps": 1}
    trainer = trainer_of(
        tmp_path, rows=rows, model=copy.deepcopy(start), regularizers=[L2(0.5)], sam=SAM(0.3), settings=settings
    )
    trainer.train()
    batch = PairCollator(TOKENIZER)(EncodedRows(rows, TOKENIZER, max_length=64))
    parameters = list(start.parameters())

    def loss():
        return start(**batch).loss + 0.25 * sum(w.square().sum() for w in parameters)

    g = torch.autograd.grad(loss(), parameters)
    norm, value = sum(part.square().sum() for part in g).sqrt(), float(loss().detach())
    with torch.no_grad():
        for w, part in zip(parameters, g, strict=True):
            w.add_(0.3 * part / norm)
    worst = torch.autograd.grad(loss(), parameters)
    with torch.no_grad():
        for w, part, step in zip(parameters, g, worst, strict=True):
            w.sub_(0.3 * part / norm).sub_(0.1 * step)
    torch.testing.assert_close(weights(trainer.model), weights(start), rtol=1e-9, atol=1e-12)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_both_gradients_of_sam_have_a_penalty_of_every_other_step(tmp_path, accumulated):
    """At a radius of nearly nothing SAM is plain training with the penalty, which is felt."""
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": accumulated, "optim": "sgd"}
    settings |= {"learning_rate": 0.1, "num_train_epochs": 1}
    ends = []
    for terms, sam in [([TracePenalty(1.0, every=2)], SAM(1e-12)), ([TracePenalty(1.0, every=2)], None), ([], None)]:
        model = make_model(dtype=torch.float64)
        trainer_of(tmp_path, model=model, regularizers=terms, sam=sam, settings=settings).train()
        ends.append(weights(model))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-8, atol=1e-10)
    assert (ends[1] - ends[2]).abs().max() > 1e-3


def test_sam_goes_together_with_terms():
    def run(**settings):
        terms = [KINDS[kind](0.01) for kind in ("consistency", "fisher_penalty", "r4f", "weight_noise", "mixout")]
        model, log = train(*terms, rows=make_rows(16), epochs=1, batch_size=4, **settings)
        return weights(model), [entry for entry in log if "loss" in entry]

    first, log = run(sam=SAM(), gradient_accumulation_steps=2)
    assert torch.equal(run(sam=SAM(), gradient_accumulation_steps=2)[0], first)
    assert not torch.equal(run(gradient_accumulation_steps=2)[0], first)
    for entry in log:
        assert sum(value for key, value in entry.items() if key.startswith("loss/")) == pytest.approx(
            entry["loss"], 1e-5
        )


@pytest.mark.parametrize("kind", [None, "r3f", "mixout"], ids=str)
def test_weight_decay_is_decoupled_from_loss_and_terms(tmp_path, kind):
    settings = {"max_steps": 1, "learning_rate": 0.01, "per_device_train_batch_size": 4}
    trained = {}
    for decay in (0.0, 0.5):
        regularizers = [KINDS[kind](0.1)] if kind else []
        trainer = trainer_of(tmp_path, regularizers=regularizers, settings=settings | {"weight_decay": decay})
        trainer.train()
        trained[decay] = dict(trainer.model.named_parameters())
    for name, start in make_model().named_parameters():
        shrunk = 0.01 * 0.5 * start if not ("bias" in name or "LayerNorm" in name) else torch.zeros_like(start)
        torch.testing.assert_close(trained[0.0][name] - trained[0.5][name], shrunk, rtol=1e-3, atol=1e-6)


def test_early_stopping_and_the_best_model_go_together_with_terms(tmp_path):
    settings = {"num_train_epochs": 30, "learning_rate": 0.03, "eval_strategy": "epoch", "save_strategy": "epoch"}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
    trainer = trainer_of(
        tmp_path,
        regularizers=[kind(0.1) for name, kind in KINDS.items() if name not in ("clean consistency", "r_drop")],
        settings=settings,
        eval_dataset=make_rows(8, seed=5),
        callbacks=[EarlyStoppingCallback(2)],
    )
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(losses) == losses.index(min(losses)) + 3 < 30
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-5)


def test_patience_stops_early_and_keeps_the_best_weights():
    rows = make_rows(8, seed=5)
    model, log = train(rows=make_rows(12), eval_rows=rows, patience=2, epochs=30, learning_rate=0.05)
    losses = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    assert len(losses) == losses.index(min(losses)) + 3 < 30
    (batch,) = batches(TOKENIZER, rows, max_length=32, batch_size=8)
    with torch.no_grad():
        assert float(F.cross_entropy(model(**batch).logits, batch["labels"])) == pytest.approx(min(losses), rel=1e-4)


@pytest.mark.parametrize("settings", [{"patience": 2}, {"patience": 0, "eval_rows": make_rows(4)}], ids=str)
def test_early_stopping_needs_rows_and_patience(settings):
    with pytest.raises(FlatlingoError, match="early stopping needs eval_rows"):
        train(**settings)


@pytest.mark.parametrize("kind", ["lnsr", "weight_noise", "mixout", "finite differences"])
@pytest.mark.parametrize("how", ["arguments", "model"])
def test_passes_that_cannot_be_run_again_refuse_activation_checkpointing(tmp_path, kind, how):
    model, settings = make_model(), {"activation_checkpointing": how == "arguments"}
    if how == "model":
        model.activation_checkpointing_enable()
    term = (KINDS | {"finite differences": partial(FisherPenalty, method="finite-difference")})[kind](0.1)
    with pytest.raises(FlatlingoError, match=f"{term.name}.*checkpointing"):
        trainer_of(tmp_path, model=model, regularizers=[term], settings=settings)


def test_activation_checkpointing_is_seen_if_it_is_switched_on_later(tmp_path):
    model = make_model()
    trainer = trainer_of(tmp_path, model=model, regularizers=[KINDS["weight_noise"](0.1)])
    model.activation_checkpointing_enable()
    with pytest.raises(FlatlingoError, match=r"weight_noise.*checkpointing"):
        trainer.train()


def test_finite_differences_refuse_mixed_weights():
    """At the weights training begins with mixout changes nothing; at others its masks would be taken for curvature."""
    with pytest.raises(FlatlingoError, match="twice gives different logits"):
        train(FisherPenalty(0.01, method="finite-difference"), Mixout(0.3))


def test_two_terms_that_record_the_clean_pass_are_refused(tmp_path):
    with pytest.raises(FlatlingoError, match="trace_penalty and trace_target both record"):
        trainer_of(tmp_path, regularizers=[TracePenalty(), TraceTarget(5.0)])


@pytest.mark.parametrize("kind", ["consistency", "r4f", "smart"])
def test_activation_checkpointing_changes_nothing(tmp_path, kind):
    both = []
    for checkpointing in (False, True):
        settings = {"max_steps": 3, "activation_checkpointing": checkpointing, "per_device_train_batch_size": 4}
        model = make_model(dropout=0.1)
        trainer_of(tmp_path, model=model, regularizers=[KINDS[kind](0.1)], settings=settings).train()
        both.append(weights(model))
    assert torch.equal(*both)


@pytest.mark.parametrize("kind", ["consistency", "r_drop", "gradient_norm"])
def test_terms_with_a_cross_entropy_refuse_another_loss(tmp_path, kind):
    model, terms = make_model(dropout=0.1), [KINDS[kind](0.1)]
    with pytest.raises(FlatlingoError, match=f"{kind}.*compute_loss_func"):
        trainer_of(tmp_path, model=model, regularizers=terms, compute_loss_func=lambda outputs, labels, **_: 0)


@pytest.mark.parametrize("kind", ["fisher_penalty", "gradient_norm"])
@pytest.mark.parametrize("setting", ["fp16", "torch_compile"])
def test_terms_made_of_gradients_refuse_what_loses_them(tmp_path, kind, setting):
    args = arguments(tmp_path)
    setattr(args, setting, True)
    given = {"train_dataset": make_rows(4), "processing_class": TOKENIZER, "regularizers": [KINDS[kind](0.1)]}
    with pytest.raises(FlatlingoError, match=f"{kind} is made of gradients: .*{setting}"):
        RegularizedTrainer(make_model(), args, **given)


def test_one_process_with_several_gpus_is_refused(tmp_path):
    args = arguments(tmp_path)
    args._n_gpu = 2
    with pytest.raises(FlatlingoError, match="one process sees 2 GPUs, .*accelerate launch"):
        RegularizedTrainer(make_model(), args, train_dataset=make_rows(4), processing_class=TOKENIZER)


def test_terms_begin_where_the_model_is_trained_also_where_it_is_scored_in_half_precision(tmp_path):
    moved = []

    class Trainer(RegularizedTrainer):
        def _move_model_to_device(self, model, device):
            moved.append("moved")

        def _start(self, model):
            moved.append("begun")

    args = arguments(tmp_path, use_cpu=True, bf16_full_eval=True)
    Trainer(make_model(), args, train_dataset=make_rows(4), processing_class=TOKENIZER, max_length=64)
    assert moved == ["moved", "begun"]


def test_sam_refuses_fp16(tmp_path):
    args = arguments(tmp_path)
    args.fp16 = True
    with pytest.raises(FlatlingoError, match="SAM.*fp16"):
        RegularizedTrainer(
            model=make_model(),
            args=args,
            train_dataset=make_rows(4),
            processing_class=TOKENIZER,
            sam=SAM(),
            max_length=64,
        )


def test_a_failed_training_leaves_no_hooks_behind():
    model = make_model(dropout=0.1)
    with pytest.raises(FlatlingoError, match="breaking"):
        train(*(KINDS[kind](0.1) for kind in ("mixout", "r4f", "vat")), Breaking(1.0), model=model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_rows_that_are_cut_are_counted(monkeypatch):
    monkeypatch.setattr(TOKENIZER, "model_max_length", 14)
    monkeypatch.setattr(TOKENIZER, "deprecation_warnings", {})
    rows = make_rows(24)
    lengths = [len(TOKENIZER(row["text_a"], row["text_b"], verbose=False)["input_ids"]) for row in rows]
    cut = sum(length > 14 for length in lengths)
    assert 0 < cut < sum(length >= 14 for length in lengths)
    with pytest.warns(UserWarning, match=f"{cut} of 24 training rows are longer than max_length 14"):
        train(rows=rows, max_length=14, epochs=1)
    assert not TOKENIZER.deprecation_warnings  # transformers has not warned of "indexing errors" to come


def test_views_that_are_cut_are_counted_though_the_rows_are_not():
    rows, term = make_rows(24), KINDS["clean consistency"](0.1)
    longest = max(len(TOKENIZER(row["text_a"], row["text_b"])["input_ids"]) for row in rows)
    views = [term.features(row, seed=1, epoch=0, max_length=64) for row in rows]
    cut = sum(len(view["input_ids"]) > longest for view in views)
    assert 0 < cut < 24
    with pytest.warns(UserWarning, match=rf"{cut} of the first 24 perturbed views of consistency .* {longest}") as seen:
        train(term, rows=rows, max_length=longest, epochs=1)
    assert len(seen) == 1


@pytest.mark.parametrize("text", ["", " \t", "\u200b\u0000"], ids=["empty", "blank", "dropped characters"])
def test_texts_without_pieces_are_counted(text):
    rows = make_rows(8)
    rows[5]["text_b"] = text
    with pytest.warns(UserWarning, match="1 of 16 training texts have no pieces.*text_b of row 5"):
        train(KINDS["consistency"](0.1), rows=rows, epochs=1)


@pytest.mark.parametrize("kind", [*KINDS.values(), TracePenalty], ids=[*KINDS, "trace_penalty"])
def test_terms_act_on_the_model_that_model_init_makes(tmp_path, kind):
    trained, prototype = [], make_model(dropout=0.1)
    for made in ({"model": copy.deepcopy(prototype)}, {"model_init": lambda: copy.deepcopy(prototype)}):
        trainer = trainer_of(tmp_path, regularizers=[kind(0.1)], settings={"max_steps": 3}, **made)
        trainer.train()
        trained.append(weights(trainer.model))
    assert torch.equal(*trained)


def test_every_training_with_model_init_begins_anew(tmp_path):
    trainer = trainer_of(
        tmp_path,
        model_init=lambda: make_model(dropout=0.1),
        regularizers=[KINDS[kind](0.1) for kind in ("l2_sp", "mixout", "r4f", "vat")],
        settings={"max_steps": 2},
    )
    trained = []
    for _ in range(2):
        trainer.train()
        trained.append(weights(trainer.model))
    assert torch.equal(*trained)


@pytest.mark.parametrize("kind", ["l2_sp", "mixout", "r4f", "r3f"])
def test_a_model_may_change_between_trainer_and_training(tmp_path, kind):
    def changed(model):
        model.bert.encoder.layer[0] = make_model(dropout=0.1, seed=1).bert.encoder.layer[1]
        model.classifier = make_model(seed=2).classifier
        model.bert.embeddings.requires_grad_(True)
        return model

    trained = []
    for late in (False, True):
        model = make_model(dropout=0.1)
        model.bert.embeddings.requires_grad_(False)
        model = model if late else changed(model)
        trainer = trainer_of(tmp_path, model=model, regularizers=[KINDS[kind](0.1)], settings={"max_steps": 3})
        if late:
            changed(model)
        trainer.train()
        trained.append(weights(model))
    assert torch.equal(*trained)


@pytest.mark.parametrize("where", ["clean pass", "pass at the moved weights"])
def test_sam_after_running_out_of_memory_is_as_with_smaller_batches_from_the_start(tmp_path, where):
    class Tight(type(make_model())):
        passes = 0

        def forward(self, *args, **columns):
            self.passes += 1
            if columns["input_ids"].shape[0] > 4 and self.passes == (1 if where == "clean pass" else 2):
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
            return super().forward(*args, **columns)

    trained, failed = [], 1 if where == "clean pass" else 2
    for size in (8, 4):
        model = make_model()
        model.__class__ = Tight
        settings = {"auto_find_batch_size": True, "per_device_train_batch_size": size, "max_steps": 2, "optim": "sgd"}
        settings |= {"learning_rate": 0.1, "max_grad_norm": 0.0}
        rows, terms = make_rows(1) * 16, [KINDS["l2_sp"](0.1)]  # in any order the same
        trainer_of(tmp_path, model=model, rows=rows, regularizers=terms, sam=SAM(0.05), settings=settings).train()
        trained.append(weights(model))
        assert model.passes == 2 * 2 + (failed if size == 8 else 0)
    torch.testing.assert_close(*trained, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sam_is_refused_for_weights_in_half_precision_before_training(tmp_path, dtype):
    with pytest.raises(FlatlingoError, match="SAM.*lost in the rounding.*load the model in float32"):
        trainer_of(tmp_path, model=make_model(dtype=dtype), sam=SAM())


CLASSES = "a whole number .* from 0 to 2, for the 3 labels"


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"label": -1}, {}, f"label of row 3 is -1, not {CLASSES}"),
        ({"label": 3}, {}, f"label of row 3 is 3, not {CLASSES}"),
        ({"label": None}, {}, f"label of row 3 is None, not {CLASSES}"),
        ({"label": 1.0}, {}, f"label of row 3 is 1.0, not {CLASSES}"),
        ({"label": float("nan")}, {}, f"label of row 3 is nan, not {CLASSES}"),
        ({"label": "neutral"}, {}, f"label of row 3 is 'neutral', not {CLASSES}"),
        ({"label": True}, {}, f"label of row 3 is True, not {CLASSES}"),
        ({"label": [1.0, 0.0, 1.0]}, {}, f"label of row 3 is .*, not {CLASSES}"),
        ({"text_b": None}, {}, "text_b of row 3 is None, not a text"),
        ({"text_a": float("nan")}, {}, "text_a of row 3 is nan, not a text"),
        ({"text_b": 7, "row_id": "x7"}, {}, "text_b of row 'x7' is 7, not a text"),
        ({"label": float("inf")}, {"labels": 1}, "label of row 3 is inf, not a number"),
        ({"label": 1}, {"problem_type": "multi_label_classification"}, "label of row 0 is .*, not a list of 3 floats"),
    ],
    ids=str,
)
@pytest.mark.parametrize("which", ["rows", "eval_rows"])
def test_rows_that_cannot_be_learnt_are_named_before_training(changes, settings, message, which):
    rows = make_rows(8)
    rows[3] |= changes
    given = {"rows": make_rows(8), "eval_rows": make_rows(4)} | {which: rows}
    if settings.get("problem_type"):
        given = {which: rows, "rows": rows}
    with pytest.raises(FlatlingoError, match=message):
        train(model=make_model(**settings), **given)


@pytest.mark.parametrize("column", ["text_b", "label"])
def test_rows_that_lack_a_column_are_named_before_training(column):
    rows = make_rows(8)
    del rows[5][column]
    with pytest.raises(FlatlingoError, match=f"row 5 has no {column}"):
        train(rows=rows)


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        ({"labels": 1}, float),
        ({"labels": 1}, int),
        ({"problem_type": "multi_label_classification"}, lambda y: [float(y == c) for c in range(3)]),
        ({}, np.int64),
    ],
    ids=["regression", "regression on whole numbers", "several labels at once", "NumPy's integers"],
)
def test_labels_of_the_models_own_kind_are_learnt(settings, label, tmp_path):
    rows = [row | {"label": label(row["label"])} for row in make_rows(8)]
    trainer = trainer_of(tmp_path, model=make_model(**settings), rows=rows, settings={"max_steps": 2})
    assert trainer.train().training_loss > 0


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_label_smoothing_is_a_share(share):
    with pytest.raises(FlatlingoError, match="label smoothing.*from 0 to 1"):
        train(label_smoothing=share)


def test_adapting_leaves_the_first_stage_untouched():
    english, _ = train()
    before = copy.deepcopy(english.state_dict())
    spanish = adapt(english, TOKENIZER, make_rows(16, seed=7), **SETTINGS)
    assert all(torch.equal(value, english.state_dict()[name]) for name, value in before.items())
    assert not torch.equal(weights(spanish), weights(english))
    assert not spanish.training


def test_second_stage_takes_regularizers():
    english = make_model()
    rows = make_rows(16, seed=7)
    free = adapt(english, TOKENIZER, rows, **SETTINGS)
    held = adapt(english, TOKENIZER, rows, regularizers=[L2SP(100.0)], **SETTINGS)
    assert (weights(held) - weights(english)).norm() < (weights(free) - weights(english)).norm()


def batches_of(sampler, size):
    order = list(sampler)
    return [order[start : start + size] for start in range(0, len(order), size)]


def test_rows_grouped_by_length_are_each_trained_once_per_epoch_in_batches_of_like_length():
    rows = EncodedRows(make_rows(203), TOKENIZER, max_length=32)
    lengths = np.array([len(item["input_ids"]) for item in rows.clean])
    sampler = LengthGroupedSampler(rows, 8, seed=1)
    first = batches_of(sampler, 8)
    assert sorted(position for batch in first for position in batch) == list(range(203))
    assert [len(batch) for batch in first] == [8] * 25 + [3]
    padded = sum(lengths[batch].max() * len(batch) for batch in first)
    shuffled = batches_of(np.random.default_rng(0).permutation(203), 8)
    assert padded < lengths.sum() + 0.2 * (sum(lengths[b].max() * len(b) for b in shuffled) - lengths.sum())
    longest = [lengths[batch].max() for batch in first[:-1]]
    assert longest != sorted(longest)
    assert longest != sorted(longest, reverse=True)
    assert batches_of(sampler, 8) == first, "the same epoch again"
    rows.set_epoch(1)
    assert batches_of(sampler, 8) != first


def test_training_on_grouped_rows_resumes_as_if_never_stopped(tmp_path):
    def trainer(folder, **settings):
        defaults = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 4}
        model, terms = make_model(dropout=0.1), [KINDS["clean consistency"](0.1)]
        return trainer_of(
            folder,
            rows=make_rows(12),
            model=model,
            regularizers=terms,
            group_by_length=True,
            settings=defaults | settings,
        )

    whole, resumed = trainer(tmp_path), trainer(tmp_path / "resumed", save_strategy="no")
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert torch.equal(weights(whole.model), weights(resumed.model))
    ungrouped = resumable(tmp_path / "other", "clean consistency", save_strategy="no")
    ungrouped.train()
    assert not torch.equal(weights(whole.model), weights(ungrouped.model))

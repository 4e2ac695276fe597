"""What a training tells while it runs."""

import pytest
from tiny import make_model, make_rows, make_tokenizer

from flatlingo import watching
from flatlingo.training import finetune


@pytest.mark.parametrize(("seconds", "lines"), [(0, 5), (3600, 0)], ids=["due after every step", "not yet due"])
def test_a_line_a_minute_tells_step_loss_and_time_left(monkeypatch, capsys, seconds, lines):
    monkeypatch.setattr(watching, "LINE_SECONDS", seconds)
    finetune(
        make_model(),
        make_tokenizer(),
        make_rows(20),
        seed=0,
        epochs=1,
        batch_size=4,
        learning_rate=1e-3,
        max_length=32,
        callbacks=[watching.MinuteLines()],
    )
    written = capsys.readouterr().err.splitlines()
    assert len(written) == lines
    assert all(f" step {number} of 5" in line and " s left" in line for number, line in enumerate(written, start=1))
    assert all("loss " in line for line in written[1:])

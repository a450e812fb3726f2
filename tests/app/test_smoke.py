"""The two steps and eight prompts before a run: where they train, in which type they answer, what they leave."""

from mosaic.app import validation
from mosaic.app.config import load_config
from mosaic.app.wiring import open_inputs


def test_the_smoke_test_trains_where_the_run_will_and_answers_in_its_type(monkeypatch):
    config = load_config(
        "lab",
        ["executor.kind=subprocess", "generator={kind: vllm, dtype: bfloat16, max_new_tokens: 8}"],
    )
    made = []

    class Noted(validation.TransformersGenerator):
        """Remembers what was made and whether it let go of its model."""

        def __init__(self, base, settings):
            super().__init__(base, settings)
            made.append(self)

    def here(*_):
        raise AssertionError("trained in the controller's process")

    monkeypatch.setattr("training.methods.sft.train", here)
    monkeypatch.setattr(validation, "TransformersGenerator", Noted)
    finding, measured = validation._smoke(config, open_inputs(config), serve=False)
    assert "after 2 steps, " in finding["result"]
    assert measured.training
    assert made[0].config.dtype == "bfloat16"
    assert "_base" not in made[0].__dict__

"""What the demo must say about its own figures, so that nobody takes them for more than they are."""

from __future__ import annotations

from sluiceway.core.catalog import Api, Model
from sluiceway.core.outcome import BAR_NOT_PROVED
from sluiceway.core.policy import Policy
from sluiceway.core.task import ScoreKind, Task

LEFT_OUT = 16
TRAINED_ON = 9502
HELD_OUT = 3077
STUDENT_ACCURACY = 0.892
"""Of the student's own first choice, on the 500."""


def behind(model: Model) -> str:
    """The real model behind a rung."""
    name = model.model or model.name
    return f"{model.provider}/{name}" if model.provider else name


def honest(policy: Policy, task: Task, *, own_policy: bool) -> list[str]:
    """Short paragraphs on where answers, prices, times and scores come from."""
    models = [policy.models[rung.model] for rung in task.ladder]
    recorded = [model for model in models if model.api is Api.RECORDED]
    origins = sorted({policy.prices[model.name].partition(":")[0] for model in models})
    found = []
    if recorded:
        found.append(
            f"Answers are recorded ({', '.join(behind(model) for model in recorded)}): no model was called. Tokens are"
            f" tiktoken's count of our prompts and the answers; prices: {', '.join(origins)}, list price."
        )
        found.append(
            "How long the models took is not on record: p50, p99 and jobs/s are the pipeline's alone, waiting in"
            " Kafka included, at the pace at which the demo publishes."
        )
    if not own_policy:
        found.append(
            f"The recorded prompt left out {LEFT_OUT} of the 77 labels, so accuracy is low for every model; a ticket"
            " that went to a person counts as wrong."
        )
        found.append(
            "No logprobs are on record either: the score is a small classifier's, trained on"
            f" {TRAINED_ON:,} labelled tickets that are not among these 500; its threshold was chosen on {HELD_OUT:,}"
            f" others. Alone it is right on {STUDENT_ACCURACY:.3f} of them: with labels like that, make it a rung."
        )
        found.append("The curve asks the same record what other thresholds would have cost and got right.")
    elif task.gate is not None and task.gate.score is ScoreKind.LOCAL:
        found.append("The score is a local classifier's: how well it was calibrated is for you to know.")
    if task.bar is not None:
        found.append(f"The bar (agreement {task.bar.agreement:g}) is {BAR_NOT_PROVED}.")
    return found

"""What the demo must say about its own figures, so that nobody takes them for more than they are."""

from __future__ import annotations

from sluiceway.core.catalog import Api, Model
from sluiceway.core.outcome import BAR_NOT_PROVED
from sluiceway.core.policy import Policy
from sluiceway.core.task import ScoreKind, Task

LEFT_OUT = 16
TRAINED_ON = 9502
STUDENT_ACCURACY = 0.884
"""Of the student's own first choice, on the 500."""


def behind(model: Model) -> str:
    """The real model behind a rung."""
    name = model.model or model.name
    return f"{model.provider}/{name}" if model.provider else name


def recorded(policy: Policy, task: Task) -> bool:
    """Whether no rung of the task calls a real model."""
    return all(policy.models[rung.model].api in (Api.RECORDED, Api.LOCAL) for rung in task.ladder)


def honest(policy: Policy, task: Task, *, own_policy: bool) -> list[str]:
    """Short paragraphs on where answers, prices, times and scores come from."""
    origins = sorted({policy.prices[rung.model].partition(":")[0] for rung in task.ladder})
    priced = " and ".join(f"{name} (list price)" if name.startswith("genai") else name for name in origins)
    found = []
    if recorded(policy, task):
        found.append(
            "Answers are recorded: no model was called. Cost: tiktoken's count of our prompts and the answers,"
            f" priced by {priced}."
        )
        found.append(
            "Model latency is not on record: p50, p99 and jobs/s are the pipeline's, waiting in Kafka included, at"
            " the pace at which the demo publishes."
        )
    else:
        found.append(f"Tokens are as the models metered them, priced by {priced}. The models' time is in p50 and p99.")
    if not own_policy:
        found.append(
            f"Accuracy is low for every model because the recorded prompts left {LEFT_OUT} of the 77 labels out."
            " Tickets left to a person count as wrong."
        )
        found.append(
            "No logprobs on record: the score is a small local classifier's, trained on"
            f" {TRAINED_ON:,} labelled tickets that are not among the 500. Its own first choice is right on"
            f" {STUDENT_ACCURACY:.3f} of them: if you have such labels, make it a rung."
        )
    elif task.gate is not None and task.gate.score is ScoreKind.LOCAL:
        found.append("The score is a local classifier's: how well it is calibrated is yours to know.")
    if task.bar is not None:
        found.append(f"The bar (agreement {task.bar.agreement:g}) is {BAR_NOT_PROVED}.")
    return found

"""The verifier judge: deterministic rules over the answer, the rules being data of the suite.

A channel is read from all assistant turns or from the last, as the objective says; an item of all
turns holds if its rule holds for any of them. See `eval.judges.rules` for what a rule is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eval.judges.by_code import check_answers
from eval.judges.rehearsal import rehearse
from eval.judges.rules import Rule, holds
from eval.objectives.base import Channel, Objective, by_code
from mosaic.core.types.base import digest_of
from mosaic.core.types.evaluation import Judgment, Prompt, Response

VERSION = 2


class VerifierJudge:
    """Judges by the rules that a prompt carries."""

    digest = digest_of({"judge": "verifier", "version": VERSION})

    def judge(
        self, objective: Objective, prompts: Sequence[Prompt], responses: Sequence[Response]
    ) -> list[Judgment]:
        """See `Judge`. ValueError if a response does not answer its prompt."""
        if by_code(objective):
            return check_answers(objective, prompts, responses)
        return [self._one(objective, p, r) for p, r in zip(prompts, responses, strict=True)]

    def unscorable(self, objective: Objective, prompt: Prompt) -> str | None:
        """See `SuiteJudge`."""
        return rehearse(objective, prompt, lambda r: self.judge(objective, [prompt], [r])[0])

    def _one(self, objective: Objective, prompt: Prompt, response: Response) -> Judgment:
        if prompt.id != response.id:
            raise ValueError(f"response {response.id} does not answer prompt {prompt.id}")
        items: dict[str, dict[str, int]] = {}
        for channel in objective.answers:
            rules = prompt.rules.get(channel.name)
            reason = _lacking(channel, rules)
            if not rules or reason:
                return Judgment(id=prompt.id, status="failed", reason=reason, judge=self.digest)
            texts = response.answers if channel.turns == "all" else response.answers[-1:]
            items[channel.name] = {item: _in_any(rule, texts) for item, rule in rules.items()}
        stored = objective.stored(prompt, items)
        return Judgment(id=prompt.id, status="ok", items=stored, judge=self.digest)


def _lacking(channel: Channel, rules: Mapping[str, Rule] | None) -> str:
    """What the rules of a channel lack, or have too much, "" if they are whole."""
    if not rules:
        return f"the prompt has no rules for {channel.name}"
    missing = [item for item in channel.ranges if item not in rules]
    if missing:
        return f"the prompt has no rule for {channel.name}.{missing[0]}"
    unknown = [item for item in rules if item not in channel.ranges]
    return f"a rule for {channel.name}.{unknown[0]}, which it does not have" if unknown else ""


def _in_any(rule: Rule, texts: Sequence[str]) -> int:
    return int(any(holds(rule, text) for text in texts))

"""What a server says when it does not answer: its sentence, whether it wants money, what mends it.

Servers agree on little: the sentence stands under `error.message`, `detail`, `msg` or nowhere. A
provider that wants payment says so with its status, with a code, or only in words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from eval.chat.fault import MAX_DEPTH
from eval.chat.strict_json import NotStrict, strict_json
from mosaic.core.types.base import JsonObject, canonical_json

SENTENCES = ("message", "detail", "msg", "error_msg", "errorMessage", "error_message", "reason")
CODES = ("code", "type", "status", "error_code")
UNPAID_CODES = re.compile(
    r"insufficient_(quota|balance|funds|credits?)|billing_\w+|payment_required|arrearage|"
    r"access_terminated|credits?_exhausted|out_of_credits?",
    re.IGNORECASE,
)
UNPAID_WORDS = re.compile(
    r"insufficient[\w ]{0,20} (balance|quota|funds?|credits?)|(balance|quota|funds?|credits?) "
    r"(is|are|was)?\s*(insufficient|exhausted|used up|too low)|(out of|no more|no) credits?|"
    r"(requires?|needs?) more (credits?|funds?)|balance (is )?(negative|depleted|empty|not enough)|"
    r"spend(ing)? limit|trial (has |period )?(expired|ended)|"
    r"payment (method )?(is )?required|exceeded your (current|monthly) quota|billing (hard )?limit|"
    r"(check|update) your (plan and )?billing|account is not active|in arrears|"
    r"top up your|add (more )?(credits?|funds)|余额不足|欠费",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Refusal:
    """What an error's body says. Empty texts if it does not say.

    `code` is the server's word for it, `param` the request field that it names, `status` an HTTP
    status that stands in the body.
    """

    sentence: str = ""
    code: str = ""
    param: str = ""
    status: int | None = None

    def unpaid(self, status: int | None, retry_after: float | None) -> bool:
        """Whether the provider wants money first.

        Words alone are not enough if the server says when to come back: that is a rate limit.
        """
        codes = (self.code, self.sentence)  # some servers send nothing but the code
        if status == 402 or any(UNPAID_CODES.fullmatch(code) for code in codes):
            return True
        comes_back = retry_after is not None or "retry in" in self.sentence.lower()
        return not comes_back and UNPAID_WORDS.search(self.sentence) is not None


def refusal_of(body: bytes) -> Refusal:
    """What an error's body says, in the forms of OpenAI, vLLM, Gemini and others, or a plain page.

    >>> refusal_of(b'{"error": {"message": "no credit", "code": "insufficient_quota"}}').code
    'insufficient_quota'
    >>> refusal_of(b"Bad Gateway").sentence
    'Bad Gateway'
    """
    text = body.decode(errors="replace").lstrip("\ufeff")
    try:
        value = strict_json(text, max_depth=MAX_DEPTH)
    except NotStrict:
        return Refusal(text)
    return refusal_in(value)


def refusal_in(value: JsonValue) -> Refusal:
    """What the JSON value of an error's body says."""
    if isinstance(value, list) and len(value) == 1:  # Gemini
        value = value[0]
    error: JsonValue = value
    if isinstance(value, dict):
        error = value.get("error") or value.get("errors") or value
        if isinstance(error, list) and len(error) == 1:
            error = error[0]
    if not isinstance(error, dict):
        sentence = error if isinstance(error, str) else canonical_json(error)
        outer = value if isinstance(value, dict) else {}
        return Refusal(sentence, _first_text(outer, CODES), status=_status(outer))
    sentence = _first_text(error, SENTENCES)
    if not sentence:
        sentence = canonical_json(error) if error else ""
    param = error.get("param")
    return Refusal(
        sentence=sentence,
        code=_first_text(error, CODES),
        param=param if isinstance(param, str) else "",
        status=_status(error),
    )


def error_of(body: bytes) -> tuple[str, str]:
    """(sentence, code) of an error's body. Empty if there is none."""
    refusal = refusal_of(body)
    return refusal.sentence, refusal.code


def _first_text(error: Mapping[str, JsonValue], names: tuple[str, ...]) -> str:
    for name in names:
        value = error.get(name)
        if isinstance(value, str) and value.strip():
            return value
    return ""


def _status(error: Mapping[str, JsonValue]) -> int | None:
    """An HTTP status of failure that stands in the body as a number."""
    for name in ("code", "status", "status_code"):
        value = error.get(name)
        if isinstance(value, str) and value.isdecimal() and len(value) == 3:
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 400 <= value < 600:
            return value
    return None


# -- which key mends it ---------------------------------------------------------------------------


TOO_LONG = re.compile(
    r"context (length|window)|(prompt|input|request) is too (long|large)|"
    r"input[\w ]{0,40} exceeds? the (limit|maximum)|too many (input )?tokens"
)


def mend(refusal: str, param: str, body: JsonObject) -> str:
    """The config key that mends a refused request, or "" if no key is known to.

    `refusal` is what the server said, `param` the field that it named, `body` the request.

    >>> body = {"max_tokens": 512, "temperature": 0.0}
    >>> mend("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'", "", body)
    'chat.max_tokens_field: max_completion_tokens'
    >>> mend("temperature does not support 0", "", body)
    'chat.temperature: null'
    """
    text = f"{param} {refusal}".lower()
    for found in (_length(text, body), _tools(text, body), _field(text, body)):
        if found:
            return found
    return ""


def _length(text: str, body: JsonObject) -> str:
    too_long = re.search(
        r"context (length|window)|too (large|long|many)|at most|maximum|less than or equal|"
        r"exceed",
        text,
    )
    if "max_tokens" in body and "max_tokens" in text:
        if "max_completion_tokens" in text:
            return "chat.max_tokens_field: max_completion_tokens"
        if too_long:
            return "chat.max_tokens: a smaller number"
        return "chat.max_tokens_field: max_completion_tokens, or null to leave it out"
    if "max_completion_tokens" in body and "max_completion_tokens" in text:
        if too_long and "unsupported" not in text:
            return "chat.max_tokens: a smaller number"
        return "chat.max_tokens_field: max_tokens, or null to leave it out"
    if TOO_LONG.search(text):
        return "chat.max_tokens: a smaller number, or a model with a longer context"
    return ""


def _tools(text: str, body: JsonObject) -> str:
    if "tools" not in body:
        return ""
    if "tool-call-parser" in text or "enable-auto-tool-choice" in text:
        return (
            "planner.tool_calls: false, or start vLLM with --enable-auto-tool-choice and "
            "--tool-call-parser"
        )
    if re.search(r"tool[ _]choice", text):
        other = "required" if body.get("tool_choice") == "auto" else "auto"
        return f"chat.tool_choice: {other}, any, or null to leave it out"
    if re.search(r"\btools?\b|function call", text):
        return "planner.tool_calls: false"
    return ""


def _field(text: str, body: JsonObject) -> str:
    """The key of a field that stands in the request and in the refusal."""
    for returned in ("reasoning_content", "reasoning_details", "reasoning", "extra_content"):
        if re.search(rf"\b{returned}\b", text) and "reasoning_effort" not in text:
            return "chat.return_fields: standard"
    if "temperature" in body and "temperature" in text:
        return "chat.temperature: null"
    if "random_seed" in text and "seed" in body:
        return "chat.seed_field: random_seed"
    if ("seed" in body or "random_seed" in body) and re.search(r"\b(random_)?seed\b", text):
        return "chat.seed: null"
    if "response_format" in body:
        if re.search(r"\bstrict\b", text):
            return "chat.strict: null"
        if re.search(r"response_format|json_schema|json schema|structured|grammar|schema", text):
            asked = body["response_format"]
            least = isinstance(asked, dict) and asked.get("type") == "json_object"
            return "chat.structured: none" if least else "chat.structured: json_object, or none"
    sent = ("model", "messages", "tools", "tool_choice")
    for name in body:
        if name not in sent and re.search(rf"\b{re.escape(name.lower())}\b", text):
            return f"chat.extra_body: without {name}"
    return ""

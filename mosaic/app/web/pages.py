"""Journal -> what the templates show. Reads, never runs.

A page of a run opens its journal once and folds it once. Of the reasoning it takes a few events of
the newest round; the others are read when somebody opens them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue

from mosaic.app.decisions import user_name, waiting_question
from mosaic.app.runs import config_of, run_config
from mosaic.app.shapes import Report, State, Status
from mosaic.app.standing import standing_of
from mosaic.app.views import plots
from mosaic.app.views.compare import clock_of
from mosaic.app.views.report_data import load, report_of, status_of
from mosaic.app.views.story import Chapter, Entry, Messages, Span, flat
from mosaic.app.views.story_markdown import entry_markdown
from mosaic.app.views.telling import Teller, chapter_title, spans_of
from mosaic.app.views.trace_html import Asked, longest_of
from mosaic.app.views.turns import said_messages
from mosaic.app.web.form import focus_text, prefix_of
from mosaic.core.errors import DamageError, MosaicError, UsageError
from mosaic.core.journal import Journal
from mosaic.core.rows import Step, StepRow
from mosaic.core.store import Store
from mosaic.core.tables import FILE
from mosaic.core.types.base import digest_of
from mosaic.core.types.data import Focus
from mosaic.core.types.evaluation import ROLES, Prompt, Response, Score, Scored
from mosaic.core.types.events import EVENT_KINDS
from mosaic.core.types.plans import ApprovalRequest, Decision, ProposedPlan
from mosaic.core.types.records import AskVerdict, Audit, CloseRound
from mosaic.core.types.runs import Round
from tools.effects.transcripts import read_exchanges

STEERING = ROLES[0]
EXAMPLES = 12
MAX_PLACES = 12  # rows of rounds to come
EVENTS = 40  # events of a round that a page shows at first
RESULTS = 200  # entries that a search shows
# What entries can be filtered by: kinds of events, then of turns of a planner's conversation.
KINDS = [
    *(str(record.model_fields["kind"].default) for record in EVENT_KINDS),
    "model",
    "tool",
    "repair",
    "conclusion",
]


# -- the list of runs ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Headline:
    """A run in the list: where it stands, or why it cannot be read.

    `started` is in seconds since 1970, `seconds` reach from the first event to the last. `scores`
    are the chosen round's on the audit suites, by objective.
    """

    name: str
    state: State | str
    rounds: str = ""
    done: int = 0
    planner: str = ""
    tokens: int = 0
    tokens_left: int = 0
    started: float | None = None
    seconds: float | None = None
    scores: Mapping[str, Score] = field(default_factory=dict)
    error: str = ""


def run_names(folder: Path) -> list[str]:
    """Run directories below a folder, the newest first."""
    dated = []
    for path in folder.glob(f"*/{FILE}"):
        dated.append((path.stat().st_mtime_ns, path.parent.name))
    return [name for _, name in sorted(dated, reverse=True)]


def run_folder(root: Path, name: str) -> Path:
    """The folder of a listed run. Raises UsageError for any other name."""
    if name not in run_names(root):
        raise UsageError(f"no run {name!r} here")
    return root / name


def listing(root: Path) -> list[Headline]:
    """A line per run; one that cannot be read says why."""
    lines = []
    for name in run_names(root):
        try:
            lines.append(headline(root / name))
        except MosaicError as error:
            lines.append(Headline(name, "damaged", error=str(error)))
    return lines


def objectives_of(lines: Sequence[Headline]) -> list[str]:
    """Every objective that some run of a list was audited on."""
    names: dict[str, None] = {}
    for line in lines:
        names |= dict.fromkeys(line.scores)
    return list(names)


def headline(folder: Path) -> Headline:
    """Where a run stands, from counts alone: no round is read."""
    journal = Journal.open(folder)
    try:
        config = config_of(journal)
        closed, last_round = journal.finished(CloseRound)
        _, last_audit = journal.finished(Audit)
        standing = standing_of(journal, finished=last_audit > last_round)
        cap, held, spent = journal.ledger()
        started, seconds = clock_of(journal)
        audits = journal.steps(Audit) if last_audit > last_round else []
    finally:
        journal.close()
    return Headline(
        name=folder.name,
        state=standing.state,
        rounds=f"{max(0, closed - 1)} of {config.rounds}",
        done=max(0, closed - 1),
        planner=config.planner.kind,
        tokens=spent,
        tokens_left=cap - held - spent,
        started=started,
        seconds=seconds,
        scores=audits[-1].result.scores if audits else {},
    )


METHOD_SHARES = "method_shares"
METHOD_GROUPS = (METHOD_SHARES, "practice_weights")


@dataclass(frozen=True)
class MethodRow:
    """A method's share of the tokens, or a practice slice's weight, which is not typed here."""

    path: str
    name: str
    before: float | None
    after: float | None
    typed: bool


# -- the page of a run -----------------------------------------------------------------------------


@dataclass(frozen=True)
class BucketRow:
    """A bucket's share of its data set: before, and as planned; tokens asked and held."""

    name: str
    before: float
    after: float
    asked: int
    stock: int


@dataclass(frozen=True)
class DatasetRow:
    """A data set's share of the tokens, and its buckets."""

    dataset: str
    before: float
    after: float
    buckets: list[BucketRow]


@dataclass(frozen=True)
class Outlook:
    """What is expected of one objective: by the surrogate, with its lower bound, and by the
    planner itself. None if one of them says nothing."""

    objective: str
    predicted: float | None
    low: float | None
    expected: float | None


@dataclass(frozen=True)
class HeatRow:
    """Steering means of one slice, a word per round: `3.4`, `3.4+` or `3.4-` after a believable
    change, `?` if it was not scored."""

    objective: str
    slice: str
    cells: str


@dataclass(frozen=True)
class RoundReasons:
    """A round's reasoning: some events, how many there were before them, and, beside the last
    ones, what its steps took."""

    number: int
    title: str
    entries: list[Entry]
    earlier: int
    spans: list[Span]

    @property
    def first(self) -> int:
        """The number of the first event that is shown."""
        return self.entries[0].seq if self.entries else 0


@dataclass(frozen=True)
class AskedPlan:
    """A plan of the question: `prefix` is what the names of its fields begin with."""

    number: int
    prefix: str
    shown: ProposedPlan
    rows: list[DatasetRow]
    focus: list[tuple[str, str]]
    methods: list[MethodRow]
    outlook: list[Outlook]


@dataclass(frozen=True)
class RunPage:
    """Everything that the page of a run shows."""

    name: str
    folder: Path
    data: Report
    status: Status
    rounds_planned: int
    request: ApprovalRequest | None
    decided: Decision | None
    user: str
    asked: list[AskedPlan]
    doing: StepRow | None
    columns: list[int]
    heat: list[HeatRow]
    newest: RoundReasons | None
    older: list[tuple[int, str]]

    @property
    def picture(self) -> str:
        """Changes when a plot would be drawn otherwise."""
        return f"{len(self.data.rounds)}-{len(self.data.audits)}-{self.data.calibration is None}"

    @property
    def pictures(self) -> list[Picture]:
        """The plots that this run has, with the room that each takes."""
        found = []
        for name, kind in plots.KINDS.items():
            if kind.applies(self.data):
                width, height = kind.size(self.data)
                drawn = kind.shown(self.data)
                found.append(Picture(name, kind.title, kind.caption, width, height, drawn))
        return found

    @property
    def rounds_to_come(self) -> int:
        """The last round whose row keeps its place free; 0 once the run is over."""
        return 0 if self.data.audit else min(self.rounds_planned, MAX_PLACES)


@dataclass(frozen=True)
class Picture:
    """A plot on a page: the page keeps its room free until it is drawn. Sizes are in pixels."""

    name: str
    title: str
    caption: str
    width: int
    height: int
    drawn: bool


def run_page(folder: Path) -> RunPage:
    """The page of a run."""
    journal, state = load(folder)
    try:
        report = report_of(journal, state)
        question = waiting_question(journal)
        decided = question.decision if question else None
        request = question.request if question and decided is None else None
        doing = journal.rows(state="intent")
        begun = journal.begun_rounds()
        newest = reasons(journal, begun[-1], Store(folder)) if begun else None
        measured = [round_ for round_ in state.rounds if round_.failure is None]
        return RunPage(
            name=folder.name,
            folder=folder,
            data=report,
            status=status_of(journal, state),
            rounds_planned=config_of(journal).rounds,
            request=request,
            decided=decided,
            user=user_name(),
            asked=_asked_plans(request) if request else [],
            doing=doing[-1] if doing and not state.audit else None,
            columns=[round_.round for round_ in measured],
            heat=heat(measured),
            newest=newest,
            older=[(number, chapter_title(number)) for number in reversed(begun[:-1])],
        )
    finally:
        journal.close()


def heat(measured: Sequence[Round]) -> list[HeatRow]:
    """Slices by rounds."""
    keys: set[tuple[str, str]] = set()
    for round_ in measured:
        keys.update((s.objective, s.slice) for s in round_.profile.slices)
    rows = []
    for objective, slice_ in sorted(keys):
        cells = [_cell(round_, objective, slice_) for round_ in measured]
        rows.append(HeatRow(objective, slice_, " ".join(cells)))
    return rows


def _cell(round_: Round, objective: str, slice_: str) -> str:
    found = round_.profile.find(objective, slice_)
    if found is None or found.score.mean is None:
        return "?"
    mean = f"{found.score.mean:.1f}"
    if found.change is None or not found.significant:
        return mean
    return mean + ("+" if found.change > 0 else "-")


def _asked_plans(request: ApprovalRequest) -> list[AskedPlan]:
    """The plans of a question as the form shows them."""
    found = []
    for number, shown in enumerate(request.plans, 1):
        prefix = prefix_of(request, number)
        rows, focus = _change_rows(shown), _focus_rows(shown)
        methods, outlook = _method_rows(shown), _outlook(shown)
        found.append(AskedPlan(number, prefix, shown, rows, focus, methods, outlook))
    return found


def _change_rows(shown: ProposedPlan) -> list[DatasetRow]:
    """The change of a plan by data set: its share, and its buckets with stock.

    Every data set of the pool has a row: one that a plan leaves out falls to 0, which a person must
    see.
    """
    weights: dict[str, tuple[float, float]] = {}
    for change in shown.changes:
        if isinstance(change.before, float) and isinstance(change.after, float):
            weights[change.path] = (change.before, change.after)
    rows: dict[str, DatasetRow] = {}
    for demand in shown.stock:
        before, after = weights[f"ratios.{demand.dataset}"]
        row = rows.setdefault(demand.dataset, DatasetRow(demand.dataset, before, after, []))
        before, after = weights[f"bucket_weights.{demand.dataset}.{demand.bucket}"]
        row.buckets.append(BucketRow(demand.bucket, before, after, demand.asked, demand.stock))
    return list(rows.values())


def _focus_rows(shown: ProposedPlan) -> list[tuple[str, str]]:
    """Every data set with its focus, as the form's fields hold it."""
    datasets = dict.fromkeys(demand.dataset for demand in shown.stock)
    return [(dataset, focus_text(shown.plan, dataset)) for dataset in datasets]


def _method_rows(shown: ProposedPlan) -> list[MethodRow]:
    """Shares of methods, and weights of practice slices that a plan moves."""
    rows = []
    for change in shown.changes:
        group, _, name = change.path.partition(".")
        before, after = change.before, change.after
        if group not in METHOD_GROUPS or isinstance(before, Focus) or isinstance(after, Focus):
            continue
        rows.append(MethodRow(change.path, name, before, after, typed=group == METHOD_SHARES))
    return rows


def _outlook(shown: ProposedPlan) -> list[Outlook]:
    """Predictions of the surrogate beside the planner's own expectation, by objective."""
    predicted = {prediction.objective: prediction for prediction in shown.predicted}
    rows = []
    for objective in dict.fromkeys([*predicted, *shown.expected]):
        found = predicted.get(objective)
        change = found.change if found else None
        low = found.low if found else None
        rows.append(Outlook(objective, change, low, shown.expected.get(objective)))
    return rows


# -- the reasoning ---------------------------------------------------------------------------------


def reasons(journal: Journal, number: int, store: Store, before: int | None = None) -> RoundReasons:
    """The last events of a round, or those before an event, each as one line."""
    events = journal.events(number, before=before, newest=EVENTS)
    teller = Teller(journal, store)
    entries = [teller.entry(event) for event in events]
    earlier = journal.event_count(number, before=events[0].seq) if events else 0
    spans = spans_of(journal, number) if before is None else []
    return RoundReasons(number, chapter_title(number), entries, earlier, spans)


def round_reasons(folder: Path, number: int, before: int | None) -> RoundReasons:
    """The reasoning of one round of a run. Raises UsageError for a round that has not begun."""
    journal = Journal.open(folder)
    try:
        _check_begun(journal, number)
        return reasons(journal, number, Store(folder), before)
    finally:
        journal.close()


def chapter(folder: Path, number: int) -> Chapter:
    """All of one round. Raises UsageError for a round that has not begun."""
    journal = Journal.open(folder)
    try:
        _check_begun(journal, number)
        return Teller(journal, Store(folder)).chapter(number)
    finally:
        journal.close()


def _check_begun(journal: Journal, number: int) -> None:
    if number not in journal.begun_rounds():
        raise UsageError(f"round {number} has not begun")


@dataclass(frozen=True)
class TracePage:
    """The reasoning of a whole run: what took how long, and what was searched for.

    `chapters` have no entries. `found` are the first `RESULTS` of `hits` entries.
    """

    name: str
    planner: str
    kinds: list[str]
    objectives: list[str]
    chapters: list[Chapter]
    asked: Asked
    found: list[Entry]
    hits: int

    @property
    def longest(self) -> float:
        return longest_of(self.chapters)


def trace_page(folder: Path, asked: Asked) -> TracePage:
    """What the page of a run's reasoning shows. Every event is told only if one is asked for."""
    journal = Journal.open(folder)
    try:
        config = config_of(journal)
        teller = Teller(journal, Store(folder))
        chapters = []
        hits: list[Entry] = []
        for number in journal.begun_rounds():
            spans = spans_of(journal, number)
            title = chapter_title(number)
            chapters.append(Chapter(round=number, title=title, spans=spans, entries=[]))
            if asked.anything:
                told = teller.chapter(number).entries
                hits += [entry for entry in flat(told) if wanted(entry, asked)]
        return TracePage(
            name=folder.name,
            planner=config.planner.kind,
            kinds=KINDS,
            objectives=list(config.objectives),
            chapters=chapters,
            asked=asked,
            found=hits[:RESULTS],
            hits=len(hits),
        )
    finally:
        journal.close()


def wanted(entry: Entry, asked: Asked) -> bool:
    """Whether an entry is what somebody looks for; upper and lower case are the same."""
    if asked.kind and entry.kind != asked.kind:
        return False
    if asked.objective and asked.objective not in entry.objectives:
        return False
    if asked.failed and not entry.failed:
        return False
    return not asked.q or asked.q.lower() in entry_markdown(entry).lower()


# -- the answers behind a cell ---------------------------------------------------------------------


@dataclass(frozen=True)
class ScoredChat:
    """One steering conversation with its label: `turns` are (user, answer) pairs.

    A text whose likelihood was read has no answer: None. `judged` is what a model was asked about it,
    and said.
    """

    id: str
    score: float | None
    failed: bool
    label: dict[str, JsonValue]
    turns: list[tuple[str, str | None]]
    judged: list[Messages]


def examples(folder: Path, number: int, objective: str, slice_: str) -> list[ScoredChat]:
    """The steering conversations behind a cell, worst first. No code of a config's own is run.

    Raises UsageError if nothing is recorded for the objective in that round, or its suite changed:
    another prompt would stand beside an answer.
    """
    from eval.suite import read_prompts

    config = run_config(folder)
    journal, state = load(folder)
    recorded = journal.recorded.inputs.suites
    verdicts = journal.steps(AskVerdict) if config.judge.kind == "llm" else []
    journal.close()
    files = state.rounds[number].trial.files if 0 <= number < len(state.rounds) else {}
    if objective not in files or objective not in config.objectives:
        raise UsageError(f"nothing is recorded for {objective!r} in round {number}")
    store = Store(folder)
    digests = files[objective][STEERING]
    suite = Path(config.objectives[objective].suite)
    prompts, digest = read_prompts(suite, STEERING)
    if digest != recorded[objective][STEERING]:
        raise UsageError(f"{suite}/{STEERING}.jsonl changed since it was answered; restore it")
    by_id = {prompt.id: prompt for prompt in prompts}
    answers = {}
    for line in store.get_json(digests.responses):
        response = Response.model_validate(line)
        answers[response.id] = response.answers
    kept = []
    for line in store.get_json(digests.scored):
        scored = Scored.model_validate(line)
        if scored.slice == slice_:
            kept.append(scored)
    kept.sort(key=lambda scored: (scored.score or 0.0, scored.id))
    found = []
    for scored in kept[:EXAMPLES]:
        prompt = by_id.get(scored.id)
        asked = prompt.turns if prompt else []
        given: Sequence[str | None] = answers[scored.id] or [None] * len(asked)
        pairs = list(zip(asked, given, strict=False))
        judged = _judged(store, verdicts, prompt, answers[scored.id]) if prompt else []
        chat = ScoredChat(scored.id, scored.score, bool(scored.failed), scored.label, pairs, judged)
        found.append(chat)
    return found


def _judged(
    store: Store, verdicts: Sequence[Step[AskVerdict]], prompt: Prompt, answers: Sequence[str]
) -> list[Messages]:
    """What a judge was asked about a conversation and said, as far as it is kept."""
    said = [["system", prompt.system]] if prompt.system else []
    for turn, answer in zip(prompt.turns, answers, strict=False):
        said += [["user", turn], ["assistant", answer]]
    conversation = digest_of(said)
    found = []
    for step in verdicts:
        if step.inputs.conversation != conversation or not step.result.exchanges:
            continue
        key = digest_of(step.inputs.model_dump(include={"judge", "prompt", "conversation"}))
        try:
            exchanges = read_exchanges(store, step.result.exchanges)
        except (DamageError, ValueError):  # retention dropped it
            continue
        for exchange in exchanges:
            if exchange.question == key:
                messages = said_messages(exchange.messages)
                title = f"what the judge was asked and said: {step.result.verdict.status}"
                found.append(Messages(title=title, messages=messages))
    return found

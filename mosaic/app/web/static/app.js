// Live updates, reasons and answers that are loaded when they are opened, and an edit that is
// checked while you type. No other script is loaded.
"use strict";
const live = document.getElementById("live");
const csrf = document.querySelector('meta[name="csrf"]').content;
const base = live ? `/run/${encodeURIComponent(live.dataset.run)}` : "";

// -- sections that are replaced when they changed ------------------------------------------------

let wanted = 0;

function section(name) {
  return live.querySelector(`[data-section="${name}"]`);
}

// Somebody is about to decide: their form stays as it is.
function editing() {
  const form = document.getElementById("decide");
  if (!form) return false;
  const reason = form.querySelector("#reason");
  return form.contains(document.activeElement) || reason.value !== "" || changed(form).length > 0;
}

async function refresh() {
  const number = ++wanted;
  const have = [...live.querySelectorAll("[data-section]")].map((part) => `${part.dataset.section}:${part.dataset.mark}`);
  const answer = await fetch(`${base}/live?have=${encodeURIComponent(have.join(" "))}`);
  if (!answer.ok) return;
  const update = await answer.json();
  if (number !== wanted) return; // a later request is under way
  let whole = true;
  for (const [name, html] of Object.entries(update.sections)) {
    if (name === "approval" && editing()) { whole = false; tellDecided(update); continue; }
    if (name === "result" && html.includes(" data-audit") && !section(name).querySelector("[data-audit]")) {
      // The whole result would push away what somebody reads: it comes when they ask for it.
      over = true;
      showStage();
      continue;
    }
    await replace(section(name), html, update.marks[name]);
  }
  if (whole) live.dataset.mark = update.mark;
}

// Pictures are loaded before they take the place of those that are shown, so that none is ever blank.
async function prepared(html) {
  const made = document.createElement("div");
  made.innerHTML = html;
  await Promise.all([...made.querySelectorAll("img")].map(async (img) => {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches && img.parentElement.querySelector("source");
    const ahead = new Image();
    ahead.src = dark ? dark.srcset : img.src;
    await ahead.decode().catch(() => null);
  }));
  return made;
}

async function replace(part, html, mark) {
  const made = await prepared(html);
  const focus = part.contains(document.activeElement) ? placeOf(part, document.activeElement) : null;
  const open = new Set([...part.querySelectorAll("details[open]")].map(keyOf));
  const loaded = new Map([...part.querySelectorAll("details[data-loaded]")].map((details) => [keyOf(details), details]));
  const cell = document.getElementById("cell");
  const answers = cell && part.contains(cell) ? cell.innerHTML : "";
  part.replaceChildren(...made.childNodes);
  part.dataset.mark = mark;
  for (const details of part.querySelectorAll("details[data-key]")) {
    const key = keyOf(details);
    // What was loaded before is kept: it is of a round or an event that does not change.
    const before = loaded.get(key);
    if (before) details.replaceWith(before);
    else if (open.has(key)) details.open = true;
  }
  if (answers) document.getElementById("cell").innerHTML = answers;
  wire(part);
  if (focus) restore(part, focus);
}

// Where the focus is inside a section, in words that hold for its next version too.
function placeOf(part, element) {
  const details = element.closest("details[data-key]");
  if (element.id) return { id: element.id };
  if (details && element.tagName === "SUMMARY") return { key: keyOf(details) };
  const same = [...part.querySelectorAll(element.tagName)];
  return { tag: element.tagName, index: same.indexOf(element) };
}

function restore(part, place) {
  let found = null;
  if (place.id) found = document.getElementById(place.id);
  else if (place.key) found = [...part.querySelectorAll("details[data-key]")].find((one) => keyOf(one) === place.key)?.querySelector("summary");
  else found = part.querySelectorAll(place.tag)[place.index];
  if (found) found.focus({ preventScroll: true });
}

function keyOf(details) {
  const path = [];
  for (let node = details; node && node !== live; node = node.parentElement) if (node.dataset && node.dataset.key) path.push(node.dataset.key);
  return path.join(" < ");
}

// -- parts that are loaded when they are opened --------------------------------------------------

document.addEventListener("toggle", async (event) => {
  const details = event.target;
  if (!details.open || !("load" in details.dataset) || details.dataset.loaded) return;
  details.dataset.loaded = "yes";
  // The link inside leads to the same on a page of its own.
  const address = new URL(details.querySelector("a").href);
  address.searchParams.set("part", "1");
  const answer = await fetch(address).catch(() => null);
  if (!answer || !answer.ok) { delete details.dataset.loaded; return; }
  const part = document.createElement("div");
  part.innerHTML = await answer.text();
  for (const old of [...details.children].slice(1)) old.remove();
  details.append(part);
}, true);

// -- the heat map: a row comes as words and is shown as buttons ----------------------------------

function showHeat(part) {
  for (const table of part.querySelectorAll("table.heat")) {
    const rounds = table.dataset.rounds.split(" ");
    for (const words of table.querySelectorAll("td.cells")) {
      const row = words.parentElement;
      const cells = words.textContent.trim().split(" ").map((word, index) => heatCell(row, rounds[index], word));
      words.replaceWith(...cells);
    }
  }
}

function heatCell(row, round, word) {
  const [, mean, sign] = word.match(/^([0-9.]+|\?)([+-]?)$/);
  const button = document.createElement("button");
  const level = mean === "?" ? "none" : Math.min(8, Math.floor((Number(mean) - 1) * 2));
  button.type = "button";
  button.className = `cell h${level}`;
  button.dataset.round = round;
  button.textContent = mean;
  const name = `${row.dataset.objective} ${row.dataset.slice}`.replaceAll("_", " ");
  button.setAttribute("aria-label", `${name}, round ${round}: ${mean === "?" ? "not scored" : mean}`);
  if (sign) {
    const mark = document.createElement("sup");
    mark.textContent = sign;
    mark.title = "a believable change against the round before";
    button.append(mark);
  }
  const cell = document.createElement("td");
  cell.append(button);
  return cell;
}

async function showAnswers(button) {
  const row = button.closest("tr");
  const asked = new URLSearchParams({ round: button.dataset.round, objective: row.dataset.objective, slice: row.dataset.slice });
  const answer = await fetch(`${base}/cell?${asked}`);
  const target = document.getElementById("cell");
  target.innerHTML = answer.ok ? await answer.text() : "";
  target.focus();
  target.scrollIntoView({ block: "nearest" });
}

// Somebody else was faster: what was typed stays, and cannot be sent any more.
function tellDecided(update) {
  const form = document.getElementById("decide");
  if (form.elements.request.value === update.waits) return;
  const how = update.decided ? `decided: ${update.decided}` : "answered or withdrawn";
  for (const button of form.querySelectorAll(".actions button")) button.disabled = true;
  form.dataset.over = "yes";
  say(`This question was ${how}. What you typed is kept here; copy it, then load the page again.`, "bad");
}

// -- the decision --------------------------------------------------------------------------------

let timer = 0;
let asked = 0;

function fields(form) {
  return [...form.querySelectorAll(".plan input, .plan textarea")];
}

function changed(form) {
  return fields(form).filter((field) => field.value !== field.defaultValue);
}

function percent(text) {
  const value = text.trim() === "" ? NaN : Number(text.trim().replace(",", "."));
  return Number.isFinite(value) ? value : null;
}

// Sums and changes follow every key; tokens and predictions follow when the server has answered.
function showSums(form) {
  for (const output of form.querySelectorAll("output[data-sum]")) {
    const group = [...form.querySelectorAll(".plan input")].filter((input) => input.name.startsWith(output.dataset.sum));
    const values = group.map((input) => percent(input.value));
    const sum = values.includes(null) ? null : values.reduce((total, value) => total + value, 0);
    // Tenths that were rounded one by one: such a group is scaled to exactly 100 when it is taken.
    const whole = sum !== null && Math.abs(sum - 100) <= 0.051 * group.length;
    output.textContent = sum === null ? "not a number" : whole ? "100 %" : `${sum.toFixed(1)} %`;
    output.classList.toggle("down", !whole);
  }
  for (const row of form.querySelectorAll("tr[data-before]")) {
    const input = row.querySelector("input");
    const cell = row.querySelector("[data-change]");
    if (!input || !cell || input.value === input.defaultValue && !cell.dataset.typed) continue;
    cell.dataset.typed = "yes";
    const value = percent(input.value);
    const change = value === null ? null : value - Number(row.dataset.before);
    cell.textContent = change === null ? "?" : `${change < 0 ? "-" : "+"}${Math.abs(change).toFixed(1)}`;
    cell.classList.toggle("up", change > 0.05);
    cell.classList.toggle("down", change < -0.05);
  }
}

function showChecked(form, found) {
  for (const cell of form.querySelectorAll("[data-asked]")) {
    const tokens = found.asked && found.asked[cell.dataset.asked];
    if (tokens !== undefined) cell.textContent = tokens.toLocaleString("en-US");
  }
  const signed = (value) => `${value < 0 ? "-" : "+"}${Math.abs(value).toFixed(2)}`;
  for (const one of found.predicted || []) {
    const row = document.querySelector(`.outlook tr[data-objective="${CSS.escape(one.objective)}"]`);
    if (!row) continue;
    row.querySelector("[data-predicted]").textContent = signed(one.change);
    row.querySelector("[data-low]").textContent = signed(one.low);
    row.querySelector("[data-low]").classList.toggle("down", one.low < 0);
  }
}

function say(text, state) {
  const verdict = document.getElementById("verdict");
  verdict.textContent = text;
  verdict.className = `verdict ${state}`;
}

async function check(form) {
  if (form.dataset.over) return;
  const number = ++asked;
  const edit = document.getElementById("edit");
  const differs = changed(form).length > 0;
  for (const field of fields(form)) field.classList.toggle("changed", field.value !== field.defaultValue);
  document.getElementById("approve").disabled = differs;
  edit.disabled = true;
  const answer = await fetch(form.dataset.check, {
    method: "POST",
    headers: { "content-type": "application/x-www-form-urlencoded", "x-csrf-token": csrf },
    body: new URLSearchParams(new FormData(form)),
  });
  if (number !== asked || form.dataset.over) return;
  const found = answer.ok ? await answer.json() : { violations: [{ path: "the page", rule: "error", hint: await answer.text() }] };
  showChecked(form, found);
  if (!differs) { say("", ""); return; }
  if (found.violations.length === 0) { edit.disabled = false; say("The edited plan keeps every limit.", "good"); return; }
  say(found.violations.map((v) => v.rule === "unreadable" ? v.hint : `${v.path}: ${v.rule}, ${v.value} against ${v.limit}. ${v.hint}`).join("\n"), "bad");
}

function wireForm(form) {
  showSums(form);
  form.addEventListener("input", (event) => {
    if (!event.target.closest(".plan")) return;
    showSums(form);
    document.getElementById("edit").disabled = true;
    clearTimeout(timer);
    timer = setTimeout(() => check(form), 250);
  });
  form.addEventListener("submit", (event) => {
    const kind = event.submitter ? event.submitter.value : "";
    if (event.submitter && event.submitter.disabled) { event.preventDefault(); return; }
    if ((kind === "reject" || kind === "respond") && form.querySelector("#reason").value.trim() === "") {
      event.preventDefault();
      say(kind === "reject" ? "A rejection needs a reason; the planner is told." : "Write what the planner should hear.", "bad");
      form.querySelector("#reason").focus();
    }
  });
  // What changed while somebody typed is shown when they have stopped.
  form.addEventListener("focusout", () => setTimeout(() => { if (latest !== live.dataset.mark) refresh(); }, 400));
  // Enter in a field must not approve by accident.
  for (const input of form.querySelectorAll("input")) input.addEventListener("keydown", (event) => { if (event.key === "Enter") event.preventDefault(); });
}

// -- the start -----------------------------------------------------------------------------------

let latest = live ? live.dataset.mark : "";

// What a controller does just now: it changes every second, so it is not part of a section.
let stage = "";
let over = false;

function showStage() {
  const line = document.getElementById("stage");
  if (!line) return;
  line.textContent = stage || "\u00a0";
  if (!over) return;
  const link = document.createElement("a");
  link.href = location.pathname;
  link.textContent = "Show the result";
  line.replaceChildren("The audit suites have been opened. ", link);
}

function wire(part) {
  showHeat(part);
  showStage();
  const form = part.querySelector("#decide");
  if (form) wireForm(form);
}

if (live) {
  wire(live);
  live.addEventListener("click", (event) => {
    const button = event.target.closest("button.cell");
    if (button) showAnswers(button);
  });
  const source = new EventSource(`${base}/events`);
  // The page may be older than the first event: what it shows is compared, not assumed.
  source.addEventListener("stage", (event) => { stage = event.data; showStage(); });
  source.addEventListener("changed", (event) => {
    latest = event.data;
    if (latest !== live.dataset.mark) refresh();
  });
}

// -- the list of runs: sorted by a click on a name, filtered while you type ------------------------

const runs = document.getElementById("runs");

function sortRuns(header) {
  const column = [...header.parentElement.children].indexOf(header);
  const ascending = header.getAttribute("aria-sort") === "descending";
  for (const other of header.parentElement.querySelectorAll("[aria-sort]")) other.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const body = runs.querySelector("tbody");
  const value = (row) => row.children[column].dataset.value;
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === ""); // what is not known stands last
    const order = Number.isNaN(Number(x)) || Number.isNaN(Number(y)) ? x.localeCompare(y, "en", { numeric: true }) : Number(x) - Number(y);
    return ascending ? order : -order;
  });
  body.append(...rows);
}

function filterRuns() {
  const wanted = document.getElementById("only").value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of runs.querySelectorAll("tbody tr")) {
    const text = row.textContent.toLowerCase();
    row.hidden = !wanted.every((word) => text.includes(word));
    if (!row.hidden) shown += 1;
  }
  document.getElementById("shown").textContent = wanted.length ? `${shown} shown` : "";
}

function countChosen() {
  document.getElementById("compare").disabled = runs.querySelectorAll("input[name=run]:checked").length < 2;
}

if (runs) {
  for (const button of runs.querySelectorAll("th button")) button.addEventListener("click", () => sortRuns(button.parentElement));
  document.getElementById("only").addEventListener("input", filterRuns);
  document.getElementById("only").addEventListener("keydown", (event) => { if (event.key === "Enter") event.preventDefault(); });
  runs.addEventListener("change", countChosen);
  countChosen();
}

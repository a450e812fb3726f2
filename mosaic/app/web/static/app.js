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
    if (name === "approval" && editing()) { whole = false; continue; }
    replace(section(name), html, update.marks[name]);
  }
  if (whole) live.dataset.mark = update.mark;
}

function replace(part, html, mark) {
  const open = new Set([...part.querySelectorAll("details[open]")].map(keyOf));
  const loaded = new Map([...part.querySelectorAll("details[data-loaded]")].map((details) => [keyOf(details), details]));
  const cell = document.getElementById("cell");
  const answers = cell && part.contains(cell) ? cell.innerHTML : "";
  part.innerHTML = html;
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
}

function keyOf(details) {
  const path = [];
  for (let node = details; node && node !== live; node = node.parentElement) if (node.dataset && node.dataset.key) path.push(node.dataset.key);
  return path.join(" < ");
}

// -- parts that are loaded when they are opened --------------------------------------------------

document.addEventListener("toggle", async (event) => {
  const details = event.target;
  if (!details.open || !details.dataset.load || details.dataset.loaded) return;
  details.dataset.loaded = "yes";
  const address = details.dataset.load;
  const answer = await fetch(address + (address.includes("?") ? "&" : "?") + "part=1").catch(() => null);
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

// -- the decision --------------------------------------------------------------------------------

let timer = 0;
let asked = 0;

function changed(form) {
  return [...form.querySelectorAll(".plan input")].filter((input) => input.value !== input.defaultValue);
}

function say(text, state) {
  const verdict = document.getElementById("verdict");
  verdict.textContent = text;
  verdict.className = `verdict ${state}`;
}

async function check(form) {
  const number = ++asked;
  const edit = document.getElementById("edit");
  const differs = changed(form).length > 0;
  for (const input of form.querySelectorAll(".plan input")) input.classList.toggle("changed", input.value !== input.defaultValue);
  document.getElementById("approve").disabled = differs;
  edit.disabled = true;
  if (!differs) { say("", ""); return; }
  const answer = await fetch(form.dataset.check, {
    method: "POST",
    headers: { "content-type": "application/x-www-form-urlencoded", "x-csrf-token": csrf },
    body: new URLSearchParams(new FormData(form)),
  });
  if (number !== asked) return;
  const found = answer.ok ? (await answer.json()).violations : [{ path: "the page", rule: "error", hint: await answer.text() }];
  if (found.length === 0) { edit.disabled = false; say("The edited plan keeps every limit.", "good"); return; }
  say(found.map((v) => v.rule === "unreadable" ? v.hint : `${v.path}: ${v.rule}, ${v.value} against ${v.limit}. ${v.hint}`).join("\n"), "bad");
}

function wireForm(form) {
  form.addEventListener("input", (event) => {
    if (!event.target.closest(".plan")) return;
    document.getElementById("edit").disabled = true;
    clearTimeout(timer);
    timer = setTimeout(() => check(form), 250);
  });
  form.addEventListener("submit", (event) => {
    const kind = event.submitter ? event.submitter.value : "";
    if (event.submitter && event.submitter.disabled) { event.preventDefault(); return; }
    if (kind === "reject" && form.querySelector("#reason").value.trim() === "") {
      event.preventDefault();
      say("A rejection needs a reason; the planner is told.", "bad");
      form.querySelector("#reason").focus();
    }
  });
  // What changed while somebody typed is shown when they have stopped.
  form.addEventListener("focusout", () => setTimeout(() => { if (latest !== live.dataset.mark) refresh(); }, 400));
  // Enter in a field must not approve by accident.
  for (const input of form.querySelectorAll(".plan input")) input.addEventListener("keydown", (event) => { if (event.key === "Enter") event.preventDefault(); });
}

// -- the start -----------------------------------------------------------------------------------

let latest = live ? live.dataset.mark : "";

function wire(part) {
  showHeat(part);
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
  source.addEventListener("changed", (event) => {
    latest = event.data;
    if (latest !== live.dataset.mark) refresh();
  });
}

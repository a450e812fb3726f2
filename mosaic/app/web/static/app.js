// Live updates, the answers behind a cell, and an edit that is checked while you type. No other script is loaded.
"use strict";
const live = document.getElementById("live");
const csrf = document.querySelector('meta[name="csrf"]').content;

function keyOf(details) {
  const path = [];
  for (let node = details; node && node !== live; node = node.parentElement) if (node.dataset && node.dataset.key) path.push(node.dataset.key);
  return path.join(" < ");
}

function editing() {
  const form = document.getElementById("decide");
  if (!form) return false;
  return form.contains(document.activeElement) || form.querySelector("#reason").value !== "" || changed(form).length > 0;
}

async function refresh() {
  if (editing()) { stale = true; return; }
  stale = false;
  const number = ++wanted;
  const answer = await fetch(`/run/${encodeURIComponent(live.dataset.run)}/live`);
  const text = answer.ok ? await answer.text() : "";
  // A later request is under way, or somebody began to type while this one was.
  if (text === "" || number !== wanted) return;
  if (editing()) { stale = true; return; }
  const open = new Set([...live.querySelectorAll("details[open]")].map(keyOf));
  const cell = document.getElementById("cell") ? document.getElementById("cell").innerHTML : "";
  live.innerHTML = text;
  for (const details of live.querySelectorAll("details[data-key]")) if (open.has(keyOf(details))) details.open = true;
  if (document.getElementById("cell")) document.getElementById("cell").innerHTML = cell;
  wire();
}

function changed(form) {
  return [...form.querySelectorAll(".plan input")].filter((input) => input.value !== input.defaultValue);
}

let timer = 0;
let stale = false;
let asked = 0;
let wanted = 0;

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

function wire() {
  for (const button of live.querySelectorAll("button[data-cell]")) {
    button.addEventListener("click", async () => {
      const answer = await fetch(`/run/${encodeURIComponent(live.dataset.run)}/cell?${button.dataset.cell}`);
      const target = document.getElementById("cell");
      target.innerHTML = answer.ok ? await answer.text() : "";
      target.focus();
      target.scrollIntoView({ block: "nearest" });
    });
  }
  const form = document.getElementById("decide");
  if (!form) return;
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
  form.addEventListener("focusout", () => setTimeout(() => { if (stale) refresh(); }, 400));
  // Enter in a field must not approve by accident.
  for (const input of form.querySelectorAll(".plan input")) input.addEventListener("keydown", (event) => { if (event.key === "Enter") event.preventDefault(); });
}

if (live) {
  wire();
  const source = new EventSource(`/run/${encodeURIComponent(live.dataset.run)}/events`);
  // The page may be older than the first event: what it shows is compared, not assumed.
  source.addEventListener("changed", (event) => { if (event.data !== document.getElementById("state").dataset.mark) refresh(); });
}

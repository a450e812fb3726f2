// Reading a trace: keys, copying, and, in a self-contained file, the filter. No other script is needed.
"use strict";
(() => {
  const entries = () => [...document.querySelectorAll(".entry")].filter((entry) => entry.offsetParent !== null);
  let current = null;

  function go(step) {
    const all = entries();
    if (all.length === 0) return;
    const at = all.indexOf(current);
    const next = at < 0 ? (step > 0 ? 0 : all.length - 1) : Math.min(all.length - 1, Math.max(0, at + step));
    current = all[next];
    current.focus({ preventScroll: true });
    current.scrollIntoView({ block: "nearest" });
  }

  document.addEventListener("focusin", (event) => {
    const entry = event.target.closest(".entry");
    if (entry) current = entry;
  });

  // -- copying -----------------------------------------------------------------------------------

  async function markdownOf(entry) {
    const kept = entry.querySelector(":scope > template.markdown");
    if (kept) return kept.content.textContent;
    const link = entry.querySelector(":scope > header [data-copy]");
    if (!link) return null;
    const answer = await fetch(link.href);
    return answer.ok ? answer.text() : null;
  }

  async function copy(entry) {
    const button = entry.querySelector(":scope > header .copy");
    const text = await markdownOf(entry);
    if (text === null || !navigator.clipboard) return false;
    try { await navigator.clipboard.writeText(text); } catch { return false; }
    if (button) {
      const before = button.textContent;
      button.textContent = "copied";
      setTimeout(() => { button.textContent = before; }, 1500);
    }
    return true;
  }

  document.addEventListener("click", async (event) => {
    const button = event.target.closest(".copy");
    if (!button || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    // Where nothing can be copied the link leads to the text.
    if (!(await copy(button.closest(".entry"))) && button.href) location.assign(button.href);
  });

  // -- keys --------------------------------------------------------------------------------------

  const HELP = "j: next entry\nk: previous entry\n/: search\no: open or close what is folded\nc: copy as Markdown\n?: this help\nEsc: close";

  function help() {
    let dialog = document.getElementById("keys");
    if (!dialog) {
      dialog = document.createElement("dialog");
      dialog.id = "keys";
      dialog.setAttribute("aria-label", "keys");
      const text = document.createElement("pre");
      text.textContent = HELP;
      const close = document.createElement("button");
      close.textContent = "Close";
      close.addEventListener("click", () => dialog.close());
      dialog.append(text, close);
      document.body.append(dialog);
    }
    if (dialog.open) dialog.close();
    else dialog.showModal();
  }

  function toggle(entry) {
    const folded = [...entry.querySelectorAll(":scope > details:not(.raw)")];
    const open = folded.some((details) => !details.open);
    for (const details of folded) details.open = open;
  }

  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest && event.target.closest("input, textarea, select, [contenteditable]");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (document.querySelector(".entry") === null && !document.getElementById("q")) return;
    if (event.key === "j") go(1);
    else if (event.key === "k") go(-1);
    else if (event.key === "o" && current) toggle(current);
    else if (event.key === "c" && current) copy(current);
    else if (event.key === "?") help();
    else if (event.key === "/" && document.getElementById("q")) document.getElementById("q").focus();
    else return;
    event.preventDefault();
  });

  // -- the filter of a self-contained file: a page asks its server --------------------------------

  const form = document.querySelector("form[data-here]");
  if (!form) return;

  function wanted(entry, asked) {
    if (asked.kind && entry.dataset.kind !== asked.kind) return false;
    if (asked.objective && !entry.dataset.objectives.split(" ").includes(asked.objective)) return false;
    if (asked.failed && !entry.classList.contains("failed")) return false;
    return !asked.q || entry.textContent.toLowerCase().includes(asked.q.toLowerCase());
  }

  function filter() {
    const asked = Object.fromEntries(new FormData(form));
    const all = [...document.querySelectorAll(".entry")];
    const hits = new Set(all.filter((entry) => wanted(entry, asked)));
    // An entry stays while one of its turns is wanted.
    for (const entry of all) {
      const shown = hits.has(entry) || [...entry.querySelectorAll(".entry")].some((turn) => hits.has(turn));
      entry.classList.toggle("hidden", !shown);
    }
    for (const chapter of document.querySelectorAll(".chapter")) {
      chapter.classList.toggle("hidden", !chapter.querySelector(".entry:not(.hidden)"));
    }
    const asking = asked.q || asked.kind || asked.objective || asked.failed;
    document.getElementById("found").textContent = asking ? `${hits.size} of ${all.length}` : "";
  }

  form.addEventListener("submit", (event) => { event.preventDefault(); filter(); });
  form.addEventListener("input", filter);
})();

// Keep the parts with data-live up to date: fetch the page again and change only the nodes that differ, so that bars grow
// smoothly and a selection or a focus stays. Pause in a hidden tab. Ask before a form with data-confirm is sent.
"use strict";

const PERIOD = 2000;
const parts = document.querySelectorAll("[data-live]");
let timer = 0;
let last = "";
let isPaused = false;

function morph(old, fresh) {
  if (old.nodeName !== fresh.nodeName || old.childNodes.length !== fresh.childNodes.length) {
    old.replaceWith(document.importNode(fresh, true));
    return;
  }
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name, value } of fresh.attributes ?? []) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  [...old.childNodes].forEach((child, index) => morph(child, fresh.childNodes[index]));
}

function show(html) {
  const page = new DOMParser().parseFromString(html, "text/html");
  for (const part of parts) {
    const fresh = page.getElementById(part.id);
    if (!fresh) continue;
    if (fresh.childNodes.length === part.childNodes.length) morph(part, fresh);
    else part.replaceChildren(...document.importNode(fresh, true).childNodes);
  }
}

async function refresh() {
  clearTimeout(timer);
  if (document.hidden || isPaused) return;
  try {
    const response = await fetch(location.href);
    const html = response.ok ? await response.text() : last;
    if (html !== last) show((last = html));
  } catch {
    // The server is stopped or restarting: keep the page and try again.
  }
  timer = setTimeout(refresh, PERIOD);
}

if (parts.length) {
  document.addEventListener("visibilitychange", refresh);
  timer = setTimeout(refresh, PERIOD);
}
for (const note of document.querySelectorAll(".wb-live-note")) {
  note.hidden = false;
  note.querySelector("button").addEventListener("click", (event) => {
    isPaused = !isPaused;
    event.target.setAttribute("aria-pressed", isPaused);
    refresh();
  });
}

document.addEventListener("submit", (event) => {
  const question = event.target.dataset.confirm;
  if (question && !confirm(question)) event.preventDefault();
});

document.addEventListener("click", (event) => {
  const line = event.target.dataset?.line;
  if (!line) return;
  event.preventDefault();
  const text = document.getElementById("wb-text");
  const lines = text.value.split("\n");
  const start = lines.slice(0, line - 1).join("\n").length + (line > 1);
  text.focus();
  text.setSelectionRange(start, start + lines[line - 1].length);
  text.scrollTop = (text.scrollHeight / lines.length) * Math.max(line - 5, 0);
});

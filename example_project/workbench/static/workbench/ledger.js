// Keep the ledger live: fetch the server's HTML and change only the nodes that differ, so that bars grow
// smoothly and a selection or a focus stays. Pause in a hidden tab.
"use strict";

const PERIOD = 1500;
const live = document.getElementById("live");
const template = document.createElement("template");
let timer = 0;

function morph(old, fresh) {
  if (old.nodeName !== fresh.nodeName || old.childNodes.length !== fresh.childNodes.length) {
    old.replaceWith(fresh.cloneNode(true));
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
  template.innerHTML = html;
  const fresh = live.cloneNode(false);
  fresh.append(template.content);
  if (fresh.childNodes.length === live.childNodes.length) morph(live, fresh);
  else live.replaceChildren(...fresh.childNodes);
}

async function refresh() {
  clearTimeout(timer);
  if (document.hidden) return;
  try {
    const response = await fetch(live.dataset.url);
    if (response.ok) show(await response.text());
  } catch {
    // The shop is closed or restarting: keep the page and try again.
  }
  timer = setTimeout(refresh, PERIOD);
}

document.getElementById("clear").addEventListener("submit", (event) => {
  if (!confirm("Delete all events in the ledger?")) event.preventDefault();
});
document.addEventListener("visibilitychange", refresh);
document.getElementById("live-note").hidden = false;
timer = setTimeout(refresh, PERIOD);

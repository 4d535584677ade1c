// The panel: a cookie remembers whether it is open. After "Apply", the focus returns to this button.
// Without this script the panel starts closed on each page.
"use strict";

const panel = document.getElementById("panel");
const summary = panel.querySelector("summary");
const switches = document.getElementById("switches");
const isDocked = matchMedia("(min-width: 62rem)");

panel.addEventListener("toggle", () => {
  document.cookie = `panel=${panel.open ? "open" : "closed"}; path=/; max-age=31536000; samesite=lax`;
});

// In a narrow window the open panel is at the end of the page: its title leads there, and then closes the panel.
summary.addEventListener("click", (event) => {
  if (isDocked.matches) return;
  if (!panel.open) {
    panel.addEventListener("toggle", () => panel.scrollIntoView(), { once: true });
  } else if (switches.getBoundingClientRect().top > innerHeight - summary.offsetHeight) {
    event.preventDefault();
    panel.scrollIntoView();
  }
});

switches.addEventListener("submit", (event) => {
  sessionStorage.setItem("panel", event.submitter?.name || "apply");
});
const pressed = sessionStorage.getItem("panel");
sessionStorage.removeItem("panel");
if (pressed && panel.open) switches.querySelector(`button[name="${pressed}"]`)?.focus({ preventScroll: true });

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && panel.open && panel.contains(document.activeElement)) {
    panel.open = false;
    summary.focus();
  }
});

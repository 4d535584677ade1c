// The panel: a cookie remembers whether it is open. After "Apply", the focus returns to this button.
// Without this script the panel starts closed on each page.
"use strict";

const panel = document.getElementById("panel");
const summary = panel.querySelector("summary");
const switches = document.getElementById("switches");
const isDocked = matchMedia("(min-width: 62rem)");

// Below this width the open panel is at the end of the page, and its title stays at the bottom of the window.
new ResizeObserver(() => {
  panel.style.setProperty("--body-height", `${panel.offsetHeight - summary.offsetHeight}px`);
}).observe(panel);

panel.addEventListener("toggle", () => {
  document.cookie = `panel=${panel.open ? "open" : "closed"}; path=/; max-age=31536000; samesite=lax`;
});

summary.addEventListener("click", (event) => {
  const isBelow = panel.getBoundingClientRect().bottom > innerHeight + 1;
  if (panel.open && isBelow && !isDocked.matches) {
    event.preventDefault();
    panel.scrollIntoView();
  } else if (!panel.open && !isDocked.matches) {
    panel.addEventListener("toggle", () => panel.scrollIntoView(), { once: true });
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

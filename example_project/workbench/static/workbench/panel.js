// The panel: a changed switch applies at once, and a cookie remembers whether the panel is open.
// Without this script the visitor presses "Apply", and the panel starts closed.
"use strict";

const panel = document.getElementById("panel");
const switches = document.getElementById("switches");

panel.addEventListener("toggle", () => {
  document.cookie = `panel=${panel.open ? "open" : "closed"}; path=/; max-age=31536000; samesite=lax`;
});

switches.addEventListener("change", () => switches.requestSubmit());

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && panel.open && panel.contains(document.activeElement)) {
    panel.open = false;
    panel.querySelector("summary").focus();
  }
});

// Escape closes the comparison. A click on the link of a preview selects it.
(() => {
  const compare = document.querySelector(".moe-view-as-compare");
  compare?.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && compare.open) {
      compare.open = false;
      compare.querySelector("summary").focus();
    }
  });
  const link = document.getElementById("moe-link");
  link?.addEventListener("focus", () => link.select());
})();

customElements.define("test-box", class extends HTMLElement {
  connectedCallback() {
    if (!this.shadowRoot) this.attachShadow({ mode: "open" }).append(document.createElement("slot"));
  }
});
const load = (path) => fetch(path).then((response) => response.text());
window.steps = {
  // Scripts change the page while its cells are below the window.
  async change() {
    document.querySelector("#old").outerHTML = "<h3 class='box'>y</h3>";
    // A minifier may have removed the comments.
    document.querySelector("#late").innerHTML = (await load("/piece")).replace(/<!--.*?-->/g, "");
    customElements.define("test-upgrade", class extends HTMLElement {
      connectedCallback() {
        this.firstElementChild.outerHTML = "<h3 class='box'>y</h3>";
      }
    });
  },
  async glance() {
    for (let times = 0; times < 3; times++) {
      scrollTo({ top: 2000, behavior: "instant" });
      await new Promise((resolve) => setTimeout(resolve, 300));
      scrollTo({ top: 0, behavior: "instant" });
      await new Promise((resolve) => setTimeout(resolve, 300));
    }
  },
  hide() {
    Object.defineProperty(document, "hidden", { value: true, configurable: true });
  },
  open() {
    delete document.hidden;
    document.dispatchEvent(new Event("visibilitychange", { bubbles: true }));
    document.querySelector("details").open = true;
    document.querySelector("dialog").showModal();
    document.querySelector("[popover]").showPopover();
    document.querySelector("[hidden]").hidden = false;
  },
};

// Fills the islands of a page with one request. The page itself is the same for all visitors, so caches may keep it.
(() => {
  const doc = document;
  // Each island brings this script, because a script may add the island to the page later.
  if (doc.moeFill) return doc.moeFill();
  const { url, names } = doc.currentScript.dataset;
  let last = Promise.resolve();

  async function ask(tokens, islands) {
    const page = new URLSearchParams(location.search);
    const query = new URLSearchParams();
    // Only the parameters of campaigns: others may be secret.
    for (const name of names.split(" ")) if (page.has(name)) query.set(name, page.get(name));
    query.set("page", location.pathname);
    for (const token of tokens) query.append("island", token);
    const signal = AbortSignal.timeout?.(10000);
    const response = await fetch(`${url}?${query}`, { credentials: "same-origin", cache: "no-store", signal });
    const found = response.ok ? (await response.json()).islands : {};
    for (const island of tokens.flatMap((token) => islands[token])) {
      const html = found[island.moeToken];
      // Leave the fallback to a visitor who has started to use it.
      if (html == null || island.contains(doc.activeElement)) continue;
      island.innerHTML = html;
      island.dispatchEvent(new CustomEvent("moe:island", { bubbles: true }));
    }
  }

  doc.moeFill = () => {
    // The browser may prepare a page that the visitor never opens. Turbo shows an old copy until the page is there.
    if (doc.prerendering || doc.documentElement.dataset.turboPreview != null) return;
    const islands = {};
    for (const island of doc.querySelectorAll("[data-moe-island]")) {
      const { moeIsland, moeAsked } = island.dataset;
      // A copy of an island has the attribute alone. A library that morphs the page removes the attribute.
      if (island.moeToken === moeIsland && moeAsked != null) continue;
      island.moeToken = moeIsland;
      island.dataset.moeAsked = "";
      (islands[moeIsland] ||= []).push(island);
    }
    const tokens = Object.keys(islands);
    // The server answers for at most 25 islands. The first answer may give a new visitor the id for the next request.
    // Without an answer the fallbacks stay.
    while (tokens[0]) {
      const part = tokens.splice(0, 25);
      last = last.then(() => ask(part, islands)).catch(() => {});
    }
  };
  addEventListener("prerenderingchange", doc.moeFill, true);
  const watched = { childList: true, subtree: true, attributeFilter: ["data-moe-island", "data-moe-asked"] };
  new MutationObserver(doc.moeFill).observe(doc, watched);
  doc.moeFill();
})();

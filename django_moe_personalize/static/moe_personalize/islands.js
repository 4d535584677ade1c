// Fills the islands of a page with one request. The page itself is the same for all visitors, so caches may keep it.
(() => {
  const doc = document;
  // Each island brings this script, because a script may add the island to the page later.
  if (doc.moeFill) return doc.moeFill();
  const { url, names } = doc.currentScript.dataset;
  const asked = new WeakSet();

  async function ask(islands) {
    const page = new URLSearchParams(location.search);
    const query = new URLSearchParams({ page: location.pathname });
    // Only the parameters of campaigns: others may be secret.
    for (const name of names.split(" ")) if (page.has(name)) query.set(name, page.get(name));
    for (const { dataset } of islands) query.append("island", dataset.moeIsland);
    const signal = AbortSignal.timeout?.(10000);
    const response = await fetch(`${url}?${query}`, { credentials: "same-origin", signal });
    const found = response.ok ? (await response.json()).islands : {};
    for (const island of islands) {
      const html = found[island.dataset.moeIsland];
      // Leave the fallback to a visitor who has started to use it.
      if (html == null || island.contains(doc.activeElement)) continue;
      island.innerHTML = html;
      island.dispatchEvent(new CustomEvent("moe:island", { bubbles: true }));
    }
  }

  doc.moeFill = () => {
    // The browser may prepare a page that the visitor never opens.
    if (doc.prerendering) return;
    const islands = [...doc.querySelectorAll("[data-moe-island]")].filter((island) => !asked.has(island));
    for (const island of islands) asked.add(island);
    // The server answers for at most 25 islands. Without an answer the fallbacks stay.
    while (islands[0]) ask(islands.splice(0, 25)).catch(() => {});
  };
  addEventListener("prerenderingchange", doc.moeFill, true);
  new MutationObserver(doc.moeFill).observe(doc, { childList: true, subtree: true });
  doc.moeFill();
})();

// Tells MoEngage's Web SDK who the visitor is, in step with the server: identifyUser() after a sign-in, destroy_session()
// after a sign-out or without consent. The browser remembers the last call, so a second page of the customer makes none.
(() => {
  const doc = document;
  const { id, at, key } = doc.currentScript.dataset;

  // The last call: the time of its page, and the customer's id. Without storage it lasts as long as the document.
  function read() {
    try {
      return JSON.parse(localStorage.getItem(key)) || [0, ""];
    } catch {
      return doc.moeTold || [0, ""];
    }
  }

  function write(...told) {
    doc.moeTold = told;
    try {
      localStorage.setItem(key, JSON.stringify(told));
    } catch {}
  }

  async function tell() {
    const [before, told] = read();
    // A page from the browser's history, or a copy that Turbo or htmx kept, is older than the last call.
    if (+at < before || +at < doc.moeAt) return;
    const sdk = self.Moengage || self.MoEngage;
    if (told && told !== id) {
      // Before the call: if the visitor leaves the page now, the next page must not end the session again.
      write(+at, "");
      await sdk.destroy_session();
    }
    if (id && told !== id) {
      write(+at, id);
      await sdk.identifyUser(id);
    }
  }

  const end = () => doc.moeId--;

  // MoEngage's loader first makes a stub without identifyUser. If the SDK never comes, the next page tries again.
  function wait(waits) {
    const sdk = self.Moengage || self.MoEngage;
    if (sdk?.identifyUser) doc.moeTelling = (doc.moeTelling || Promise.resolve()).then(tell).catch(() => {}).then(end);
    // An SDK before version 2.52.2 has only the part that counts.
    else if (waits && !sdk?.personalize) setTimeout(wait, 250, waits - 1);
    else end();
  }

  function start() {
    doc.moeAt = Math.max(doc.moeAt || 0, at);
    // Meanwhile, with IMPRESSIONS = "web_sdk", personalize.js reports nothing: it would report for the person before.
    doc.moeId = (doc.moeId || 0) + 1;
    wait(120);
  }

  // The browser may prepare a page that the visitor never opens.
  if (doc.prerendering) addEventListener("prerenderingchange", start, { once: true, capture: true });
  else start();
})();

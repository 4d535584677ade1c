// Reports clicks on data-moe-click elements and, where the page asks for it, experiences seen.
// The page has an empty <template> before and one after an experience: these marks take part in
// no layout, may stand in tables and lists, and hold the signed token to report.
(() => {
  // A page that loads the script twice reports once.
  if (document.moeSent) return;
  const reported = (document.moeSent = {});
  const url = document.currentScript.dataset.beacon;
  const pending = [];

  // Each event once; what happens within a second travels in one beacon.
  function report(...event) {
    const text = JSON.stringify(event);
    if (reported[text]) return;
    reported[text] = true;
    // The server reads at most 16 KiB, and 100 events: with their tokens, those are always more.
    if ((pending + text).length > 15000) send();
    if (!pending[0]) setTimeout(send, 1000);
    pending.push(text);
  }

  function send() {
    if (!pending[0]) return;
    const body = `{"events":[${pending.splice(0)}]}`;
    // Not every browser has sendBeacon, and it refuses when too much is on its way.
    navigator.sendBeacon?.(url, body) || fetch(url, { method: "POST", body, keepalive: true }).catch(() => {});
  }

  // The experiences around an element, innermost last: the marks before it, less those already closed.
  function listMarks(element) {
    const open = [];
    for (const mark of document.querySelectorAll("[data-moe-experience],[data-moe-context],[data-moe-end]")) {
      // 4: the element follows the mark.
      if (mark.compareDocumentPosition(element) & 4) {
        if ("moeEnd" in mark.dataset) open.pop();
        else open.push(mark);
      }
    }
    return open;
  }

  // IMPRESSIONS = "web_sdk": the vendor's own script counts, if it is there.
  function tell(method, context, details) {
    const sdk = window.MoEngage?.personalize;
    sdk?.[method](JSON.parse(context), details);
    return sdk;
  }

  // Captured, because the page's own handlers may stop the event or take the element out.
  addEventListener(
    "click",
    ({ target }) => {
      const element = target.closest?.("[data-moe-click]");
      const mark = element && listMarks(element).pop();
      if (!mark) return;
      const name = element.dataset.moeClick;
      const { moeContext: context, moeExperience: token } = mark.dataset;
      if (context) tell("trackClick", context, { button_id: name });
      else report("click", token, name);
      // The click may leave the page.
      send();
    },
    true,
  );

  // A page that is left, hidden, or kept for the back button shows nothing and may never come back.
  let interrupted = 0;
  addEventListener("visibilitychange", (event) => {
    interrupted = event.timeStamp;
    send();
  });

  // IMPRESSIONS = "visible": half of the experience in view for one second without a break.
  function watch(mark) {
    let elements, since, timer;

    // Observed anew, all its elements tell where they are now, clipped by whatever clips them.
    function measure() {
      elements = [];
      for (let next = mark; (next = next.nextElementSibling) && listMarks(next).includes(mark); ) elements.push(next);
      // At least the end mark is there, unless all was taken out of the page.
      if (!elements[0]) return;
      // Bare text is seen with the element that holds it.
      if (!elements[1]) elements = [mark.parentElement];
      observer.disconnect();
      elements.forEach((element) => observer.observe(element));
    }

    const observer = new IntersectionObserver((entries) => {
      clearTimeout(timer);
      if (entries.length < elements.length) return measure();
      const now = entries[0].time;
      let area = 0, seen = 0, left = Infinity, right = 0;
      for (const { target, boundingClientRect: box, intersectionRect: part } of entries) {
        if (target.checkVisibility?.({ opacityProperty: true, visibilityProperty: true }) !== false) {
          area += box.width * box.height;
          seen += part.width * part.height;
          left = Math.min(left, box.x);
          right = Math.max(right, box.right);
        }
      }
      // What is taller than the window has to fill half of its height.
      since =
        !document.hidden &&
        seen &&
        2 * seen >= Math.min(area, (right - left) * innerHeight) &&
        (since > interrupted ? since : now);
      if (since && now - since >= 1000) {
        observer.disconnect();
        report("impression", mark.dataset.moeExperience);
      } else if (entries.some((entry) => entry.isIntersecting)) timer = setTimeout(measure, 100);
    });
    measure();
  }

  let timer;

  function scan() {
    timer = 0;
    for (const mark of document.querySelectorAll("[data-moe-watch],[data-moe-context]")) {
      const { moeContext: context, moeExperience: token = context } = mark.dataset;
      // Libraries that morph a page keep the mark and change its token.
      if (mark.moe !== token) {
        // The vendor's script may still be on its way.
        if (context && !tell("trackImpression", context)) schedule();
        else {
          mark.moe = token;
          if (!context) watch(mark);
        }
      }
    }
  }

  function schedule() {
    timer ||= setTimeout(scan, 200);
  }

  scan();
  // What is put into the page later counts too.
  new MutationObserver(schedule).observe(document, { childList: true, subtree: true });
})();

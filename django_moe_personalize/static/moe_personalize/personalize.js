// Reports clicks on data-moe-click elements and, if the page asks for it, experiences that come into view.
// The page has a mark before and after an experience: an empty <template>, which doesn't change the layout, may
// stand in tables and lists, and holds the signed token to report.
(() => {
  // A page that loads the script twice reports once.
  if (document.moeSent) return;
  const reported = (document.moeSent = {});
  const url = document.currentScript.dataset.beacon;
  const pending = [];

  // Report each event once. One beacon carries all events of a second.
  function report(...event) {
    const text = JSON.stringify(event);
    if (reported[text]) return;
    reported[text] = true;
    // The server reads 16 KiB at most. It also reads 100 events at most, which with their tokens are larger.
    if ((pending + text).length > 15000) send();
    if (!pending[0]) setTimeout(send, 1000);
    pending.push(text);
  }

  function send() {
    if (!pending[0]) return;
    const body = `{"events":[${pending.splice(0)}]}`;
    // Some browsers lack sendBeacon. It also refuses a beacon while too many bytes are being sent.
    navigator.sendBeacon?.(url, body) || fetch(url, { method: "POST", body, keepalive: true }).catch(() => {});
  }

  // List the marks of the experiences around an element, the innermost last: marks before it that are still open.
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

  // IMPRESSIONS = "web_sdk": MoEngage's own script counts, if the page has loaded it.
  function tell(method, context, details) {
    const sdk = window.MoEngage?.personalize;
    sdk?.[method](JSON.parse(context), details);
    return sdk;
  }

  // In the capture phase, because the page's own handlers may stop the event or remove the element.
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
      // The click may lead to another page.
      send();
    },
    true,
  );

  // A hidden page shows nothing, and its visitor may never return. So send the waiting reports now.
  let interrupted = 0;
  addEventListener("visibilitychange", (event) => {
    interrupted = event.timeStamp;
    send();
  });

  // IMPRESSIONS = "visible": report an experience when half of it was in view for one second without a break.
  function watch(mark) {
    let elements, since, timer;

    // Observe all elements again, so that the observer reports which part of each is in view now.
    function measure() {
      elements = [];
      for (let next = mark; (next = next.nextElementSibling) && listMarks(next).includes(mark); ) elements.push(next);
      // There is at least the end mark, unless a script has removed the experience.
      if (!elements[0]) return;
      // Bare text has no element of its own, so watch its parent.
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
      // An experience that is taller than the window has to fill half of the window's height.
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
      // A library that morphs the page keeps the mark and changes its token.
      if (mark.moe !== token) {
        // MoEngage's script may still be loading.
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
  // Experiences that a script adds to the page later count too.
  new MutationObserver(schedule).observe(document, { childList: true, subtree: true });
})();

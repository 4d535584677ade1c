// Reports clicks on data-moe-click elements and, where the page asks for it, experiences seen.
// The page marks an experience with an empty <template> before and one after it.
(function () {
  "use strict";
  var url = document.currentScript.dataset.beacon;
  var selector = "template[data-moe-experience],template[data-moe-context],template[data-moe-end]";
  var pending = [];

  // Everything that happens in one turn of the event loop travels in one beacon.
  function report(event) {
    if (pending.push(event) === 1) setTimeout(send);
  }

  function send() {
    if (pending.length) navigator.sendBeacon(url, JSON.stringify({ events: pending.splice(0) }));
  }

  // The innermost experience around an element: marks before it, less those already closed.
  function findMark(element) {
    var open = [];
    document.querySelectorAll(selector).forEach(function (mark) {
      if (mark.compareDocumentPosition(element) & Node.DOCUMENT_POSITION_FOLLOWING) {
        if ("moeEnd" in mark.dataset) open.pop();
        else open.push(mark);
      }
    });
    return open.pop();
  }

  document.addEventListener(
    "click",
    function (event) {
      var element = event.target.closest && event.target.closest("[data-moe-click]");
      var mark = element && findMark(element);
      if (!mark) return;
      var name = element.dataset.moeClick;
      if (mark.dataset.moeContext) sdk("trackClick", mark, { button_id: name });
      else {
        report(["click", mark.dataset.moeExperience, name]);
        // The click may leave the page before the next turn.
        send();
      }
    },
    true
  );

  // IMPRESSIONS = "web_sdk": the vendor's own script counts.
  function sdk(method, mark, more) {
    var personalize = window.MoEngage && window.MoEngage.personalize;
    if (personalize) personalize[method](JSON.parse(mark.dataset.moeContext), more);
  }

  // Seen: half of the element, or half of the window where it is larger, for one second without a break.
  var timers = new Map();
  var marks = new Map();
  var observer = new IntersectionObserver(
    function (entries) {
      entries.forEach(function (entry) {
        var half = Math.min(entry.boundingClientRect.height, innerHeight) / 2;
        watch(entry.target, entry.isIntersecting && entry.intersectionRect.height >= half);
      });
    },
    { threshold: [0, 0.1, 0.25, 0.5, 0.75, 1] }
  );

  function watch(element, seen) {
    if (!seen || document.hidden) {
      clearTimeout(timers.get(element));
      timers.delete(element);
    } else if (!timers.has(element)) {
      timers.set(element, setTimeout(count, 1000, element));
    }
  }

  function count(element) {
    observer.unobserve(element);
    report(["impression", marks.get(element).dataset.moeExperience]);
    marks.delete(element);
  }

  // A hidden tab sees nothing; shown again, what is in view starts its second anew.
  document.addEventListener("visibilitychange", function () {
    marks.forEach(function (mark, element) {
      watch(element, false);
      observer.unobserve(element);
      if (!document.hidden) observer.observe(element);
    });
  });

  function scan() {
    document.querySelectorAll("template[data-moe-watch],template[data-moe-context]").forEach(function (mark) {
      if (mark.moeKnown) return;
      mark.moeKnown = true;
      if (mark.dataset.moeContext) return sdk("trackImpression", mark);
      var element = mark.nextElementSibling;
      if (element && !("moeEnd" in element.dataset)) {
        marks.set(element, mark);
        observer.observe(element);
      }
    });
  }

  scan();
  // What is put into the page later counts too.
  new MutationObserver(scan).observe(document.documentElement, { childList: true, subtree: true });
})();

// Reports clicks on data-moe-click elements and, if the page asks for it, experiences that the visitor sees.
// A mark has the signed tokens to report. It is an attribute of an experience's first element, or a comment. Another
// comment, "/moe", ends the experience. So marks can't match the selectors of the page's CSS.
(() => {
  // A page that loads the script twice reports once.
  if (document.moeSent) return;
  const reported = (document.moeSent = {});
  const url = document.currentScript.dataset.beacon;
  const pending = [];
  const { min, max } = Math;

  // Return the event as text if this page view hasn't reported the event yet.
  function note(...event) {
    const text = JSON.stringify(event);
    return !reported[text] && (reported[text] = text);
  }

  // One beacon carries all events of a second.
  function report(...event) {
    const text = note(...event);
    if (!text) return;
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

  // IMPRESSIONS = "web_sdk": MoEngage's own script counts. Until it has loaded, the calls wait.
  const calls = [];
  let waits = 0, sdkTimer;

  // The stamp of the page view tells equal calls of two page views apart.
  function tell(stamp, ...call) {
    // 99: a page that never loads MoEngage's script must not fill the memory.
    if (note(stamp, ...call) && !calls[99]) calls.push(call);
    tellAll();
  }

  function tellAll() {
    clearTimeout(sdkTimer);
    // MoEngage's loader makes the global. Its second script adds the part "personalize".
    const sdk = (window.Moengage || window.MoEngage)?.personalize;
    while (sdk && calls[0]) {
      const [method, ...details] = calls.shift();
      sdk[method](...details);
    }
    if (!calls[0] || document.hidden) return;
    // The script waits for 30 seconds in which the page is visible.
    if (waits++ < 120) sdkTimer = setTimeout(tellAll, 250);
    else report("missing", "web_sdk");
  }

  // Each experience has a live range, which stays around the content when a script replaces the content.
  let experiences = [];

  function addExperience(mark, token) {
    const experience = { mark, range: new Range(), token };
    experiences.push(experience);
    if (token[0] === "%") {
      const [stamp, context, offerings] = (experience.contexts = JSON.parse(decodeURIComponent(token)));
      tell(stamp, "trackImpression", context);
      for (const id in offerings) tell(stamp, "offeringShown", offerings[id]);
    } else if (mark.dataset ? "moeWatch" in mark.dataset : mark.data[3] === "-") watch(experience);
    return experience;
  }

  // Find the marks, also in open shadow roots.
  function scan(root) {
    observer.observe(root, { childList: true, subtree: true, attributeFilter: ["data-moe-experience"] });
    const open = [];
    const walker = document.createTreeWalker(root, 129);
    for (let node; (node = walker.nextNode()); ) {
      const { data, dataset } = node;
      // If an element is the first one of several experiences, its mark has several tokens. The outermost comes first.
      const text = /^moe\S* (.+)/.exec(data)?.[1] || dataset?.moeExperience;
      // A library that morphs the page keeps the mark and changes its tokens.
      if (node.moe !== text) {
        node.moe = text;
        experiences = experiences.filter(({ mark }) => mark !== node);
        node.moes = text?.split(" ").map((token) => addExperience(node, token));
      }
      for (const experience of node.moes || []) {
        open.push(experience);
        // A minifier may remove the comment at the end. Then the first element is the whole experience.
        experience.range.selectNode(node);
      }
      if (data === "/moe") {
        // A comment whose mark a script has removed must not end another experience.
        node.moeMark ||= open.at(-1)?.mark;
        const index = open.findLastIndex(({ mark }) => mark === node.moeMark);
        if (index >= 0) open.splice(index)[0].range.setEndAfter(node);
      }
      // A page that was fetched before the visitor opened it has the tokens of its impressions. It is open now.
      dataset?.moeShown?.split(" ").forEach((token) => report("impression", token));
      if (node.shadowRoot) scan(node.shadowRoot);
    }
  }

  let timer;

  function update() {
    clearTimeout(timer);
    timer = 0;
    scan(document);
    // A script may have removed experiences.
    experiences = experiences.filter(({ mark, range }) => mark.isConnected || !range.collapsed);
    for (const { measure } of experiences) measure?.();
  }

  // Experiences that a script adds to the page later count too.
  const observer = new MutationObserver(() => (timer ||= setTimeout(update, 200)));

  let press, isCounted;

  // Count an act of a person: a click, a middle click on a link, or the sending of a form.
  function count(event) {
    const { type, button, clientX, clientY, detail } = event;
    // The path also leads through open shadow roots.
    const path = event.composedPath();
    const index = path.findIndex((node) => node.matches?.("[data-moe-click],:disabled"));
    const element = path[index];
    if (
      // A script made this event. Or one act made two events: a click on a label also clicks its field.
      !event.isTrusted ||
      isCounted ||
      !element?.matches("[data-moe-click]:not(:disabled)") ||
      // A form counts when it is sent, and not when its fields are clicked.
      element.matches("form") !== (type === "submit") ||
      (type === "auxclick" && (button !== 1 || !path.some(({ href }) => href))) ||
      // The visitor has dragged or selected something. A click without a pointer has the detail 0.
      (detail && press && Math.hypot(clientX - press.clientX, clientY - press.clientY) > 10)
    )
      return;
    if (timer) update();
    const name = element.dataset.moeClick;
    for (const node of path.slice(index)) {
      // The innermost experience around the element starts last. 0: compare the starts.
      const { contexts, token } =
        experiences
          .filter(({ range }) => node.parentNode && range.isPointInRange(node, 0))
          .sort((a, b) => a.range.compareBoundaryPoints(0, b.range))
          .pop() || {};
      if (!token) continue;
      if (contexts) {
        const [stamp, context, offerings] = contexts;
        tell(stamp, "trackClick", context, { button_id: name });
        if (offerings[name]) tell(stamp, "offeringClicked", offerings[name]);
      } else report("click", token, name);
      isCounted = true;
      setTimeout(() => (isCounted = false));
      // The click may lead to another page.
      return send();
    }
  }

  // In the capture phase, because the page's own handlers may stop the event or remove the element.
  for (const type of ["click", "auxclick", "submit"]) addEventListener(type, count, true);
  addEventListener("pointerdown", (event) => (press = event), true);

  // A hidden page shows nothing, and its visitor may never return. So send the waiting reports now.
  let interrupted = 0;
  addEventListener("visibilitychange", (event) => {
    interrupted = event.timeStamp;
    tellAll();
    send();
  });

  // Return the parts of a node that a person sees: text, and elements with a box of their own.
  function listParts(node) {
    if (node.nodeType !== 1) return node.nodeType === 3 && node.data.trim() ? [node] : [];
    if (!node.getClientRects()[0] && getComputedStyle(node).display !== "contents") {
      // A closed list shows the selected option.
      const list = node.closest("select");
      return [list && node.contains(list.selectedOptions[0]) ? list : node];
    }
    // An inline element has a box as high as a line, and only its content is as high as an image.
    const children = node.assignedNodes?.({ flatten: true }) || (node.shadowRoot || node).childNodes;
    const parts = node.clientWidth && node.clientHeight ? [] : [...children].flatMap(listParts);
    return parts[0] ? parts : [node];
  }

  const getParent = (node) => node.assignedSlot || node.parentNode || node.host;

  const multiply = (calculate) => calculate("left", "right", "width", "X") * calculate("top", "bottom", "height", "Y");

  // Return the width and height that the window and the scroll containers around a node can show at once.
  function findRoom(node) {
    const room = { width: innerWidth, height: innerHeight };
    for (let isMoved; node && node !== document.body; node = getParent(node)) {
      if (node.nodeType !== 1) continue;
      const style = getComputedStyle(node);
      const box = node.getBoundingClientRect();
      // A slider hides its overflow and moves its content.
      isMoved ||= style.transform !== "none" || node.scrollLeft || node.scrollTop;
      multiply((low, high, size, axis) => {
        const overflow = style["overflow" + axis];
        if (isMoved ? overflow !== "visible" : /auto|scroll/.test(overflow)) room[size] = min(room[size], box[size]);
      });
    }
    return room;
  }

  // IMPRESSIONS = "visible": report an experience when half of it was in view for one second without a break.
  function watch(experience) {
    const { range, token } = experience;
    let parts, since, timer;

    // Observe all elements again, so that the observer reports which part of each is in view now.
    function measure() {
      observer.disconnect();
      parts = new Map();
      for (const child of range.startContainer.childNodes) {
        for (const part of range.intersectsNode(child) ? listParts(child) : []) {
          let element = part;
          // The observer can't observe text. So observe the element around the text.
          while (element.nodeType !== 1 || (element !== part && !element.getClientRects()[0])) element = getParent(element);
          parts.set(element, [...(parts.get(element) || []), part]);
        }
      }
      for (const element of parts.keys()) observer.observe(element);
    }

    const observer = new IntersectionObserver((entries) => {
      clearTimeout(timer);
      if (!experiences.includes(experience)) return observer.disconnect();
      if (entries.length < parts.size) return measure();
      const now = entries[0].time;
      const boxes = [];
      const text = new Range();
      let area = 0, seen = 0;
      for (const { target, boundingClientRect, intersectionRect: view } of entries) {
        if (target.checkVisibility?.({ opacityProperty: true, visibilityProperty: true }) === false) continue;
        for (const part of parts.get(target)) {
          text.selectNode(part);
          for (const box of part === target ? [boundingClientRect] : text.getClientRects()) {
            boxes.push(box);
            area += box.width * box.height;
            seen += multiply((low, high) => max(0, min(box[high], view[high]) - max(box[low], view[low])));
          }
        }
      }
      const room = findRoom(range.startContainer);
      // Of content that is larger than its scroll container, half of what the container can show has to be in view.
      const share = multiply((low, high, size) =>
        min(1, room[size] / (max(...boxes.map((box) => box[high])) - min(...boxes.map((box) => box[low])))),
      );
      since = !document.hidden && seen && 2 * seen >= area * share && (since > interrupted ? since : now);
      if (since && now - since >= 1000) {
        observer.disconnect();
        delete experience.measure;
        report("impression", token);
      } else if (entries.some((entry) => entry.isIntersecting)) timer = setTimeout(measure, seen ? 100 : 300);
    });
    experience.measure = measure;
  }

  // The browser may prepare a page before the visitor opens it.
  if (document.prerendering) document.addEventListener("prerenderingchange", update);
  else update();
})();

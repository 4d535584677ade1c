// Reports clicks on data-moe-click elements and, if the page asks for it, experiences that the visitor sees.
// A mark has the signed tokens to report. It is an attribute of an experience's first element, or a comment. Another
// comment, "/moe", ends the experience. So marks can't match the selectors of the page's CSS.
(() => {
  const doc = document;
  // A page that loads the script twice reports once.
  if (doc.moeSent) return;
  const reported = (doc.moeSent = {});
  const url = doc.currentScript.dataset.beacon;
  const pending = [];
  const { hypot, max, min } = Math;

  // Return the event as text if this page view hasn't reported the event yet.
  const note = (event, text = JSON.stringify(event)) => !reported[text] && (reported[text] = text);

  // One beacon carries all events of a second.
  function report(...event) {
    const text = note(event);
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
    navigator.sendBeacon?.(url, body) || fetch(url, { method: "POST", body, keepalive: 1 }).catch(() => {});
  }

  // IMPRESSIONS = "web_sdk": MoEngage's own script counts. Until it has loaded, the calls wait.
  const calls = [];
  let waits = 0, sdkTimer;

  // The stamp of the page view tells equal calls of two page views apart.
  function tell(stamp, more = []) {
    // 99: a page that never loads MoEngage's script must not fill the memory.
    for (const call of more) if (note([stamp, call]) && !calls[99]) calls.push(call);
    sdkTimer || tellAll();
  }

  function tellAll() {
    sdkTimer = 0;
    // MoEngage's loader makes the global, its second script "personalize".
    const sdk = !doc.moeId && (self.Moengage || self.MoEngage)?.personalize;
    while (sdk && calls[0]) {
      const [method, ...details] = calls.shift();
      sdk[method](...details);
    }
    // Wait for 30 seconds. In a hidden page, browsers let the time pass more slowly.
    if (calls[0]) waits++ < 120 ? (sdkTimer = setTimeout(tellAll, 250)) : report("missing", "web_sdk");
  }

  // Each experience has a live range, which stays around the content when a script replaces the content.
  let experiences = [];

  function addExperience(mark, token) {
    const experience = { mark, range: new Range(), token };
    experiences.push(experience);
    if (token[0] == "%") {
      // The calls of the impression, and of the click on each element.
      experience.calls = JSON.parse(decodeURIComponent(token));
      tell(...experience.calls);
    } else if (mark.dataset ? "moeWatch" in mark.dataset : mark.data[3] == "-") watch(experience);
    return experience;
  }

  // Find the marks, also in open shadow roots.
  function scan(root) {
    observer.observe(root, { childList: 1, subtree: 1, attributeFilter: ["data-moe-experience"] });
    const open = [];
    const walker = doc.createTreeWalker(root, 129);
    for (let node; (node = walker.nextNode()); ) {
      const { data, dataset } = node;
      // If an element is the first one of several experiences, its mark has several tokens. The outermost comes first.
      const text = dataset ? dataset.moeExperience : /^moe\S* (.+)/.exec(data)?.[1];
      // A library that morphs the page keeps the mark and changes its tokens.
      if (node.moe !== text) {
        node.moe = text;
        node.moes = text?.split(" ").map((token) => addExperience(node, token));
      }
      for (const experience of node.moes || []) {
        open.push(experience);
        // A minifier may remove the comment at the end. Then the first element is the whole experience.
        experience.range.selectNode(node);
      }
      if (data == "/moe") {
        const last = open.at(-1);
        // A comment whose mark a script has removed must not end another experience.
        if (last?.mark === (node.moe ||= last?.mark)) open.pop()?.range.setEndAfter(node);
      }
      // A page that was fetched before the visitor opened it has the tokens of its impressions. It is open now.
      dataset?.moeShown?.split(" ").forEach((token) => report("impression", token));
      if (node.shadowRoot) scan(node.shadowRoot);
    }
  }

  let timer;

  function update() {
    timer = 0;
    scan(doc);
    // A script may have changed or removed marks.
    experiences = experiences.filter((each) => each.mark.moes?.includes(each) && !each.range.collapsed);
    for (const { look } of experiences) look?.();
  }

  // Experiences that a script adds to the page later count too.
  const observer = new MutationObserver(() => (timer ||= setTimeout(update, 500)));

  let press = {}, isCounted;

  // Count an act of a person: a click, a middle click on a link, or the sending of a form.
  function count(event) {
    const { button } = event;
    // The path also leads through open shadow roots.
    const path = event.composedPath();
    let name;
    const index = path.findIndex((node) => (name = node.dataset?.moeClick) != null || node.disabled);
    if (
      // A script made this event. Or one act made two events: a click on a label also clicks its field.
      !event.isTrusted ||
      isCounted ||
      name == null ||
      path[index].disabled ||
      // A form counts when it is sent, and not when its fields are clicked.
      path[index].matches("form") !== (event.type == "submit") ||
      // 1: the middle button opens a link in a new tab.
      button > 1 ||
      (button && !path.some(({ href }) => href)) ||
      // The visitor has dragged or selected something. A click with the keyboard is at 0.
      (event.x && hypot(event.x - press.x, event.y - press.y) > 10)
    )
      return;
    if (timer) update();
    // The innermost experience around the element starts last. 0: compare the starts.
    const [found] = path.slice(index, -1).flatMap((node) =>
      experiences
        .filter(({ range }) => range.isPointInRange(node, 0))
        .sort((a, b) => a.range.compareBoundaryPoints(0, b.range))
        .slice(-1),
    );
    if (!found) return;
    isCounted = 1;
    setTimeout(() => (isCounted = 0));
    if (found.calls) tell(found.calls[0], found.calls[2][name]);
    else report("click", found.token, name);
    // The click may lead to another page.
    send();
  }

  // Return the parts of a node that a person sees: text, and elements with a box of their own.
  function listParts(node) {
    // Only text has wholeText.
    if (!node.matches) return node.wholeText?.trim() ? [node] : [];
    if (!node.getClientRects()[0] && getComputedStyle(node).display != "contents") {
      // A closed list shows the selected option.
      return [node.selected ? node.closest("select") : node];
    }
    // An inline element has a box as high as a line, and only its content is as high as an image.
    const children = node.assignedNodes?.({ flatten: 1 }) || (node.shadowRoot || node).childNodes;
    const parts = node.clientWidth && node.clientHeight ? [] : [...children].flatMap(listParts);
    return parts[0] ? parts : [node];
  }

  const getParent = (node) => node.assignedSlot || node.parentElement || node.getRootNode().host;

  // IMPRESSIONS = "visible": report an experience when half of it was in view for one second without a break.
  function watch(experience) {
    const { range, token } = experience;
    let parts, isNew, timer;

    // Observe all elements again, so that the observer reports which part of each is in view now.
    function look() {
      observer.disconnect();
      observer.takeRecords();
      parts = [];
      isNew = 1;
      for (const child of experiences.includes(experience) ? range.startContainer.childNodes : []) {
        for (const part of range.intersectsNode(child) ? listParts(child) : []) {
          let element = part;
          // The observer can't observe text. So observe the element around the text.
          while (!(element === part ? part.matches : element.getClientRects()[0])) element = getParent(element);
          parts.push([element, part]);
          observer.observe(element);
        }
      }
    }

    const observer = new IntersectionObserver((entries) => {
      clearTimeout(timer);
      // Later the observer reports only the elements that have moved.
      if (!isNew) return look();
      isNew = 0;
      const now = entries[0].time;
      const text = new Range();
      let area = 0, seen = 0, left = Infinity, top = Infinity, right = 0, bottom = 0;
      for (const [element, part] of parts) {
        if (element.checkVisibility?.({ checkOpacity: 1, checkVisibilityCSS: 1 }) == 0) continue;
        const { boundingClientRect, intersectionRect: view } = entries.find(({ target }) => target === element);
        text.selectNode(part);
        for (const box of part === element ? [boundingClientRect] : text.getClientRects()) {
          area += box.width * box.height;
          seen +=
            max(0, min(box.right, view.right) - max(box.x, view.x)) *
            max(0, min(box.bottom, view.bottom) - max(box.y, view.y));
          left = min(left, box.x);
          top = min(top, box.y);
          right = max(right, box.right);
          bottom = max(bottom, box.bottom);
        }
      }
      // The size of the part that the window and the scroll containers around the experience can show at once.
      let width = innerWidth, height = innerHeight, isMoved;
      for (let node = getParent(parts[0][1]); node && node !== doc.body; node = getParent(node)) {
        const { overflow, transform } = getComputedStyle(node);
        const box = node.getBoundingClientRect();
        // A slider hides its overflow and moves its content.
        if (isMoved || node.scrollLeft || node.scrollTop ? overflow != "visible" : /auto|scroll/.test(overflow)) {
          width = min(width, box.width);
          height = min(height, box.height);
          isMoved = 0;
        }
        isMoved ||= /1, 0, 0, 1,/.test(transform);
      }
      // Of content that is larger than this part, half of what the part can show has to be in view.
      area *= min(1, width / (right - left)) * min(1, height / (bottom - top));
      experience.since = !doc.hidden && seen && 2 * seen >= area && (experience.since || now);
      if (experience.since && now - experience.since >= 1000) {
        observer.disconnect();
        experience.look = null;
        report("impression", token);
      } else if (entries.some((entry) => entry.isIntersecting)) timer = setTimeout(look, seen ? 100 : 300);
    });
    experience.look = look;
  }

  const handlers = {
    click: count,
    auxclick: count,
    submit: count,
    pointerdown: (event) => (press = event),
    // Unpoly doesn't tell the server that it preloads a link.
    "up:link:preload": ({ renderOptions }) => ((renderOptions.headers ||= {})["X-Purpose"] = 1),
    // A hidden page shows nothing, and its visitor may never return. So send the waiting reports now.
    visibilitychange: () => {
      for (const experience of experiences) experience.since = 0;
      send();
    },
    // The browser may prepare a page before the visitor opens it.
    prerenderingchange: update,
  };
  // In the capture phase, because the page's own handlers may stop the event or remove the element.
  for (const type in handlers) addEventListener(type, handlers[type], 1);
  if (!doc.prerendering) update();
})();

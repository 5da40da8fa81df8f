// Keeps the parts of a page up to date that change. The page is whole without it.
(() => {
  "use strict";
  const link = document.getElementById("link");
  const lost = document.getElementById("lost");
  if (!link || !window.EventSource) return;

  // Somebody is there as long as something comes every two seconds.
  const SILENCE = 12000;
  let source = null;
  let heard = 0;
  let pause = 1000;

  const page = location.pathname + location.search;
  const address = "/events?page=" + encodeURIComponent(page);

  const tell = (live) => {
    link.hidden = false;
    link.className = "link-state " + (live ? "on" : "off");
    link.querySelector(".word").textContent = live ? "Connected" : "Not connected";
    lost.hidden = live;
  };

  // A part in which somebody selects text, or holds a button down, waits.
  let pressed = false;
  addEventListener("pointerdown", () => { pressed = true; });
  for (const end of ["pointerup", "pointercancel", "blur"]) {
    addEventListener(end, () => { setTimeout(() => { pressed = false; flush(); }, 0); });
  }
  const busy = (part) => {
    // What is under the pointer is not put somewhere else just before it is pressed.
    if (pressed || part.querySelector("button:hover, a.button:hover")) return true;
    const chosen = getSelection();
    return chosen && !chosen.isCollapsed && chosen.rangeCount > 0 && chosen.getRangeAt(0).intersectsNode(part);
  };

  // Which link, or button of which form, this is, in the next version of its part, too.
  const identity = (element) => {
    const form = element.closest("form");
    return form ? "form " + form.getAttribute("action") : "link " + element.getAttribute("href");
  };
  const ages = (root) => root.querySelectorAll("time");
  const ageless = (root) => {
    const copy = root.cloneNode(true);
    for (const time of ages(copy)) time.textContent = "";
    return copy;
  };

  const waiting = new Map();
  const replace = (part, html) => {
    const next = part.cloneNode(false);
    next.innerHTML = html;
    // Where nothing changed but how long ago something was, nothing is taken away and put there anew.
    if (ageless(part).isEqualNode(ageless(next))) {
      const fresh = ages(next);
      ages(part).forEach((time, at) => {
        if (time.textContent !== fresh[at].textContent) time.textContent = fresh[at].textContent;
      });
      return;
    }
    const active = document.activeElement;
    const inside = active && part.contains(active) ? identity(active) : null;
    part.replaceChildren(...next.childNodes);
    if (inside) {
      for (const element of part.querySelectorAll("a, button")) {
        if (identity(element) === inside) { element.focus({ preventScroll: true }); break; }
      }
    }
  };
  const flush = () => {
    for (const [name, html] of waiting) {
      const part = document.getElementById("live-" + name);
      if (part && busy(part)) continue;
      waiting.delete(name);
      if (part) replace(part, html);
    }
  };

  let again = 0;
  const open = () => {
    clearTimeout(again);
    if (source) source.close();
    // Nobody looks: nothing is asked for.
    if (document.hidden) return;
    heard = Date.now();
    source = new EventSource(address);
    source.addEventListener("parts", (event) => {
      heard = Date.now();
      pause = 1000;
      tell(true);
      for (const [name, html] of Object.entries(JSON.parse(event.data))) waiting.set(name, html);
      flush();
    });
    // Closed for good, as by an answer that is an error: the browser would not try again.
    source.onerror = () => {
      if (source.readyState !== EventSource.CLOSED) return;
      tell(false);
      // Where the session is over, the page leads to the form.
      fetch(page, { method: "HEAD", redirect: "manual" })
        .then((answer) => { if (answer.status === 401) location.reload(); })
        .catch(() => {});
      pause = Math.min(pause * 2, 15000);
      heard = Infinity;
      again = setTimeout(open, pause);
    };
  };

  setInterval(() => {
    if (document.hidden || Date.now() - heard < SILENCE) return;
    tell(false);
    open();
  }, 2000);

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) heard = Infinity;
    open();
  });

  open();
})();

// Asks for the page again and puts its parts in place of the old ones. Without this script the page is the same, and the browser
// loads it anew every 15 seconds.
"use strict";
(() => {
  const ANSWER_LIMIT_MS = 10000;
  const silence = document.getElementById("silence");
  const every = () => Number(document.getElementById("main").dataset.refreshMs);
  let heard = new Date();
  let timer;

  // Whoever is copying something out of a part keeps it as it is.
  const isHeld = (part) => {
    const selection = document.getSelection();
    return selection !== null && !selection.isCollapsed && part.contains(selection.anchorNode);
  };

  const put = (page) => {
    if (page.body.dataset.version !== document.body.dataset.version) {
      location.reload();
      return;
    }
    for (const part of document.querySelectorAll("[data-live]")) {
      const next = page.getElementById(part.id);
      if (next !== null && !isHeld(part) && next.innerHTML !== part.innerHTML) {
        part.replaceChildren(...next.childNodes);
      }
    }
    document.title = page.title;
  };

  const say = (words) => {
    if (silence.textContent !== words) silence.textContent = words;
    silence.hidden = words === "";
    document.body.classList.toggle("silent", words !== "");
  };

  const refresh = async () => {
    clearTimeout(timer);
    try {
      const answer = await fetch(location.href, { cache: "no-store", signal: AbortSignal.timeout(ANSWER_LIMIT_MS) });
      if (!answer.ok) throw new Error(answer.statusText);
      put(new DOMParser().parseFromString(await answer.text(), "text/html"));
      heard = new Date();
      say("");
    } catch {
      // What stands there is old from now on, and must not look like news.
      say(`No answer from the gateway since ${heard.toLocaleTimeString()}: what is shown is from then.`);
      document.title = "no answer";
    }
    if (!document.hidden) timer = setTimeout(refresh, every());
  };

  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) refresh();
  });
  timer = setTimeout(refresh, every());
})();

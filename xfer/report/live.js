"use strict";
(() => {
  const live = document.getElementById("live");
  if (live === null) return;
  const { again, written, within, silent } = live.dataset;
  const spent = Date.now() / 1000 - Number(written);
  const over = spent > Number(within);
  const words = (s) => s < 120 ? `${Math.round(s)} s` : s < 7200 ? `${Math.round(s / 60)} min` : `${Math.round(s / 3600)} h`;
  if (over) {
    live.textContent = silent.replace("{}", words(spent));
    live.classList.add("silent");
    document.title = `Silent for ${words(spent)}: ${document.title}`;
  }
  // A run may be slow, or be resumed: an hour long the page is looked at once a minute.
  const pause = over ? Math.max(60, Number(again)) : Number(again);
  const button = document.createElement("button");
  let waiting = 0;
  const wait = () => {
    waiting = setTimeout(() => location.reload(), 1000 * pause);
    button.textContent = "Pause";
  };
  const stop = () => {
    clearTimeout(waiting);
    waiting = 0;
    button.textContent = "Reload again";
  };
  button.type = "button";
  button.addEventListener("click", () => {
    if (waiting) {
      window.stop();  // the page may be on its way already
      stop();
    } else if (over) location.reload();
    else wait();
  });
  live.append(" ", button);
  if (spent > Number(within) + 3600) stop(); else wait();
})();

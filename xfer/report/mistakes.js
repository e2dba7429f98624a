"use strict";
(() => {
  const heats = document.getElementById("heats");
  document.addEventListener("keydown", (event) => {
    if (!heats || event.key.toLowerCase() !== "h" || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest(".shots")) heats.click();
  });
})();
(() => {
  const box = document.getElementById("mistakes");
  if (!box) return;
  const shots = [...box.querySelectorAll("details")];
  const filter = box.querySelector(".filter");
  const [name, kind] = filter.querySelectorAll("select");
  const said = filter.querySelector("output");
  const fits = (shot) => {
    const { kinds } = shot.dataset;
    if (kind.value === "sure" || kind.value === "second") {
      if (!kinds.split(" ").includes(kind.value)) return false;
    }
    // Of several labels, between which the page writes a backslash and an n, those that are right
    // or unknown are neither missed nor an alarm.
    const { label, prediction, unknown } = shot.dataset;
    const [has, said, open] = [label, prediction, unknown].map((names) => names.split("\\n").filter(Boolean));
    const named = {
      missed: has.filter((one) => !said.includes(one)),
      alarm: said.filter((one) => !has.includes(one) && !open.includes(one)),
    }[kind.value] ?? [...has, ...said];
    return name.value ? named.includes(name.value) : named.length > 0 || kind.value === "";
  };
  const show = () => {
    for (const shot of shots) {
      shot.hidden = !fits(shot);
      if (shot.hidden) shot.open = false;
    }
    const seen = shots.filter((shot) => !shot.hidden).length;
    said.textContent = seen + " of " + shots.length + " shown";
  };
  name.addEventListener("change", show);
  kind.addEventListener("change", show);
  box.addEventListener("keydown", (event) => {
    const shot = event.target.closest("details");
    if (!shot) return;
    if (event.key === "Escape" && shot.open) {
      shot.open = false;
      shot.firstElementChild.focus();
    }
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const seen = shots.filter((other) => !other.hidden);
    const next = seen[seen.indexOf(shot) + step];
    if (!next) return;
    event.preventDefault();
    next.open = shot.open;
    if (next.open) shot.open = false;
    next.firstElementChild.focus();
  });
  filter.hidden = false;
  show();
})();

"use strict";
(() => {
  const table = JSON.parse(document.getElementById("table").textContent);
  const at = Object.fromEntries(table.head.map((name, i) => [name, i]));
  const cards = [...document.querySelectorAll(".find")];
  const bar = document.getElementById("bar");
  const [kind, name, state] = bar.querySelectorAll("select");
  const [shown, decided] = bar.querySelectorAll("output");
  const save = bar.querySelector("button");
  const rowOf = (card) => table.rows[Number(card.dataset.row)];
  let unsaved = false;

  const fits = (card) => {
    const row = rowOf(card);
    if (kind.value && !card.dataset.kinds.split(" ").includes(kind.value)) return false;
    if (name.value && row[at.label] !== name.value && row[at.suggested] !== name.value) return false;
    return !state.value || (row[at.decision] === "accept") === (state.value === "accept");
  };
  const show = () => {
    for (const card of cards) card.hidden = !fits(card);
    shown.textContent = cards.filter((card) => !card.hidden).length + " of " + cards.length + " shown";
  };
  const count = () => {
    const of = (word) => table.rows.filter((row) => row[at.decision] === word).length;
    decided.textContent = of("relabel") + " to relabel, " + of("drop") + " to drop";
  };
  const decide = (card, word) => {
    const row = rowOf(card), other = card.querySelector("select");
    if (word === "relabel" && !other.value) return;
    row[at.decision] = word;
    if (word === "relabel") row[at.suggested] = other.value;
    card.dataset.decision = word;
    card.querySelector(`input[value="${word}"]`).checked = true;
    unsaved = true;
    count();
  };
  for (const card of cards) {
    const row = rowOf(card), other = card.querySelector("select");
    for (const label of table.classes) {
      if (label === row[at.label]) continue;
      other.append(new Option(label, label, false, label === row[at.suggested]));
    }
    if (!row[at.suggested]) other.selectedIndex = 0;
    card.dataset.decision = row[at.decision];
    card.querySelector("fieldset").hidden = false;
    card.querySelector(`input[value="${row[at.decision]}"]`).checked = true;
    card.addEventListener("change", (event) => {
      if (event.target === other) decide(card, "relabel");
      else if (event.target.type === "radio") decide(card, event.target.value);
    });
  }
  document.addEventListener("keydown", (event) => {
    const card = event.target.closest(".find");
    if (!card && event.target !== document.body) return;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.tagName === "SELECT") return;
    const word = { a: "accept", r: "relabel", d: "drop" }[event.key];
    const step = { j: 1, k: -1 }[event.key];
    if (card && word) decide(card, word);
    if (step) {
      const seen = cards.filter((other) => !other.hidden);
      const next = seen[seen.indexOf(card) + step]; // without a card, j goes to the first
      if (next) next.focus();
    }
    if ((card && word) || step) event.preventDefault();
  });
  const cell = (text) => (/[",\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text);
  const written = () => [table.head, ...table.rows].map((row) => row.map(cell).join(",") + "\n").join("");
  save.addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([written()], { type: "text/csv" }));
    link.download = "audit.csv";
    link.click();
    URL.revokeObjectURL(link.href);
    unsaved = false;
  });
  window.addEventListener("beforeunload", (event) => {
    if (unsaved) event.preventDefault();
  });
  for (const select of [kind, name, state]) select.addEventListener("change", show);
  bar.hidden = false;
  show();
  count();
})();

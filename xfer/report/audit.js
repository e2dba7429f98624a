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

  // With several labels a cell has a sign between them, and ? before one that is unknown.
  const named = (cell) => (table.sign ? cell.split(table.sign).filter(Boolean) : [cell]);
  const states = (cell) =>
    new Map(named(cell).map((text) => (text[0] === "?" ? [text.slice(1), "?"] : [text, ""])));
  const joined = (of) =>
    table.classes.filter((label) => of.has(label)).map((label) => of.get(label) + label).join(table.sign);

  const fits = (card) => {
    const row = rowOf(card);
    if (kind.value && !card.dataset.kinds.split(" ").includes(kind.value)) return false;
    const of = [...named(row[at.label]), ...named(row[at.suggested])];
    if (name.value && !of.includes(name.value)) return false;
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
    const same = table.sign ? row[at.suggested] === row[at.label] : !other.value;
    if (word === "relabel" && same) word = row[at.decision];
    row[at.decision] = word;
    if (word === "relabel" && !table.sign) row[at.suggested] = other.value;
    card.dataset.decision = word;
    card.querySelector(`input[value="${word}"]`).checked = true;
    unsaved = true;
    count();
  };
  const put = (card, label, state) => {
    const row = rowOf(card), of = states(row[at.suggested]);
    if (state === null) of.delete(label);
    else of.set(label, state);
    row[at.suggested] = joined(of);
  };
  // What a relabelled image has of one label.
  const ask = (card, label) => {
    const row = rowOf(card), box = document.createElement("label"), choice = document.createElement("select");
    const state = states(row[at.suggested]).get(label);
    choice.append(new Option("has it", "", false, state === ""));
    choice.append(new Option("has it not", "0", false, state === undefined));
    choice.append(new Option("unknown", "?", false, state === "?"));
    choice.addEventListener("change", () => put(card, label, choice.value === "0" ? null : choice.value));
    box.className = "asked";
    box.append(label + " ", choice);
    card.querySelector("fieldset span > select").before(box);
  };
  const offerLabels = (card, other) => {
    const row = rowOf(card), before = states(row[at.label]), after = states(row[at.suggested]);
    const asked = new Set(table.classes.filter((label) => before.get(label) !== after.get(label)));
    for (const label of asked) ask(card, label);
    other.append(new Option("another label", ""));
    for (const label of table.classes) if (!asked.has(label)) other.append(new Option(label, label));
    other.addEventListener("change", () => {
      put(card, other.value, states(row[at.suggested]).get(other.value) === "" ? null : "");
      ask(card, other.value);
      other.selectedOptions[0].remove();
    });
  };
  for (const card of cards) {
    const row = rowOf(card), other = card.querySelector("select");
    if (table.sign) offerLabels(card, other);
    else
      for (const label of table.classes) {
        if (label === row[at.label]) continue;
        other.append(new Option(label, label, false, label === row[at.suggested]));
      }
    if (!table.sign && !row[at.suggested]) other.selectedIndex = 0;
    card.dataset.decision = row[at.decision];
    card.querySelector("fieldset").hidden = false;
    card.querySelector(`input[value="${row[at.decision]}"]`).checked = true;
    card.addEventListener("change", (event) => {
      if (event.target.tagName === "SELECT") decide(card, "relabel");
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

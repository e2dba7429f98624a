"use strict";
const remembered = (key) => { try { return sessionStorage.getItem(key); } catch { return null; } };
const remember = (key, text) => { try { sessionStorage.setItem(key, text); } catch { /* no storage */ } };
const order = (table, at, down) => {
  const body = table.tBodies[0], rows = [...body.rows];
  const keys = new Map(rows.map((row) => [row, row.cells[at].dataset.sort]));
  const known = [...keys.values()].filter((key) => key !== "");
  const numbers = known.every((key) => key.trim() !== "" && Number.isFinite(Number(key)));
  rows.sort((one, other) => {
    const a = keys.get(one), b = keys.get(other);
    if (a === "" || b === "") return (a === "") - (b === "");
    const before = numbers ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true });
    return down ? -before : before;
  });
  body.append(...rows);
  for (const head of table.tHead.rows[0].cells) head.removeAttribute("aria-sort");
  table.tHead.rows[0].cells[at].setAttribute("aria-sort", down ? "descending" : "ascending");
};
document.querySelectorAll("table").forEach((table, number) => {
  if (table.tBodies[0].rows.length < 2) return;
  const place = `${location.pathname} ${number}`;
  table.classList.add("sorts");
  [...table.tHead.rows[0].cells].forEach((head, at) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      order(table, at, down);
      remember(place, JSON.stringify([at, down]));
    });
  });
  const before = remembered(place);
  if (before !== null) {
    const [at, down] = JSON.parse(before);
    if (at < table.tHead.rows[0].cells.length) order(table, at, down);
  }
});

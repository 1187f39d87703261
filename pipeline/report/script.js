"use strict";

/* Headers of tables become buttons that sort: up, down, and as it was. Rows that tie stay in the order they have. */

const NUMBER = /^[[(]*([+−-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)(?![\w.])/;

function read(row, column) {
  const cell = row.cells[column];
  const text = (cell.dataset.sort ?? cell.textContent).trim();
  const number = NUMBER.exec(text);
  const value = number && Number(number[1].replace("−", "-").replaceAll(",", ""));
  return { text, blank: /^–?$/.test(text), number: value };
}

function sort(body, column, direction) {
  const rows = [...body.rows].map((row) => ({ row, ...read(row, column) }));
  const numeric = rows.every(({ blank, number }) => blank || number !== null);
  rows.sort((a, b) => {
    if (direction === "none") return a.row.dataset.place - b.row.dataset.place;
    if (a.blank || b.blank) return a.blank - b.blank;
    const order = numeric ? a.number - b.number : a.text.localeCompare(b.text, "en", { numeric: true });
    return direction === "ascending" ? order : -order;
  });
  body.append(...rows.map(({ row }) => row));
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const body of table.tBodies) [...body.rows].forEach((row, place) => (row.dataset.place = place));
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => {
      const next = { none: "ascending", ascending: "descending", descending: "none" }[head.ariaSort];
      heads.forEach((other) => (other.ariaSort = other === head ? next : "none"));
      for (const body of table.tBodies) sort(body, column, next);
    });
    head.append(button);
    head.ariaSort = "none";
  });
}

/* A timeline is one stop of the Tab key; arrows go from turn to turn, and the line below says what is said there. */

const KEYS = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };

for (const timeline of document.querySelectorAll(".timeline")) {
  const turns = [...timeline.querySelectorAll(".turn")];
  const said = timeline.querySelector(".said");
  const show = (turn) => {
    turns.forEach((other) => other.classList.toggle("shown", other === turn));
    said.textContent = turn.querySelector("title").textContent;
  };
  timeline.querySelector(".box").removeAttribute("tabindex");
  said.textContent = "Point at a turn, or go through them with Tab and the arrow keys.";
  turns.forEach((turn, place) => {
    turn.setAttribute("tabindex", place ? -1 : 0);
    turn.addEventListener("pointerenter", () => show(turn));
    turn.addEventListener("focus", () => show(turn));
    turn.addEventListener("keydown", (event) => {
      if (!(event.key in KEYS)) return;
      event.preventDefault();
      const next = turns[Math.max(0, Math.min(turns.length - 1, place + KEYS[event.key]))];
      turn.setAttribute("tabindex", -1);
      next.setAttribute("tabindex", 0);
      next.focus();
    });
  });
}

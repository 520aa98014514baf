/** One turn as the page shows it. Its elements stay the same ones: the focus and what is selected are in them. */

import { button, element } from "./elements.js";
import { curl, python } from "./snippets.js";

export class TurnItem {
  #turn;
  #text;
  #problem = null;
  #note = element("small");
  #edit = null;
  #retry = null;
  #copies = [];

  /** @param actions `edit(turn)`, `retry()`, `copy(text, what)` */
  constructor(turn, { edit, retry, copy }) {
    this.#turn = turn;
    this.#text = element("p", { className: "text" }, turn.text);
    const asked = turn.role === "user";
    if (asked) {
      this.#edit = button("Edit", () => edit(turn));
    } else {
      this.#retry = button("Retry", retry);
      this.#copies = [
        button("Copy", () => copy(turn.text, `The ${turn.way.nouns.answered}`)),
        button("curl", () => copy(curl(turn.way, turn.request), "The request for curl"), { ariaLabel: "Copy as curl" }),
        button("Python", () => copy(python(turn.way, turn.request), "The request in Python"), { ariaLabel: "Copy as Python" }),
      ];
    }
    const pictures = (turn.pictures ?? []).map((picture) => element("li", {}, picture.figure()));
    this.element = element(
      "li",
      { className: `turn ${turn.role}`, hidden: asked && !turn.text && !pictures.length }, // a text continued as it stood
      element("h2", {}, asked ? "You" : turn.way.nouns.answered),
      pictures.length ? element("ul", { className: "pictures" }, ...pictures) : null,
      this.#text,
      element("div", { className: "row" }, this.#note, this.#edit, this.#retry, ...this.#copies),
    );
  }

  /** Adds a piece, as a node of its own: what is selected stays selected. */
  grow(piece) {
    this.#text.append(piece);
  }

  /** @param last whether nothing follows; @param locked whether turns cannot change now; @param replaced by an edit. */
  update({ last, locked, replaced }) {
    const { problem, note, running } = this.#turn;
    this.element.classList.toggle("replaced", replaced);
    if (problem && !this.#problem) {
      this.#problem = element("p", { className: "problem" }, problem);
      this.#text.after(this.#problem);
    }
    if (this.#note.textContent !== (note ?? "")) this.#note.textContent = note ?? "";
    for (const each of [this.#edit, this.#retry]) if (each) each.ariaDisabled = String(locked);
    if (this.#retry) this.#retry.hidden = running || !last;
    for (const each of this.#copies) each.hidden = running;
  }
}

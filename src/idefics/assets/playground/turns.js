/** The conversation as the page shows it. */

import { button, byId, element } from "./elements.js";
import { curl, python } from "./snippets.js";

export class Turns {
  #log = byId("log");
  #list = byId("turns");
  #actions;
  #following = true; // the end stays in sight, unless somebody scrolls up

  /** @param actions `edit(index)`, `retry()`, `copy(text, what)` */
  constructor(actions) {
    this.#actions = actions;
    this.#log.addEventListener("scroll", () => {
      const { scrollHeight, scrollTop, clientHeight } = this.#log;
      this.#following = scrollHeight - scrollTop - clientHeight < 40;
    });
    new ResizeObserver(() => this.#follow()).observe(this.#log);
  }

  show(turns, { editing = null } = {}) {
    byId("hint").hidden = turns.length > 0;
    this.#list.replaceChildren(...turns.map((turn, index) => this.#item(turn, index, index === turns.length - 1)));
    if (editing !== null) [...this.#list.children].slice(editing).forEach((item) => item.classList.add("replaced"));
    this.#following ||= editing === null;
    this.#follow();
  }

  /** Adds a piece to the last turn, as a node of its own: a screen reader says what is new, not all over again. */
  grow(piece) {
    this.#list.lastElementChild.querySelector(".text").append(piece);
    this.#follow();
  }

  #follow() {
    if (this.#following) this.#log.scrollTop = this.#log.scrollHeight;
  }

  #item(turn, index, last) {
    const asked = turn.role === "user";
    const pictures = asked ? turn.pictures.map((picture) => element("li", {}, picture.figure)) : [];
    return element(
      "li",
      { className: `turn ${turn.role}` },
      element("h2", {}, asked ? "You" : "Answer"),
      pictures.length ? element("ul", { className: "pictures" }, ...pictures) : null,
      element("p", { className: "text" }, turn.text),
      turn.problem ? element("p", { className: "problem" }, turn.problem) : null,
      element("div", { className: "row" }, element("small", {}, turn.note ?? ""), ...this.#buttons(turn, index, last)),
    );
  }

  #buttons(turn, index, last) {
    const { edit, retry, copy } = this.#actions;
    if (turn.role === "user") return [button("Edit", () => edit(index))];
    if (turn.running) return [];
    return [
      last ? button("Retry", retry) : null,
      button("Copy", () => copy(turn.text, "The answer")),
      button("curl", () => copy(curl(turn.request), "The request for curl"), { ariaLabel: "Copy as curl" }),
      button("Python", () => copy(python(turn.request), "The request in Python"), { ariaLabel: "Copy as Python" }),
    ].filter((each) => each !== null);
  }
}

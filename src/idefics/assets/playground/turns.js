/** The conversation as the page shows it. */

import { byId } from "./elements.js";
import { TurnItem } from "./turn.js";

export class Turns {
  #log = byId("log");
  #list = byId("turns");
  #announcer = byId("announcer");
  #actions;
  #items = new Map(); // by turn
  #top = 0; // of what is in sight
  #following = true; // the end stays in sight, unless somebody scrolls up

  /** @param actions of a turn's buttons */
  constructor(actions) {
    this.#actions = actions;
    this.#log.addEventListener("scroll", () => {
      const { scrollHeight, scrollTop, clientHeight } = this.#log;
      const end = scrollHeight - scrollTop - clientHeight < 40;
      if (end || scrollTop < this.#top) this.#following = end; // the end can also move away by itself, as the message grows
      this.#top = scrollTop;
    });
    const sizes = new ResizeObserver(() => this.#follow()); // of turns, too: what is told of their images comes later
    for (const each of [this.#log, this.#list]) sizes.observe(each);
  }

  /** Turns come and go at the end only; those that stay keep their elements. */
  show(turns, { locked, editing, running }) {
    byId("welcome").hidden = turns.length > 0;
    this.#log.ariaBusy = String(running);
    for (const [turn, item] of this.#items) {
      if (turns.includes(turn)) continue;
      item.element.remove();
      this.#items.delete(turn);
    }
    for (const turn of turns) {
      if (this.#items.has(turn)) continue;
      const item = new TurnItem(turn, this.#actions);
      this.#items.set(turn, item);
      this.#list.append(item.element);
      this.#following = true;
    }
    turns.forEach((turn, index) => {
      const replaced = editing !== null && index >= editing;
      this.#items.get(turn).update({ last: index === turns.length - 1, locked, replaced });
    });
    if (!turns.length) this.announce("");
    this.#follow();
  }

  /** Adds a piece to a turn. */
  grow(turn, piece) {
    this.#items.get(turn)?.grow(piece);
    this.#follow();
  }

  /** Has a text read out, where the page is read out: a whole answer, not its pieces while they come. */
  announce(text) {
    this.#announcer.replaceChildren(text);
  }

  #follow() {
    if (this.#following && this.#items.size) this.#log.scrollTop = this.#log.scrollHeight;
  }
}

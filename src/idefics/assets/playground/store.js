/** What the browser keeps. Where it keeps nothing for sites (it may throw then), the page does until it is left. */

class Store {
  #kept = new Map();
  #storage;

  /** @param find gives the browser's storage; a function, as looking at it throws already where it is blocked. */
  constructor(find) {
    try {
      this.#storage = find();
    } catch {
      this.#storage = null;
    }
  }

  get(name) {
    return this.#kept.get(name) ?? this.#storage?.getItem(name) ?? null;
  }

  set(name, value) {
    this.#kept.set(name, value);
    try {
      this.#storage?.setItem(name, value);
    } catch {
      // Full: what is set lasts as long as the page.
    }
  }

  remove(name) {
    this.#kept.delete(name);
    this.#storage?.removeItem(name);
  }
}

export const tabStore = new Store(() => sessionStorage);
export const siteStore = new Store(() => localStorage);

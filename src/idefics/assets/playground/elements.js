/** Elements of the page: those that are there, and new ones. */

/** The element of an id. */
export const byId = (id) => document.getElementById(id);

/** A new element. Texts stay texts: nothing that a model or a user wrote is ever read as HTML. */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** A new button that does something. One that is off for a while says so by `ariaDisabled`, which leaves it the focus. */
export function button(text, action, properties = {}) {
  const made = element("button", { type: "button", ...properties }, text);
  made.addEventListener("click", () => {
    if (made.ariaDisabled !== "true") action();
  });
  return made;
}

/** Bytes as people read them. */
export function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = bytes && Math.min(units.length - 1, Math.floor(Math.log2(bytes) / 10));
  return `${(bytes / 1024 ** power).toPrecision(3)} ${units[power]}`;
}

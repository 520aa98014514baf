/** Elements of the page: those that are there, and new ones. */

/** The element of an id. */
export const byId = (id) => document.getElementById(id);

/** A new element. Texts stay texts: nothing that a model or a user wrote is ever read as HTML. */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** A new button that does something. */
export function button(text, action, properties = {}) {
  const made = element("button", { type: "button", ...properties }, text);
  made.addEventListener("click", action);
  return made;
}

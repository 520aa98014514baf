/** What is asked or handed over apart from the page. */

import { byId } from "./elements.js";

/** Asks for an API key until one is given. */
export function askForKey(refused) {
  const dialog = byId("key");
  if (refused) byId("key-told").textContent = "The server does not know this key.";
  byId("key-text").value = "";
  return answered(dialog, () => byId("key-text").value.trim());
}

/** Copies a text; where the browser does not let a page copy (http to another machine), shows it selected. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = byId("code-text");
    field.value = text;
    const done = answered(byId("code"), () => true);
    field.select();
    await done;
    return false;
  }
}

function answered(dialog, value) {
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.querySelector("form").onsubmit = (event) => {
      event.preventDefault();
      dialog.close();
    };
    dialog.onclose = () => (value() ? resolve(value()) : dialog.showModal());
  });
}

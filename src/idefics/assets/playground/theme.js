/** Light or dark: the system's choice until the switch is used. */

import { byId } from "./elements.js";
import { siteStore } from "./store.js";

const system = matchMedia("(prefers-color-scheme: dark)");

export function watchTheme() {
  const dark = () => (siteStore.get("theme") ?? (system.matches ? "dark" : "light")) === "dark";
  const apply = () => {
    document.documentElement.dataset.theme = dark() ? "dark" : "light";
    byId("theme").ariaPressed = dark();
  };
  byId("theme").addEventListener("click", () => {
    siteStore.set("theme", dark() ? "light" : "dark");
    apply();
  });
  system.addEventListener("change", apply);
  apply();
}

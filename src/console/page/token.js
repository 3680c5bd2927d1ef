// The token: a dialog to set or forget it, and what is wrong with it, in words.
import { setToken, token } from "./api.js";
import { byId, h } from "./dom.js";
import { set } from "./state.js";

let dialog = null;

function build() {
  const field = h("input", { type: "password", id: "token", autocomplete: "off", size: "44", spellcheck: "false" });
  const use = (text) => { setToken(text.trim()); field.value = ""; dialog.close(); };
  dialog = h("dialog", { "aria-labelledby": "token-title" },
    h("form", { method: "dialog", onsubmit: (event) => { event.preventDefault(); use(field.value); } },
      h("h2", { id: "token-title" }, "Token"),
      h("p", {}, "Reading events needs a token with the scope query, health and pushed metrics the scope metrics, "
        + "dead letters and deletions the scope admin."),
      h("label", { for: "token" }, "Token"), field,
      h("p", { class: "dim" }, "It is kept in this tab only, and forgotten when the tab is closed."),
      h("div", { class: "buttons" },
        h("button", { class: "primary" }, "Use token"),
        h("button", { type: "button", onclick: () => use("") }, "Forget"),
        h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"))));
  document.body.append(dialog);
}

export function openTokenDialog() {
  if (!dialog) build();
  dialog.showModal();
  byId("token").focus();
}

export function showTokenState() {
  byId("token-button").textContent = token() ? "Token: set" : "Token: none";
}

/// What an error means and what to do about it.
export function explain(error) {
  const parts = [h("p", {}, error.message)];
  if (error.kind === "service") {
    const names = error.services;
    parts.push(h("p", {}, "It may read: ", names.map((name) =>
      h("button", { type: "button", class: "chip", onclick: () => set({ service: name }) }, name))));
  }
  if (error.isAboutToken) {
    parts.push(h("button", { type: "button", onclick: openTokenDialog }, token() ? "Change token" : "Set token"));
  }
  return h("div", { class: `notice ${error.isAboutToken ? "token" : "bad"}`, role: "alert", data: { kind: error.kind ?? "other" } }, parts);
}

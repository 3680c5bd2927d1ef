// The search box of Live and Search: words and filters, with help, and errors that name the mistake.
import { h } from "./dom.js";
import { parse } from "./query.js";
import { set, state } from "./state.js";

const HELP = "Words search in messages. metadata.region=eu and service=checkout are filters; \"quotes\" keep spaces. An event id opens the event.";

/// `{ element, applied(), sync() }`; the applied text is that of the state.
export function searchBox() {
  const errors = h("p", { class: "bad", id: "box-error", role: "alert" });
  const hint = h("p", { class: "dim", id: "box-help" }, HELP);
  const field = h("input", { id: "box", type: "search", autocomplete: "off", spellcheck: "false",
    placeholder: "refused metadata.region=eu", "aria-describedby": "box-error box-help", value: state.q });
  const service = h("span", {});
  const element = h("form", { class: "searchbox", role: "search", onsubmit: submit },
    h("div", { class: "bar" }, h("label", { for: "box" }, "Search"), field, h("button", { class: "primary" }, "Apply"), service), errors, hint);

  function check(text) {
    const query = parse(text);
    errors.textContent = query.errors.join(" ");
    hint.textContent = query.hint || HELP;
    if (query.errors.length) field.setAttribute("aria-invalid", "true"); else field.removeAttribute("aria-invalid");
    return query;
  }

  function submit(event) {
    event.preventDefault();
    const query = check(field.value);
    if (query.errors.length) return;
    if (query.id) set({ event: query.id }); else set({ q: field.value.trim() });
  }

  function sync() {
    field.value = state.q;
    check(state.q);
    service.replaceChildren(...(state.service ? [h("button", { type: "button", class: "chip", "aria-label": `service ${state.service} ×: remove`,
      onclick: () => set({ service: "" }) }, `service ${state.service} ×`)] : []));
  }

  sync();
  return { element, applied: () => state.q, sync, showError(text) { errors.textContent = text; } };
}

// The state of the page, all of it in the URL, so that it can be shared and the back button works. The token is not part
// of it.
const DEFAULTS = {
  tab: "live", q: "", service: "", range: "1h", from: "", to: "", event: "", tz: "local", times: "absolute",
};
const TABS = ["live", "search", "dead", "pushed", "health"];
const ENUMS = { tab: TABS, tz: ["local", "utc"], times: ["absolute", "relative"] };

function read() {
  const params = new URLSearchParams(location.search);
  const found = { ...DEFAULTS };
  for (const name of Object.keys(DEFAULTS)) {
    const value = params.get(name);
    if (value != null && (!ENUMS[name] || ENUMS[name].includes(value))) found[name] = value;
  }
  return found;
}

export const state = read();
const listeners = [];

/// Calls `listener(state, previous)` after each change.
export function onChange(listener) { listeners.push(listener); }

function url() {
  const params = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    if (value !== DEFAULTS[name]) params.set(name, value);
  }
  const text = params.toString();
  return text ? `/?${text}` : "/";
}

function apply(next, navigate) {
  const previous = { ...state };
  Object.assign(state, next);
  if (Object.keys(DEFAULTS).every((name) => state[name] === previous[name])) return;
  navigate?.(url());
  for (const listener of listeners) listener(state, previous);
}

/// Changes the state and adds an entry to the history.
export function set(changes) { apply(changes, (to) => history.pushState(null, "", to)); }

addEventListener("popstate", () => apply(read()));

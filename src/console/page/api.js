// Requests to the server, with the token of this tab, and errors in words.
const TOKEN = "token";

export const token = () => sessionStorage.getItem(TOKEN);
export function setToken(text) {
  if (text) sessionStorage.setItem(TOKEN, text); else sessionStorage.removeItem(TOKEN);
  dispatchEvent(new Event("token"));
}

/// `kind`: network, no-token, bad-token, scope, service, database, unavailable, invalid, missing or other.
export class ApiError extends Error {
  constructor(kind, message, more = {}) {
    super(message);
    Object.assign(this, { kind }, more);
  }

  get isAboutToken() { return ["no-token", "bad-token", "scope", "service"].includes(this.kind); }
  get isTemporary() { return ["network", "database", "unavailable"].includes(this.kind); }
}

async function toError(reply) {
  const body = await reply.json().catch(() => ({}));
  const kind = (body.type ?? "").split(":").at(-1);
  const retryAfter = Number(reply.headers.get("Retry-After") ?? 0);
  const challenge = reply.headers.get("WWW-Authenticate") ?? "";
  const detail = body.detail ?? `the server answered ${reply.status}`;
  if (reply.status === 401) {
    return token() ? new ApiError("bad-token", "The server does not know this token.")
      : new ApiError("no-token", "No token: this server answers only requests with one.");
  }
  if (reply.status === 403) {
    const scope = /scope="(\w+)"/.exec(challenge)?.[1];
    if (scope) return new ApiError("scope", `Wrong scope: this needs a token with the scope ${scope}.`, { scope });
    if (body.services) {
      const named = body.detail?.startsWith("the token may not");
      const message = named ? `Wrong service: ${detail}.` : "This token must name a service.";
      return new ApiError("service", message, { services: body.services });
    }
    return new ApiError("other", detail);
  }
  const fields = body.errors?.map((error) => error.detail).join("; ");
  if (kind === "database-unavailable") return new ApiError("database", detail, { retryAfter });
  if (reply.status === 503 || reply.status === 429) return new ApiError("unavailable", detail, { retryAfter });
  if (reply.status === 400) return new ApiError("invalid", fields || detail);
  return new ApiError(reply.status === 404 ? "missing" : "other", fields || detail);
}

/// Sends a request; returns the response if it is a success, or throws an ApiError.
export async function request(path, { accept = "application/json", headers: more = {}, ...options } = {}) {
  const headers = { Accept: accept, ...more };
  if (token()) headers.Authorization = `Bearer ${token()}`;
  let reply;
  try {
    reply = await fetch(path, { cache: "no-store", ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("network", "The server does not respond.");
  }
  if (reply.ok) return reply;
  // A critical status is a 503 with a complete body.
  if (reply.status === 503 && path.startsWith("/health")) return reply;
  throw await toError(reply);
}

export async function json(path, options) {
  return (await request(path, options)).json();
}

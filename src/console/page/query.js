// The language of the search box: words of the message, and filters `metadata.KEY=VALUE` and `service=NAME`.
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;
const METADATA = "metadata.";
const FILTERS_MAX = 8;

/// Splits at spaces outside of double quotes. A part has its text without the quotes, and where its first quote was.
function split(text) {
  const parts = [];
  let part = null, quoted = false;
  for (let at = 0; at < text.length; at += 1) {
    const letter = text[at];
    if (letter === "\\" && quoted && /["\\]/.test(text[at + 1] ?? "")) { part.text += text[at += 1]; continue; }
    if (letter === '"') {
      part ??= { text: "", quote: 0 };
      part.quote ??= part.text.length;
      quoted = !quoted;
    } else if (/\s/.test(letter) && !quoted) {
      if (part) parts.push(part);
      part = null;
    } else {
      part ??= { text: "" };
      part.text += letter;
    }
  }
  if (part) parts.push(part);
  return { parts, unclosed: quoted };
}

/// Parses the box: `{ words, service, metadata: [[key, value]], id, errors, hint }`.
export function parse(text) {
  const query = { words: "", service: "", metadata: [], id: "", errors: [], hint: "" };
  if (UUID.test(text.trim())) return { ...query, id: text.trim().toLowerCase() };
  const { parts, unclosed } = split(text);
  if (unclosed) query.errors.push("A quote \" is not closed.");
  const words = [];
  for (const part of parts) {
    const at = part.text.indexOf("=");
    // A quote before the sign makes the part a text.
    const isText = part.quote != null && (at < 0 || part.quote <= at);
    if (!isText && part.text.startsWith(METADATA)) parseMetadata(part, at, query);
    else if (!isText && part.text.startsWith("service=")) {
      if (query.service) query.errors.push("service= is given twice.");
      query.service = part.text.slice(at + 1);
      if (!query.service) query.errors.push("service= has no name: write service=NAME.");
    } else {
      if (!isText && at > 0) query.hint = `"${part.text}" is searched in messages; for metadata write metadata.${part.text}`;
      words.push(part.text);
    }
  }
  if (query.metadata.length > FILTERS_MAX) query.errors.push(`There are more than ${FILTERS_MAX} metadata filters.`);
  query.words = words.join(" ");
  return query;
}

function parseMetadata(part, at, query) {
  const key = part.text.slice(METADATA.length, at < 0 ? undefined : at);
  if (at < 0) query.errors.push(`${part.text} has no value: write ${part.text}=VALUE.`);
  else if (!key) query.errors.push(`${part.text} has no key: write metadata.KEY=VALUE.`);
  else if (at === part.text.length - 1 && part.quote == null) {
    query.errors.push(`metadata.${key}= has no value: write metadata.${key}=VALUE, or metadata.${key}="" for an empty text.`);
  } else query.metadata.push([key, part.text.slice(at + 1)]);
}

/// A filter as it is written in the box.
export function metadataFilter(key, value) {
  const text = typeof value === "string" ? value : JSON.stringify(value);
  const safe = /^[^\s"\\]+$/.test(text) ? text : `"${text.replace(/["\\]/g, "\\$&")}"`;
  return `${METADATA}${key}=${safe}`;
}

/// The parameters of the server for a query of the box and the chosen service.
export function toParams(query, service) {
  const params = new URLSearchParams();
  const name = query.service || service;
  if (name) params.set("service", name);
  if (query.words) params.set("q", query.words);
  for (const [key, value] of query.metadata) params.append(METADATA + key, value);
  return params;
}

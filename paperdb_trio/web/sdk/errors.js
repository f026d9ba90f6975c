/**
 * What can go wrong, and the checks that need no server.
 *
 * Law: no I/O. An error never holds an API key or a token.
 */

const COLLECTION_NAME = /^[A-Za-z0-9_-]{1,64}$/;

/**
 * The server refused, or could not be reached: `status` is the HTTP status (0: no answer), `code` is for
 * programs (CONFLICT, NOT_FOUND, NETWORK, …), `message` for people. Whatever else the answer's JSON held
 * (`plan`, `oldest`, `index`, …) is on the error too; `retryAfter` is in seconds.
 */
export class PaperDBError extends Error {
  constructor(message, { status = 0, code = "UNKNOWN", cause, ...extra } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    for (const [name, value] of Object.entries(extra)) if (!(name in this)) this[name] = value;
    this.name = "PaperDBError";
    this.status = status;
    this.code = code;
  }
}

/** Whether the same request is bound to fail again. */
export const isFinal = ({ status }) => status >= 400 && status < 500 && ![408, 425, 429].includes(status);

export const invalid = (code, message) => new PaperDBError(message, { status: 400, code });

export const isCollectionName = (name) => typeof name === "string" && COLLECTION_NAME.test(name);

export function checkCollection(name) {
  if (isCollectionName(name)) return name;
  const rule = "Use letters, numbers, underscores, and hyphens only.";
  throw invalid("INVALID_COLLECTION", `Invalid collection name: '${String(name)}'. ${rule}`);
}

/** One segment of a path. `.` and `..` must not get through: a URL folds them, and means something else. */
export function segment(id) {
  const good = typeof id === "string" && !["", ".", ".."].includes(id) && id.isWellFormed?.() !== false;
  if (!good) throw invalid("INVALID_ID", `Invalid document id: ${JSON.stringify(id)}. Use a string.`);
  return encodeURIComponent(id);
}

/** A URL, absolute, with `scheme` (http or ws, with an s where it had one) and no slash at its end. */
export function address(url, scheme) {
  let parsed;
  try {
    parsed = new URL(url, globalThis.location?.href);
  } catch {
    throw invalid("INVALID_URL", `Invalid URL: '${url}'. Use one like http://127.0.0.1:8000`);
  }
  const { protocol, username, password, search, hash } = parsed;
  if (!["http:", "https:", "ws:", "wss:"].includes(protocol) || username || password || search || hash) {
    throw invalid("INVALID_URL", "A URL must be http(s) or ws(s), without credentials, query or fragment");
  }
  const secure = protocol === "https:" || protocol === "wss:";
  return `${scheme}${secure ? "s" : ""}://${parsed.host}${parsed.pathname.replace(/\/+$/, "")}`;
}


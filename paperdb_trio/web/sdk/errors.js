/**
 * What can go wrong, and the checks that need no server.
 *
 * Law: no I/O. An error never holds an API key or a token.
 */

const COLLECTION_NAME = /^[A-Za-z0-9_-]{1,64}$/;

/** Shared by all copies of this module: a program may load it as an ES module and by `require`. */
const IS_OURS = Symbol.for("paperdb.PaperDBError");

/**
 * The server refused, or could not be reached: `status` is the HTTP status (0: no response), `code` is
 * for programs (CONFLICT, NOT_FOUND, NETWORK, …), `message` for people. Other members of the response's JSON
 * (`plan`, `oldest`, `index`, …) are on the error, too; `retryAfter` is in seconds.
 */
export class PaperDBError extends Error {
  constructor(message, { status = 0, code = "UNKNOWN", cause, ...extra } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    for (const [name, value] of Object.entries(extra)) if (!(name in this)) this[name] = value;
    this.name = "PaperDBError";
    this.status = status;
    this.code = code;
  }

  get [IS_OURS]() {
    return true;
  }

  static [Symbol.hasInstance](value) {
    return this === PaperDBError ? value?.[IS_OURS] === true : super[Symbol.hasInstance](value);
  }
}

/** Whether the same request is bound to fail again. */
export const isFinal = ({ status, code }) =>
  code === "REDIRECTED" || code === "BAD_ANSWER" || (status >= 400 && status < 500 && ![408, 425, 429].includes(status));

/** What Node calls a certificate that it does not accept. */
export const isCertificateCode = (code) =>
  /^(CERT_|ERR_TLS_CERT_|DEPTH_ZERO_|SELF_SIGNED_|UNABLE_TO_(GET|VERIFY)_)/.test(code);

export const certificateError = (why, cause) =>
  new PaperDBError(`The server's certificate was not accepted: ${why}`, { code: "CERTIFICATE", cause });

export const invalid = (code, message) => new PaperDBError(message, { status: 400, code });

export const uncovered = (collection) =>
  new PaperDBError(`The token does not cover the collection '${collection}'`, { status: 403, code: "NOT_IN_TOKEN" });

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

const WHOLE_URL = /^(https?|wss?):\/\//i;
/** In a browser: a path on the page's own host. Anything else would mean that host only by mistake. */
const RELATIVE_URL = /^\.{0,2}\//;

/** The URL of an `option`, absolute, with `scheme` (http or ws, with an s where it had one), and no slash at its end. */
export function address(option, url, scheme) {
  const text = typeof url === "string" ? url.trim() : String(url?.href ?? "");
  const isRelative = RELATIVE_URL.test(text) && globalThis.location !== undefined;
  let parsed = null;
  try {
    if (isRelative || WHOLE_URL.test(text)) parsed = new URL(text, globalThis.location?.href);
  } catch {
    // told below
  }
  if (parsed === null || !WHOLE_URL.test(parsed.href)) {
    const shown = text ? `'${text.replace(/.*@/s, "…@")}'` : String(url === "" ? "an empty string" : url);
    const like = "https://db.example.com (or, in a browser, a path of the page's own host, such as '/')";
    throw invalid("INVALID_URL", `Invalid ${option}: ${shown}. Use one like ${like}`);
  }
  const { protocol, username, password, search, hash } = parsed;
  if (username || password || search || hash) {
    throw invalid("INVALID_URL", `${option} must be without credentials, query or fragment`);
  }
  const secure = protocol === "https:" || protocol === "wss:";
  return `${scheme}${secure ? "s" : ""}://${parsed.host}${parsed.pathname.replace(/\/+$/, "")}`;
}

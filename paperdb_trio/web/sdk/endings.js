/**
 * What the end of a connection means: the contract's table of close codes, and HTTP statuses in their place.
 *
 * Law: no state. An ending is `{then, text, error, retryAfter}`: what to do, for the status, for `onError`, in s.
 */

import { PaperDBError, certificateError, isCertificateCode, isFinal } from "./errors.js";

export const STOP = "stop";
export const NEW_TOKEN = "new token";
export const AGAIN = "again";
/** As `AGAIN`; but a browser says this of every handshake that was refused, and another token may help. */
export const UNKNOWN = "unknown";

/** Those that are not here: 4400 to 4499 stop, others reconnect. */
const CLOSE_CODES = {
  1003: STOP,
  1006: UNKNOWN,
  1007: STOP,
  1009: STOP,
  4401: NEW_TOKEN,
  4408: AGAIN,
  // The next connection asks for the same cursor, is told of the gap with its bounds, and is live from now.
  4410: AGAIN,
};
const STATUSES = { 4401: 401, 4403: 403 };
const NAMES = { 4401: "UNAUTHORIZED", 4403: "ACCESS_LOST" };

/** A connection was closed. The reason of a refused handshake is `CODE: sentence`. */
export function closed(code, reason) {
  const then = CLOSE_CODES[code] ?? (code >= 4400 && code < 4500 ? STOP : AGAIN);
  const text = `closed with ${code} ${reason}`.trim();
  const [, name = NAMES[code] ?? "CLOSED", sentence = reason || text] =
    /^([A-Z][A-Z0-9_]+): (.+)$/s.exec(reason) ?? [];
  const error = new PaperDBError(sentence, { status: STATUSES[code] ?? 400, code: name, closeCode: code });
  return { then, text, error };
}

/** A handshake failed; `event` is the socket's error event, which only our own WebSocket for Node fills in. */
export function failed({ status, message, code, retryAfter } = {}) {
  if (status === undefined) {
    const ending = closed(1006, "");
    return isCertificateCode(code) ? { ...ending, text: message, error: certificateError(message) } : ending;
  }
  const text = `closed with 1006 HTTP ${status}`;
  const error = new PaperDBError(message || text, { status, code: code ?? `HTTP_${status}` });
  const then = status === 401 ? NEW_TOKEN : status < 400 || isFinal(error) ? STOP : AGAIN;
  return { then, text, error, retryAfter };
}

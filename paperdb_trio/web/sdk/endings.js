/**
 * What the end of a connection means: the contract's table of close codes.
 *
 * Law: no state. An ending is `{then, text, error}`: what to do, for the status, for `onError`.
 */

import { PaperDBError, certificateError, isCertificateCode } from "./errors.js";

export const STOP = "stop";
export const NEW_TOKEN = "new token";
export const AGAIN = "again";
/** As `AGAIN`; but every handshake that was refused ends with this code, and another token may help. */
export const UNKNOWN = "unknown";

/** Codes that are not listed: 4400 to 4499 stop, others reconnect. */
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

/** A connection was closed. The reason for a refused handshake is `CODE: sentence`. */
export function closed(code, reason) {
  const then = CLOSE_CODES[code] ?? (code >= 4400 && code < 4500 ? STOP : AGAIN);
  const text = `closed with ${code} ${reason}`.trim();
  const [, name = NAMES[code] ?? "CLOSED", sentence = reason || text] =
    /^([A-Z][A-Z0-9_]+): (.+)$/s.exec(reason) ?? [];
  const error = new PaperDBError(sentence, { status: STATUSES[code] ?? 400, code: name, closeCode: code });
  return { then, text, error };
}

/** A handshake failed; `event` is the socket's error event, in which only `ws` says why. */
export function failed({ message = "", error } = {}) {
  const ending = closed(1006, message);
  return isCertificateCode(error?.code) ? { ...ending, text: message, error: certificateError(message) } : ending;
}

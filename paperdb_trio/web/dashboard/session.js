/**
 * Who is signed in, and the requests that are made as them.
 *
 * Law: the key is in this tab only: in memory, and in the tab's `sessionStorage`, so that a reload keeps it. It goes into
 * headers of requests to this server; never into an address, a text on the page, or a log.
 */

import { createClient } from "../sdk/paperdb.js";

const STORED = "paperdb.key";
const KINDS = [
  ["pdb_sk_", "secret"],
  ["pdb_pk_", "public"],
  ["pdb_ak_", "admin"],
];

/** The server's address; a proxy may serve all this under a path. */
export const server = new URL(".", location.href.split("#")[0]);

/** A response that is not 2xx: `status`, `code`, and a sentence. 0 and `NETWORK`: there was none. */
export class Refusal extends Error {
  constructor(status, code, message, more = {}) {
    super(message);
    Object.assign(this, more, { status, code });
  }
}

export class Session {
  #key;

  constructor(key) {
    this.#key = key;
    this.kind = KINDS.find(([prefix]) => key.startsWith(prefix))?.[1] ?? "token";
    const credential = this.kind === "token" ? { getToken: async () => key } : { apiKey: key };
    /** The SDK, for what changes as one watches. */
    this.client = createClient({ ...credential, baseUrl: server });
    this.claims = this.kind === "token" ? claims(key) : null;
  }

  get canWrite() {
    return this.kind === "secret" || this.kind === "token";
  }

  /** Schemas, plans of queries, history: for keys only. */
  get hasKey() {
    return this.kind === "secret" || this.kind === "public";
  }

  /**
   * `{text, etag, json()}` of a request. Throws a `Refusal`. `body` is a text that is JSON already; `ifMatch` and
   * `ifNoneMatch` are as the headers have them.
   */
  async call(method, path, { query = {}, body, headers = {}, signal } = {}) {
    const address = new URL(path.replace(/^\//, ""), server);
    for (const [name, value] of Object.entries(query)) {
      if (value !== undefined && value !== "") address.searchParams.set(name, value);
    }
    const sent = { ...headers, Authorization: `Bearer ${this.#key}` };
    if (body !== undefined) sent["Content-Type"] = "application/json";
    let response;
    let text;
    try {
      response = await fetch(address, { method, body, headers: sent, signal, redirect: "error", cache: "no-store" });
      text = await response.text();
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new Refusal(0, "NETWORK", "The server does not respond");
    }
    if (!response.ok) {
      const { error = `HTTP ${response.status}`, code = `HTTP_${response.status}`, ...more } = parsed(text) ?? {};
      throw new Refusal(response.status, code, error, more);
    }
    return { text, etag: response.headers.get("ETag"), json: () => JSON.parse(text) };
  }

  async get(path, query) {
    return (await this.call("GET", path, { query })).json();
  }

  async send(method, path, body, more) {
    return (await this.call(method, path, { ...more, body: body && JSON.stringify(body) })).json();
  }

  /** `[{name, count, schema}]`; a token knows only what it names. */
  async collections() {
    if (this.kind === "token") {
      const named = this.claims.collections ?? [];
      return (Array.isArray(named) ? named : Object.keys(named)).map((name) => ({ name, count: null, schema: null }));
    }
    if (!this.hasKey) return [];
    const { collections } = await this.get("/collections");
    return collections.sort((one, other) => (one.name < other.name ? -1 : 1));
  }

  /** A credential for a WebSocket to these collections. */
  async realtimeToken(collections) {
    if (this.kind === "token") return this.#key;
    return (await this.send("POST", "/realtime/token", { collections, expiresIn: 3600 })).token;
  }

  /** Whether the server takes the credential. Throws a `Refusal` if not. */
  async check() {
    if (this.kind === "token") {
      const [first] = await this.collections();
      const name = first && first.name !== "*" ? first.name : "any";
      await this.get(`/${name}/docs`, { limit: 1 });
    } else if (this.kind !== "admin") await this.get("/collections");
  }

  close() {
    this.client.close();
  }

  remember() {
    sessionStorage.setItem(STORED, this.#key);
  }

  static forget() {
    sessionStorage.removeItem(STORED);
  }

  /** The session that this tab had before it was loaded again, or null. */
  static remembered() {
    const key = sessionStorage.getItem(STORED);
    return key === null ? null : new Session(key);
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** What a token says of itself. */
export function claims(token) {
  try {
    const bytes = Uint8Array.from(atob(token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0));
    return JSON.parse(new TextDecoder().decode(bytes)) ?? {};
  } catch {
    return {};
  }
}

/** A document's path. */
export const pathOf = (collection, id) => `/${collection}/docs/${encodeURIComponent(id)}`;

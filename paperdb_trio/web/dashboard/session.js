/**
 * Who is signed in, and the requests that are made as them.
 *
 * Law: the key is in this tab only: in memory, and in the tab's `sessionStorage`, so that a reload keeps it. It goes into
 * headers of requests to this server; never into an address, a text on the page, or a log.
 */

import { createClient } from "../sdk/paperdb.js";

const STORED = "paperdb.key";
const CHOSEN = "paperdb.database";
/** With an admin key: the database whose documents a request is about. */
const DATABASE = "X-PaperDB-Database";
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
  /** Called once the server no longer takes the credential. */
  onLost = () => {};

  /** `database`: the one whose documents an admin key is to see; null for the server alone. */
  constructor(key, database = null) {
    this.#key = key;
    this.kind = KINDS.find(([prefix]) => key.startsWith(prefix))?.[1] ?? "token";
    this.database = this.kind === "admin" ? database : null;
    const credential = this.kind === "token" ? { getToken: async () => key } : { apiKey: key };
    const within = this.database && { fetch: (url, { headers, ...init }) => fetch(url, { ...init, headers: { ...headers, [DATABASE]: database } }) };
    /** The SDK, for what changes as one watches. */
    this.client = createClient({ ...credential, ...within, baseUrl: server });
    this.claims = this.kind === "token" ? claims(key) : null;
    /** `{database, version, …}` of a secret or admin key. */
    this.me = null;
  }

  /** The same key, on a database. */
  on(database) {
    return Object.assign(new Session(this.#key, database), { me: this.me });
  }

  /** Whether it may do what a secret key may. */
  get isFull() {
    return this.kind === "secret" || this.database !== null;
  }

  get canWrite() {
    return this.isFull || this.kind === "token";
  }

  /** Schemas, plans of queries, history: for keys only. */
  get hasKey() {
    return this.isFull || this.kind === "public";
  }

  /** Whether there are documents to see. */
  get hasDocuments() {
    return this.hasKey || this.kind === "token";
  }

  /** Whether the admin API takes the key; for a secret key, about its own database. A proxy may close it. */
  get isOperator() {
    return this.me !== null;
  }

  /**
   * `{text, etag, json()}` of a request. Throws a `Refusal`. `body` is a text that is JSON already; `ifMatch` and
   * `ifNoneMatch` are as the headers have them.
   */
  async call(method, path, { query = {}, body, headers = {}, signal } = {}) {
    const address = new URL(`.${path}`, server);
    // Part of a path may come from a link or a token: none may take the key elsewhere.
    if (!address.href.startsWith(server.href)) throw new Refusal(0, "NETWORK", `There is no address ${path}`);
    for (const [name, value] of Object.entries(query)) {
      if (value !== undefined && value !== "") address.searchParams.set(name, value);
    }
    const sent = { ...headers, Authorization: `Bearer ${this.#key}` };
    if (this.database !== null) sent[DATABASE] = this.database;
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
      const refusal = new Refusal(response.status, code, error, more);
      if (response.status === 401) this.onLost(refusal);
      throw refusal;
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
    } else if (this.kind === "public" || !(await this.#meet())) await this.get("/collections");
  }

  async #meet() {
    try {
      this.me = await this.get("/admin.v1/me");
    } catch (error) {
      if (this.kind === "admin" || error.status === 401 || error.status === 0) throw error;
    }
    return this.isOperator;
  }

  /** Have the record say what is about to be done to documents: the server cannot tell. A token has no place in it. */
  async record(action, collection, note) {
    if (!this.isOperator) return;
    await this.send("POST", "/admin.v1/audit", { action, collection, database: this.database ?? this.me.database, note: short(note) });
  }

  close() {
    this.client.close();
  }

  remember() {
    sessionStorage.setItem(STORED, this.#key);
    sessionStorage.setItem(CHOSEN, this.database ?? "");
  }

  static forget() {
    sessionStorage.removeItem(STORED);
    sessionStorage.removeItem(CHOSEN);
  }

  /** The session that this tab had before it was loaded again, or null. */
  static remembered() {
    const key = sessionStorage.getItem(STORED);
    return key === null ? null : new Session(key, sessionStorage.getItem(CHOSEN) || null);
  }
}

/** What the record takes: 500 characters, on one line. */
const short = (text) => Array.from(text.replace(/[\p{C}\p{Z}]+/gu, " ")).slice(0, 500).join("");

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

/** All rows of a list of the admin API, page by page. */
export async function all(session, path, member, query = {}) {
  const found = [];
  for (let after; ;) {
    const page = await session.get(path, { ...query, limit: 1000, after });
    found.push(...page[member]);
    after = page.next;
    if (after === undefined) return found;
  }
}

/** A document's path. */
export const pathOf = (collection, id) => `/${collection}/docs/${encodeURIComponent(id)}`;
